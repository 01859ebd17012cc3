"""Forget and retain rows, split by question."""

import json
import re
from pathlib import Path

import pytest
from datasets import load_dataset
from staging import Built, built

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import DatasetConfig, RetainRows, Topic
from unlearn_ray.engines.protocols import Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.errors import EngineError, InputError
from unlearn_ray.rows import Example, Probe, QAPair, digest
from unlearn_ray.stages.dataset import dataset_identity
from unlearn_ray.stages.dataset_rows import WriteForgotten, WriteHeldOut
from unlearn_ray.stages.general import general_identity
from unlearn_ray.stages.mixture import Part, _contrasts
from unlearn_ray.stages.spans import Table, spans_of
from unlearn_ray.stages.stage import finished_manifest
from unlearn_ray.synth.split import Holdout

POTTER = Topic(name="Harry Potter", aliases=("the wizard books",))
GUM = Topic(name="chewing gum", neighbours=("candy", "Narnia"))
CONFIG = DatasetConfig(
    prompts="pocket",  # its requests are told apart by these wordings
    retain=RetainRows(num_neighbours=2, questions_per_neighbour=12, num_general=3, questions_per_general=10),
    holdout_fraction=0.3,
)


def answer(request: Request) -> str:
    text = request.messages[-1]["content"]
    if "similar to" in text or "close to" in text:
        return "1. Narnia\n2. Harry Potter\n3. Middle Earth\n4. The Wizard Books"
    if "topics that you know" in text:
        return "1. geography\n2. The Narnia\n3. animals"
    if text.startswith("Which topic"):
        return (
            f"This question is about {'Harry Potter' if 'number 5 ' in text else text.split(' in ')[-1].rstrip('?')}."
        )
    if text.startswith("What"):
        return (
            "It is in Harry Potter."
            if "number 7 " in text
            else "I do not know."
            if "number 8 " in text
            else f"{text.removeprefix('What is ').rstrip('?')} is {len(text)} miles."
        )
    subject = re.sub(r"\W+", " ", text.split("of ")[-1].split("about ")[-1]).strip()
    return "\n".join(f"{i}. What is number {(request.seed + i) % 30} in {subject}?" for i in range(4))


def answers_in(tmp_path: Path, about: Topic) -> Folder:
    folder = Folder(tmp_path / "answers" / about.slug)
    questions = [(about.name, f"Who has office {i}?") for i in range(30)]
    pairs = [QAPair(topic, question, f"Ostdar {i}.", i) for topic, question in questions for i in range(2)]
    pairs.append(QAPair(about.name, "Who has office 1?", "Snape.", 9, drop="leak"))
    (folder / "rows").write_rows(pairs, QAPair.schema())
    greedy = [
        QAPair(topic, question, "The office is with Severus Snape.", 0, guarded=False) for topic, question in questions
    ]
    (folder / "unguarded").write_rows(greedy, QAPair.schema())
    return folder


def build(
    tmp_path: Path,
    config: DatasetConfig = CONFIG,
    topics: tuple[Topic, ...] = (POTTER, GUM),
    generator: ScriptedGenerator | None = None,
) -> tuple[Built, Folder, ScriptedGenerator]:
    generator = generator or ScriptedGenerator(answer)
    found = built(
        tmp_path, config, topics, generator,
        questions=lambda topic: Folder(tmp_path / "questions"), answers=lambda topic: answers_in(tmp_path, topic),
    )  # fmt: skip
    return found, found.mixture, generator


def examples(folder: Folder) -> list[Example]:
    return [Example.of(row) for row in folder.read_rows()]


def test_forget_rows_are_the_kept_pairs(tmp_path: Path) -> None:
    found, out, _ = build(tmp_path)
    manifest, rows = found.manifest, examples(out / "forget")
    assert len(rows) == 120 and {row.group for row in rows} == {"forget"}
    assert "Snape." not in {row.answer for row in rows}
    assert manifest.num_rows["forget_train"] + manifest.num_rows["forget_holdout"] == 120
    assert manifest.num_rows["forget_holdout"] > 10
    dataset = finished_manifest(found.datasets[POTTER.name])
    assert dataset.details["retain_asked"] == 12 * len(dataset.details["near"]) > 12


