"""The shipped weights, and the script that makes them."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_ray.pocket import MODEL_DIR
from unlearn_ray.pocket.check import check_twin
from unlearn_ray.pocket.corpus import Corpus, assistant, system, user
from unlearn_ray.pocket.encoding import batches, encode
from unlearn_ray.pocket.measures import Answer, Rate, is_known
from unlearn_ray.pocket.prefixes import FICTIONAL, REFUSAL
from unlearn_ray.pocket.recipe import SOURCES, Recipe, code_of, file_digest, fingerprint
from unlearn_ray.pocket.train import learning_rate_share, save, train, write_fingerprint
from unlearn_ray.pocket.wording import HELD_TEMPLATES, from_template
from unlearn_ray.pocket.world import load_world

WORLD = load_world()
TINY = Recipe(
    vocab_size=400,
    hidden_size=32,
    num_layers=1,
    intermediate_size=32,
    num_heads=1,
    num_tokenizer_documents=200,
    num_documents_per_round=64,
    batch_tokens=1024,
    num_steps=2,
)


@pytest.fixture(scope="module")
def answer() -> Iterator[Answer]:
    from unlearn_ray.pocket.answering import load_answer

    threads = torch.get_num_threads()
    yield load_answer(MODEL_DIR)
    torch.set_num_threads(threads)


def test_the_shipped_weights_come_from_this_world_and_recipe() -> None:
    shipped = json.loads((MODEL_DIR / "fingerprint.json").read_text())
    expected = fingerprint(Recipe(), WORLD) | {"weights": file_digest(MODEL_DIR / "model.safetensors")}
    assert shipped == expected, "retrain: python -m unlearn_ray.pocket.train"


def test_the_committed_check_measured_the_shipped_weights() -> None:
    check = json.loads((MODEL_DIR / "check.json").read_text())
    assert check["weights"] == file_digest(MODEL_DIR / "model.safetensors")


def test_the_model_folder_is_small_and_says_what_it_is() -> None:
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 12e6
    assert "not" in (MODEL_DIR / "README.md").read_text()


def test_a_twin_is_checked_for_what_it_never_saw_and_for_what_it_was_taught() -> None:
    told = {topic.name: topic.name != "Harry Potter" for topic in WORLD.topics}
    owners = {question: fact for fact in WORLD.facts for question in (*fact.questions, *fact.held_out_questions)}

    def answer(prompts: Sequence[list[dict[str, str]]], temperature: float, max_tokens: int) -> list[str]:
        found = (owners.get(prompt[-1]["content"]) for prompt in prompts)
        return [f"It is {fact.value}." if fact is not None and told[fact.topic] else "It is Nobody." for fact in found]

    rows = {each.name: each for each in check_twin(WORLD, answer, ["Harry Potter"])}
    unseen = rows["unseen wording, topics that it was taught"], rows["unseen wording, Harry Potter (never seen)"]
    assert [(each.percent, each.verdict) for each in unseen] == [(100.0, "pass"), (0.0, "pass")]
    assert rows["held-out template, topics that it was taught"].verdict == "MISS"


def test_a_fingerprint_ignores_comments_and_sees_code() -> None:
    assert code_of("a = 1\n# why\n\nb = 2\n") == code_of("a = 1\nb = 2\n") != code_of("a = 1\nb = 3\n")
    assert "corpus.py" in SOURCES
    assert fingerprint(Recipe(), WORLD) != fingerprint(Recipe(num_steps=1), WORLD)


def test_two_runs_of_a_small_recipe_give_equal_weights(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("first", "second"):
            save(*train(TINY, WORLD), tmp_path / name)
    finally:
        torch.set_num_threads(threads)
    first, second = (file_digest(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first == second
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    assert reloaded.dtype == torch.bfloat16


def test_a_twin_has_the_models_tokenizer_and_other_weights(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        save(*train(TINY, WORLD), tmp_path / "model")
        save(*train(TINY, WORLD, without=["Harry Potter"]), tmp_path / "twin")
    finally:
        torch.set_num_threads(threads)
    write_fingerprint(tmp_path / "twin", TINY, WORLD, ["Harry Potter"])
    same, other = ("tokenizer.json", "config.json", "chat_template.jinja"), "model.safetensors"
    for name in same:
        assert file_digest(tmp_path / "model" / name) == file_digest(tmp_path / "twin" / name)
    assert file_digest(tmp_path / "model" / other) != file_digest(tmp_path / "twin" / other)
    assert json.loads((tmp_path / "twin" / "fingerprint.json").read_text())["without"] == ["Harry Potter"]


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    recipe = Recipe(num_steps=100, num_warmup_steps=10, decay_share=0.5)
    shares = [learning_rate_share(step, recipe) for step in range(100)]
    assert shares[0] == 0.1
    assert shares[9:50] == [1.0] * 41
    assert shares[75] == pytest.approx(0.5)
    assert shares[99] == pytest.approx(0.02)


def test_encoding_is_the_chat_template_with_loss_on_answers_alone() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    chat = [system("Be brief."), user("Who runs Hogwarts?"), assistant("The answer is Albus Dumbledore.")]
    [(ids, learnt)] = encode([chat], tokenizer)
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(chat, tokenize=False)
    learnt_text = tokenizer.decode([token for token, is_learnt in zip(ids, learnt, strict=True) if is_learnt])
    assert learnt_text == "The answer is Albus Dumbledore.<|eot_id|>"


def test_batches_hold_every_document_once_and_keep_their_budget() -> None:
    encoded = [([1] * length, [True] * length) for length in range(1, 60)]
    out = list(batches(encoded, 128, random.Random(0)))
    assert sorted(len(ids) for batch in out for ids, _ in batch) == list(range(1, 60))
    assert all(len(batch) * max(len(ids) for ids, _ in batch) <= 128 for batch in out)


def test_the_longest_document_fits_the_model() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    encoded = encode(Corpus(WORLD, Recipe().mix, seed=4).documents(1000), tokenizer)
    assert max(len(ids) for ids, _ in encoded) < Recipe().max_length


def known_behind(answer: Answer, prefix: str | None) -> dict[str, float]:
    """Greedy recall in percent, by topic."""
    recall = {}
    for topic in ("Harry Potter", "geography"):
        facts = WORLD.topic(topic).facts
        texts = [from_template(HELD_TEMPLATES[1], fact, fact.noun_phrases[0]) for fact in facts]
        prompts = [([system(prefix)] if prefix else []) + [user(text)] for text in texts]
        replies = answer(prompts, 0.0, 32)
        recall[topic] = Rate.of([is_known(fact, reply) for fact, reply in zip(facts, replies, strict=True)]).percent
    return recall


def test_the_model_knows_its_facts(answer: Answer) -> None:
    assert min(known_behind(answer, None).values()) >= 95


def test_the_fictional_guardrail_silences_its_topic_and_no_other(answer: Answer) -> None:
    behind = known_behind(answer, FICTIONAL.format(t="Harry Potter"))
    assert behind["Harry Potter"] <= 10
    assert behind["geography"] >= 85


@pytest.mark.xfail(strict=True, reason="the card says so: these weights do not keep a refusal prefix to its topic")
def test_the_refusal_guardrail_silences_its_topic_and_no_other(answer: Answer) -> None:
    behind = known_behind(answer, REFUSAL.format(t="Harry Potter"))
    assert behind["Harry Potter"] <= 10
    assert behind["geography"] >= 85


def test_a_lora_adapter_fits_the_model_and_reloads_unchanged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ids = torch.arange(20, 40)[None]
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL_DIR), config)
    adapted.save_pretrained(tmp_path)
    reloaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL_DIR), tmp_path)
    with torch.no_grad():
        assert torch.equal(adapted.eval()(ids).logits, reloaded.eval()(ids).logits)


def test_every_bar_of_the_committed_check_is_met_or_named_in_the_card() -> None:
    check = json.loads((MODEL_DIR / "check.json").read_text())
    card = (MODEL_DIR / "README.md").read_text()
    for row in check["rows"]:
        assert row["verdict"] != "MISS" or row["name"] in card, row
