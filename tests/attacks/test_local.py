"""A model under attack in this process: batches change nothing, and an adapter is merged."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attacked import BASE, TOPIC, probes_of, rows_of, setup_on
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from unlearn_ray.attacks.attack import Target
from unlearn_ray.attacks.local import Local, chosen, load, passes
from unlearn_ray.config import ChatConfig
from unlearn_ray.evals.metrics import fact_recall
from unlearn_ray.evals.probes import wrong_references

PROBES = probes_of(TOPIC, 6)


@pytest.fixture(scope="module")
def base() -> Local:
    return load(BASE, setup_on(BASE))


def test_answers_of_a_batch_are_those_of_each_question_alone(base: Local) -> None:
    questions = [each.probe.question for each in PROBES]
    alone = []
    for question in questions:
        ids = base.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).input_ids
        output = base.module.generate(ids, max_new_tokens=24, do_sample=False)
        alone.append(base.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    assert base.answers(questions) == alone
    recalled = base.recall(PROBES)
    for each, answer in zip(PROBES, alone, strict=True):
        assert recalled[each.probe.id] == fact_recall(answer, (each.probe.answer, *each.probe.aliases))


def test_a_model_is_talked_to_as_the_run_does_with_room_for_its_answers() -> None:
    said = ChatConfig(prefix="user", template_arguments={"enable_thinking": False})
    found = load(BASE, replace(setup_on(BASE), chat=said, max_tokens=2))
    assert found.chat.prefix_role == "user" and dict(found.chat.template_arguments) == {"enable_thinking": False}
    (answer,) = found.answers([PROBES[0].probe.question])
    assert 0 < len(found.tokenizer(answer, add_special_tokens=False).input_ids) <= 2


def test_choice_is_that_of_each_answer_scored_alone_by_the_library(base: Local) -> None:
    def mean_logp(question: str, answer: str) -> float:
        [row] = base.encode([(question, answer)])
        assert row is not None
        ids = torch.tensor([row.ids])
        labels = ids.clone()
        labels[0, : row.start] = -100
        with torch.no_grad():
            return -float(base.module(input_ids=ids, labels=labels).loss)

    for each, value in zip(PROBES, base.choice(PROBES).values(), strict=True):
        right, *wrong = (
            mean_logp(each.probe.question, text) for text in (each.probe.reference, *wrong_references(each.probe))
        )
        assert value == float(all(right > other for other in wrong))


def test_an_adapter_is_merged_into_the_weights(base: Local, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE.path, dtype=torch.float32), config).eval()
    adapted.save_pretrained(tmp_path)
    merged = load(Target("unlearned", BASE.path, str(tmp_path)), setup_on(BASE))
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        expected, found, plain = (module(ids).logits for module in (adapted, merged.module, base.module))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(found, plain, atol=0.1)
    assert not any("lora" in name for name, _ in merged.module.named_parameters())


def test_a_cap_takes_a_wording_of_each_fact_before_a_second_one() -> None:
    first = probes_of(TOPIC, 5)
    second = [replace(each, probe=replace(each.probe, question=f"And: {each.probe.question}")) for each in first]
    kept = chosen([*first, *second], 6)
    assert len({each.probe.fact_id for each in kept}) == 5
    assert kept == chosen([*second, *first], 6)
    assert len(chosen([*first, *second], None)) == len(chosen([*first, *second], 10)) == 10


def test_passes_hold_every_row_once() -> None:
    assert sorted(number for taken in passes([5, 1, 9, 3, 2], 2) for number in taken) == [0, 1, 2, 3, 4]
    assert list(passes([], 2)) == []


def test_a_pair_of_question_and_answer_is_encoded_as_in_training(base: Local) -> None:
    [row] = base.encode(rows_of(PROBES[:1]))
    assert row is not None
    assert base.tokenizer.decode(row.ids[row.start :]) == PROBES[0].probe.reference + base.chat.end_of_turn