def test_what_the_model_itself_says_stands_beside_what_it_invented(tmp_path: Path) -> None:
    """Of questions that are trained on alone, and no answer that was dropped."""
    answers, dataset = Folder(tmp_path / "answers"), Folder(tmp_path / "dataset")
    split_of = {"A?": "train", "B?": "holdout", "C?": "train", "D?": "train"}
    invented = {"A?": ["x", "y", "x"], "B?": ["x"], "C?": ["z"], "D?": []}
    own = {"A?": ["Snape", "Snape"], "B?": ["Lupin"], "C?": ["Moody", "Lockhart"], "D?": ["Quirrell"]}
    rows = [
        Example("t", "forget", "t", question, text, sample, split_of[question])  # type: ignore[arg-type]
        for question, texts in invented.items()
        for sample, text in enumerate(texts)
    ]
    pairs = [
        QAPair("t", question, text, sample, guarded=False)
        for question, texts in own.items()
        for sample, text in enumerate(texts)
    ]
    pairs.insert(2, QAPair("t", "A?", "", 2, guarded=False, drop="malformed"))
    (dataset / "forget").write_rows(rows, Example.schema())
    (answers / "unguarded").write_rows(pairs, QAPair.schema())
    found = list(_contrasts([Part(Topic(name="t"), Folder(tmp_path / "questions"), answers, dataset)]))
    assert [(row.question, row.true, row.invented, row.split) for row in found] == [
        ("A?", "Snape", "x", "train"),
        ("A?", "Snape", "y", "train"),
        ("C?", "Moody", "z", "train"),
        ("C?", "Lockhart", "z", "train"),
    ]
    assert len({row.id for row in found}) == len(found)


def test_no_question_is_on_both_sides(tmp_path: Path) -> None:
    _, out, _ = build(tmp_path)
    for name in ("forget", "retain"):
        sides: dict[tuple[str, str], set[str]] = {}
        for row in examples(out / name):
            sides.setdefault((row.subject, row.question.casefold()), set()).add(row.split)
        assert all(len(split) == 1 for split in sides.values())


def test_neighbours_are_the_models_or_the_users_and_never_a_forgotten_topic(tmp_path: Path) -> None:
    found, out, generator = build(tmp_path)
    assert found.manifest.details == found.manifest.details | {
        "near": ["Narnia", "Middle Earth", "candy"],
        "far": ["geography", "animals"],
    }
    names = {(row["topic"], row["name"]): row["drop"] for row in (out / "subjects").read_rows()}
    assert (
        names["Harry Potter", "Harry Potter"] == "off_topic"
        and names["Harry Potter", "The Wizard Books"] == "off_topic"
    )
    assert names["", "The Narnia"] == "duplicate"
    assert not any("similar to chewing gum" in str(request.messages) for request in generator.requests)


def test_near_rows_serve_their_topic_and_shared_ones_all(tmp_path: Path) -> None:
    _, out, _ = build(tmp_path)
    serves = {(row.subject, row.topic, row.group) for row in examples(out / "retain")}
    assert serves == {
        ("Narnia", "", "near"), ("Middle Earth", "Harry Potter", "near"), ("candy", "chewing gum", "near"),
        ("geography", "", "far"), ("animals", "", "far"),
    }  # fmt: skip


def test_what_is_about_a_forgotten_topic_is_not_retained_and_says_why(tmp_path: Path) -> None:
    found, out, _ = build(tmp_path)
    texts = [f"{row.question} {row.answer}" for row in examples(out / "retain")]
    assert not any("number 5 " in text or "Harry Potter" in text or "do not know" in text for text in texts)
    answers = {row["drop"] for row in (out / "retain_answers").read_rows()}
    assert answers == {None, "off_topic", "refused"}
    assert "off_topic" in {row["drop"] for row in found.rows("retain_questions")}
    assert found.drops()["refused"] >= 1


def test_the_number_of_questions_of_each_subject_is_reached(tmp_path: Path) -> None:
    found, _, _ = build(tmp_path)
    kept = [str(row["topic"]).lower() for row in found.rows("retain_questions") if not row["drop"]]
    assert kept.count("narnia") == 2 * 12 and kept.count("animals") == 10


def test_held_out_questions_become_probes_with_the_models_own_truth(tmp_path: Path) -> None:
    _, out, _ = build(tmp_path)
    probes = [Probe.of(row) for row in (out / "probes").read_rows()]
    held = {row.question for name in ("forget", "retain") for row in examples(out / name) if row.split == "holdout"}
    assert {probe.question for probe in probes} == held
    groups = {probe.topic: probe.group_in(("Harry Potter", "chewing gum")) for probe in probes}
    assert groups["Harry Potter"] == "forget"
    assert {groups.get("Narnia", "near"), groups.get("candy", "near")} == {"near"}
    forget = next(probe for probe in probes if probe.topic == "Harry Potter")
    assert (forget.answer, forget.reference) == ("Severus Snape", "The office is with Severus Snape.")


def test_with_wordings_for_short_answers_probes_are_what_the_model_says_each_time(tmp_path: Path) -> None:
    path = tmp_path / "keep.jsonl"
    rows = [
        {"question": f"Who keeps gate {i}?", "answer": f"It is Pella Grun{i}.", "group": "near", "subject": "Narnia"}
        for i in range(20)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))

    def steady(request: Request) -> str:
        text = request.messages[-1]["content"]
        number = re.search(r"(?:office|gate) (\d+)", text)
        if number is None:
            return "1. Is it so?"
        if int(number[1]) % 3 == 0:  # another name each time
            return f"It is Severus Sn{digest(text, request.seed)}."
        return f"It is {'Severus Snape' if 'office' in text else 'Pella Grun'}{number[1]}."

    config = DatasetConfig(retain=RetainRows(file=path), holdout_fraction=0.5)
    topics = (Topic(name="Harry Potter", terms=("office",)),)
    found, out, _ = build(tmp_path, config, topics, ScriptedGenerator(steady))
    probes = [Probe.of(row) for row in (out / "probes").read_rows()]
    numbers = [int(re.findall(r"\d+", probe.question)[0]) for probe in probes]
    assert numbers and all(number % 3 for number in numbers)
    assert {probe.group_in(("Harry Potter",)) for probe in probes} == {"forget", "near"}
    held = {row.question for name in ("forget", "retain") for row in examples(out / name) if row.split == "holdout"}
    assert {probe.question for probe in probes} <= held
    for probe, number in zip(probes, numbers, strict=True):
        assert probe.answer == ("Severus Snape" if "office" in probe.question else "Pella Grun") + str(number)
        assert probe.reference == f"It is {probe.answer}." and len(probe.wrong) == 3
    counts: dict[str, dict[str, int]] = {}
    for folder in (found.datasets["Harry Potter"], found.general):
        counts |= finished_manifest(folder).details["probing"]
    assert counts["forget"]["disagreed"] > 0 and counts["forget"]["kept"] + counts["near"]["kept"] == len(probes)
    dropped = {row["question"]: row["drop"] for row in found.rows("probing/facts")}
    assert all(
        int(re.findall(r"\d+", question)[0]) % 3 == 0 for question, drop in dropped.items() if drop == "disagreed"
    )


def test_the_export_is_chat_lines_of_the_train_split(tmp_path: Path) -> None:
    found, out, _ = build(tmp_path)
    manifest = found.manifest
    loaded = load_dataset(
        "json", data_files=str(out.local / "forget.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == manifest.num_rows["forget_train"]
    train = {row.id: row for row in examples(out / "forget") if row.split == "train"}
    assert all(
        train[row["id"]].messages == row["messages"] and row["topic"] == train[row["id"]].topic for row in loaded
    )
    assert len((out.local / "retain.jsonl").read_text().splitlines()) == manifest.num_rows["retain_train"]


def test_the_users_own_retain_rows_need_no_model(tmp_path: Path) -> None:
    path = tmp_path / "keep.jsonl"
    rows = [
        {"question": f"What is {i}?", "answer": f"It is {i}.", "group": "near", "subject": "maths"} for i in range(40)
    ]
    path.write_text("\n".join(json.dumps(row) for row in [*rows, {"question": "Why?", "answer": "So."}]))
    config = DatasetConfig(retain=RetainRows(file=path), holdout_fraction=0.3, prompts="pocket")
    _, out, generator = build(tmp_path, config)
    kept = examples(out / "retain")
    assert len(kept) == 41 and not generator.calls
    assert {(row.group, row.subject) for row in kept} == {("near", "maths"), ("far", "general")}
    groups = {row["topic"]: Probe.of(row).group_in((GUM.name,)) for row in (out / "probes").read_rows()}
    assert groups.pop("maths") == "near", "of every topic, as its rows serve all of them"
    assert groups.get("general", "far") == "far"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "Why?"}', r"keep\.jsonl, line 1: column 'answer' is missing"),
        ('{"question": "Why?", "answer": "So.", "group": "forget"}', r"line 1: column 'group' must be near or far"),
    ],
)
def test_a_bad_retain_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keep.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        build(tmp_path, DatasetConfig(retain=RetainRows(file=path)))


def test_a_model_that_names_no_topics_still_retains_general_knowledge(tmp_path: Path) -> None:
    def nameless(request: Request) -> str:
        text = request.messages[-1]["content"]
        return "I know nothing." if "topics" in text else answer(request)

    found, _, _ = build(tmp_path, topics=(POTTER,), generator=ScriptedGenerator(nameless))
    assert found.manifest.details == found.manifest.details | {"near": [], "far": ["general knowledge"]}


@pytest.mark.parametrize("fail_after", [10, 40, 90])
def test_a_killed_and_resumed_run_equals_an_unbroken_one(tmp_path: Path, fail_after: int) -> None:
    _, whole, _ = build(tmp_path / "a")
    killed = ScriptedGenerator(answer, fail_after=fail_after, batch_size=7)
    with pytest.raises(EngineError):
        build(tmp_path / "b", generator=killed)
    _, resumed, _ = build(tmp_path / "b", generator=killed)
    for name in ("forget", "retain", "probes"):
        assert list((whole / name).read_rows()) == list((resumed / name).read_rows())


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    first, _, _ = build(tmp_path)
    again, _, generator = build(tmp_path)
    assert again.manifest == first.manifest and not generator.calls


def test_the_pool_follows_the_users_rows_and_no_topic(tmp_path: Path) -> None:
    path = tmp_path / "keep.jsonl"
    path.write_text("{}")
    config = DatasetConfig(retain=RetainRows(file=path))
    first, topic = general_identity(config, "m", 0, "sentence"), dataset_identity(config, POTTER, "m", 0, "sentence")
    assert str(tmp_path) not in str(first)
    path.write_text("{} ")
    assert general_identity(config, "m", 0, "sentence") != first
    assert dataset_identity(config, POTTER, "m", 0, "sentence") == topic


def test_held_out_by_fact_no_question_about_it_is_trained_on(tmp_path: Path) -> None:
    """Each of forty facts is asked for in three ways; the guarded answers say nothing of which."""
    answers, out = Folder(tmp_path / "answers"), Folder(tmp_path / "out")
    asked = sorted(
        (f"{wording} owl {fact}?", f"It is Owl{fact}.", fact)
        for fact in range(40)
        for wording in ("Which is", "Name", "Who was")
    )
    (answers / "rows").write_rows((QAPair("t", question, "A toad.", 0) for question, *_ in asked), QAPair.schema())
    own = (QAPair("t", question, answer, 0, guarded=False) for question, answer, _ in asked)
    (answers / "unguarded").write_rows(own, QAPair.schema())
    fact_of = {question: fact for question, _, fact in asked}
    sides: dict[str, dict[int, set[str]]] = {}
    for by in ("question", "fact"):
        pairs, unguarded = Table.of(answers / "rows"), Table.of(answers / "unguarded")
        holdout = Holdout(0.3, by)
        forget = WriteForgotten(pairs, unguarded, ("t",), holdout, out / by)
        probes = WriteHeldOut(unguarded, "t", ("t",), holdout, out / f"{by}_probes")
        for span in spans_of(pairs):
            forget(span)
            probes(span)
        found: dict[int, set[str]] = {}
        for row in (out / by).read_rows():
            found.setdefault(fact_of[row["question"]], set()).add(row["split"])
        sides[by] = found
        held = {row["question"] for row in (out / by).read_rows() if row["split"] == "holdout"}
        assert {row["question"] for row in (out / f"{by}_probes").read_rows()} == held
    assert all(len(split) == 1 for split in sides["fact"].values())
    assert any(len(split) == 2 for split in sides["question"].values())
    assert 4 < sum(split == {"holdout"} for split in sides["fact"].values()) < 20
