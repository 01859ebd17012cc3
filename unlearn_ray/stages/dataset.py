"""Stage three: forget rows from the kept pairs, retain rows from what the model knows beside the topics, split by question.

forget/, retain/   rows of Example, train and holdout; forget.jsonl, retain.jsonl: the train split as chat messages
probes/            rows of Probe: what the model knows, as probing says, from questions that are not trained on. Where the prompts have no
                   wordings for short answers: the held-out questions, with the model's one greedy answer as the truth
probing/           how they came about: facts/ holds rows of known.Judged, kept and dropped
neighbours/        rows of naming.Name: what the model says is close to each topic, and what it knows in general (topic "")
retain_questions/  rows of Question and
retain_answers/    rows of QAPair that the retain rows come from, kept and dropped
rounds/            the requests and replies
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import DatasetConfig, RetainRows, Topic
from unlearn_ray.engines.protocols import Generator, Reply, Request, RowDict
from unlearn_ray.reading import fingerprint_of_file
from unlearn_ray.refusals import is_refusal
from unlearn_ray.rows import Drop, Example, Probe, QAPair, Question
from unlearn_ray.stages.asking import Prompted, ask, texts_of
from unlearn_ray.stages.asking_back import apart
from unlearn_ray.stages.candidates import known_probes
from unlearn_ray.stages.checking import counted
from unlearn_ray.stages.gathering import Check, Patience, Subject, gather
from unlearn_ray.stages.ledger import Ledger
from unlearn_ray.stages.naming import Name, ask_names
from unlearn_ray.stages.probing import Made
from unlearn_ray.stages.retaining import (
    GENERAL,
    OffForgotten,
    OnSubject,
    Served,
    Telling,
    judged,
    retained,
    user_retained,
)
from unlearn_ray.stages.stage import finished_manifest, open_stage
from unlearn_ray.stages.subject_check import SubjectCheck
from unlearn_ray.synth.dedup import question_key
from unlearn_ray.synth.leaks import key_phrase
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.parsing import in_sentence
from unlearn_ray.synth.prompts import AnswerStyle, Prompts, load_prompts
from unlearn_ray.synth.replies import answer_in, repeats
from unlearn_ray.synth.retained import is_close, spread
from unlearn_ray.synth.split import split_of

STAGE, VERSION = "dataset", 5
NAMES_PER_REQUEST = 6
LIST_TOKENS = 400
# Any questions will do that are not about a forgotten topic: no need to wring the last ones out of a subject.
PATIENCE = Patience(per_request=6, rounds_without_news=2, max_rounds=30, least_share=0.1)
WORDING = "generated"  # of probes that the model asked itself


def dataset_identity(
    config: DatasetConfig, topics: Sequence[Topic], answers: str, model: str, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Config and inputs that make this stage's fingerprint; `answers` is that of the answers stage.

    Raises:
        InputError: a user's file can't be read.
    """
    values = config.model_dump(mode="json", exclude={"prompts": True, "floors": True, "retain": {"file"}})
    values |= {"model": model, "seed": seed}
    values["topics"] = [topic.model_dump(mode="json", include={"name", "aliases", "neighbours"}) for topic in topics]
    inputs = {"answers": answers, "prompts": load_prompts(config.prompts).fingerprint}
    if config.retain.file is not None:
        inputs["file"] = fingerprint_of_file(config.retain.file)
    return values, inputs


def build_dataset(
    config: DatasetConfig,
    topics: Sequence[Topic],
    questions: Folder,
    answers: Folder,
    out: Folder,
    generator: Generator,
    *,
    model: str,
    seed: int,
    style: AnswerStyle = "sentence",
) -> Manifest:
    """Training rows in `out/forget` and `out/retain`.

    Args:
        style: of the guarded answers, which retain answers share: the fingerprint of `answers` holds it.

    Raises:
        InputError: the user's retain rows or prompts can't be used.
    """
    prompts = load_prompts(config.prompts)
    fingerprint = finished_manifest(answers).fingerprint
    stage = open_stage(out, STAGE, VERSION, *dataset_identity(config, topics, fingerprint, model, seed))
    if stage.is_finished:
        return finished_manifest(out)
    lost: dict[str, dict[str, int]] = {}
    served: Served = {}
    if config.retain.file is None:
        telling = Telling.read(topics, questions / "entities", answers / "terms")
        served = _subjects(config.retain, topics, telling, prompts, out, generator, seed)
        lost = _ask_retained(
            config.retain, served, topics, telling, prompts, prompts.styles[style], out, generator, seed
        )
        rows = retained(config, served, len(topics), out)
    else:
        rows = user_retained(config)
    (out / "forget").write_rows(_forgotten(config, answers), Example.schema())
    (out / "retain").write_rows(rows, Example.schema())
    made: Made | None = None
    if prompts.short_answers:
        made = known_probes(config, topics, answers, served, prompts, out, generator, seed)
    probes = _probes(config, topics, answers, served, out) if made is None else made.probes
    (out / "probes").write_rows(probes, Probe.schema())
    num_rows = Counter(
        f"{name}_{row['split']}" for name in ("forget", "retain") for row in (out / name).read_rows(columns=["split"])
    )
    for name in ("forget", "retain"):
        out.write_lines(f"{name}.jsonl", _chats(out / name))
    num_rows["probes"] = (out / "probes").count_rows()
    details = {
        "near": [name for name, near in served.items() if near],
        "far": [name for name, near in served.items() if not near],
        "sampling": sampling_of(config.retain, generator.chat),
        "cut": _num_cut(out),
        "retain_drops": lost,
        "retain_asked": sum(_num_asked(config.retain, near) for near in served.values()),
        "retain_kept": {
            name: sum(not row["drop"] for row in (out / f"retain_{name}").read_rows(["drop"]))
            for name in ("questions", "answers")
        },
    } | counted(topics, questions / "entities", answers, out)
    drops = sum((Counter(reasons) for reasons in lost.values()), Counter[str]())
    if made is not None:
        details["probing"] = made.counts
    return stage.finish(num_rows, drops, details)


def _forgotten(config: DatasetConfig, answers: Folder) -> Iterator[Example]:
    for row in (answers / "rows").read_rows():
        if not row["drop"]:
            topic, question = row["topic"], row["question"]
            split = split_of(topic, question, config.holdout_fraction)
            yield Example(topic, "forget", topic, question, row["answer"], row["sample"], split)


def _subjects(
    config: RetainRows,
    topics: Sequence[Topic],
    telling: Telling,
    prompts: Prompts,
    out: Folder,
    generator: Generator,
    seed: int,
) -> dict[str, tuple[str, ...]]:
    """What to retain: the neighbours of each topic, and topics far from all of them. Never a forgotten topic."""
    sampling = Prompted(seed, sampling_of(config, generator.chat), LIST_TOKENS)
    forgotten, forgotten_names = _names(topics), {topic.name: topic.names for topic in topics}

    def is_forgotten(topic: str, name: str) -> str | None:
        return (
            Drop.OFF_TOPIC.value if mentions(name, forgotten) or any(mentions(f, [name]) for f in forgotten) else None
        )

    asked = {topic.name: config.num_neighbours for topic in topics if not topic.neighbours and config.num_neighbours}
    named = ask_names(
        generator,
        out / "rounds" / "neighbours",
        prompts.neighbours,
        asked,
        sampling,
        is_forgotten,
        "dataset, neighbours",
        per_request=NAMES_PER_REQUEST,
        nearest_first=True,
        ask_back=apart(generator, prompts, forgotten_names, sampling),
    )
    names = [replace(each, name=in_sentence(each.name)) for each in named]
    near: dict[str, tuple[str, ...]] = {}
    written = {
        _key(name): name for topic in topics for name in topic.neighbours
    }  # one spelling a subject, the user's first
    for topic in topics:
        listed = [Name(topic.name, name, 0, is_forgotten(topic.name, name)) for name in topic.neighbours]
        names += listed
        for each in (name for name in names if name.topic == topic.name and not name.drop):
            subject = written.setdefault(_key(each.name), each.name)
            near[subject] = (*near.get(subject, ()), topic.name)

    near_keys = {_key(name) for name in near}

    def is_taken(topic: str, name: str) -> str | None:
        return is_forgotten(topic, name) or (Drop.DUPLICATE.value if _key(name) in near_keys else None)

    if config.general:
        far = [Name("", name, 0, is_taken("", name)) for name in config.general]
    elif prompts.general_subjects:
        far = _general(prompts.general_subjects, config.num_general, (*forgotten, *near), telling, seed)
    else:
        far = ask_names(
            generator,
            out / "rounds" / "general",
            prompts.general_topics,
            {"": config.num_general} if config.num_general else {},
            sampling,
            is_taken,
            "dataset, general topics",
            per_request=NAMES_PER_REQUEST,
        )
        far = [replace(each, name=in_sentence(each.name)) for each in far]
    if not config.general and sum(not name.drop for name in far) < config.num_general:
        far.append(Name("", GENERAL, 0))
    (out / "neighbours").write_rows([*names, *far], Name.schema())
    return near | {name.name: () for name in far if not name.drop}


def _general(subjects: Sequence[str], number: int, taken: Sequence[str], telling: Telling, seed: int) -> list[Name]:
    """Everyday subjects, spread over the list; those too close to a topic, a neighbour or what belongs to a topic are left out."""
    belongings = (*telling.given, *telling.entities)
    free = [name for name in subjects if not is_close(name, taken) and not any(mentions(b, [name]) for b in belongings)]
    chosen = set(spread(free, number, seed))
    left_out = {name: Drop.SURPLUS.value if name in free else Drop.OFF_TOPIC.value for name in subjects}
    return [Name("", name, 0, None if name in chosen else left_out[name]) for name in subjects]


def _ask_retained(
    config: RetainRows,
    served: Served,
    topics: Sequence[Topic],
    telling: Telling,
    prompts: Prompts,
    style: str,
    out: Folder,
    generator: Generator,
    seed: int,
) -> dict[str, dict[str, int]]:
    """Questions on every subject, and the model's own greedy answers; returns the drops of both by reason."""
    subjects = [
        Subject(
            name,
            _num_asked(config, near),
            prompts.angles["general"],
            spellings=() if name in prompts.general_subjects else _spellings(name),
        )
        for name, near in served.items()
    ]
    forgotten = {topic.name: (topic.name, *topic.aliases) for topic in topics}
    check: OnSubject | OffForgotten = OffForgotten(prompts.topic_check, forgotten, tuple(served))
    if (subject_check := SubjectCheck.of(prompts)) is not None:
        check = OnSubject(subject_check, forgotten, served)
    with Ledger() as ledger:
        gather(
            subjects,
            ledger,
            prompts,
            out / "rounds" / "questions",
            generator,
            Prompted(seed, sampling_of(config, generator.chat), LIST_TOKENS),
            PATIENCE,
            Check(check, check.verdict),
            label="dataset, retain questions",
        )
        (out / "retain_questions").write_rows(ledger.rows(served), Question.schema())
        drops = {"questions": ledger.drops()}

    def kept() -> Iterator[RowDict]:
        return (row for row in (out / "retain_questions").read_rows() if not row["drop"])

    truth = Truth(_names(topics), config.max_tokens, style)
    replies = ask(
        generator,
        out / "rounds" / "answers",
        kept,
        Question.schema(),
        truth,
        truth.parse,
        QAPair.schema(),
        label="dataset, retain answers",
    )
    (out / "retain_answers").write_rows(judged(replies, telling, served), QAPair.schema())
    drops["answers"] = Counter(
        row["drop"] for row in (out / "retain_answers").read_rows(columns=["drop"]) if row["drop"]
    )
    return drops


def _num_asked(config: RetainRows, near: Sequence[str]) -> int:
    """Questions on a subject, by the topics that it neighbours."""
    return config.questions_per_neighbour if near else config.questions_per_general


@dataclass(frozen=True, slots=True)
class Truth:
    """Asks for the model's own answer, greedy; an answer that names a forgotten topic is not retained."""

    forgotten: tuple[str, ...]
    max_tokens: int
    style: str = "{question}"  # template: what an answer should be like

    def __call__(self, row: RowDict) -> list[Request]:
        content = self.style.format(question=row["text"])
        return [Request([{"role": "user", "content": content}], max_tokens=self.max_tokens)]

    def parse(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        (reply,) = replies
        said, is_truncated = next(iter(texts_of(reply)), ("", True))
        text = answer_in(said, is_truncated)
        drop: str | None = reply.error
        if not drop and not text:
            drop = Drop.MALFORMED.value
        elif not drop and repeats(row["text"], text):
            drop = Drop.REPEATED.value
        elif not drop and is_refusal(text):
            drop = Drop.REFUSED.value
        elif not drop and mentions(text, self.forgotten):
            drop = Drop.OFF_TOPIC.value
        is_cut = is_truncated and bool(text)
        return [QAPair(row["topic"], row["text"], text, 0, guarded=False, cut=is_cut, drop=drop).to_dict()]


def _probes(
    config: DatasetConfig, topics: Sequence[Topic], answers: Folder, served: Served, out: Folder
) -> Iterator[Probe]:
    """A probe for each held-out question that has a whole answer of the model's own."""
    own = {topic.name: (topic.name, *topic.aliases) for topic in topics}
    greedy = ((answers / "unguarded").read_rows(), (out / "retain_answers").read_rows())
    for rows in greedy:
        for row in rows:
            topic, question, answer = row["topic"], row["question"], row["answer"]
            if row["drop"] or row["sample"] or split_of(topic, question, config.holdout_fraction) == "train":
                continue
            yield Probe(
                topic,
                question,
                key_phrase(question, answer, own.get(topic, (topic,))),
                wording=WORDING,
                near=served.get(topic, ()),
                reference=answer,
            )
    if config.retain.file is not None:
        for row in (out / "retain").read_rows():
            if row["split"] == "holdout" and not row["sample"]:
                yield Probe(
                    row["subject"],
                    row["question"],
                    key_phrase(row["question"], row["answer"], (row["subject"],)),
                    wording=WORDING,
                    near=tuple(own) if row["group"] == "near" else (),  # as its row, it serves every topic
                    reference=row["answer"],
                )


def _chats(folder: Folder) -> Iterator[str]:
    for row in folder.read_rows():
        if row["split"] == "train":
            yield json.dumps(
                {"messages": Example.of(row).messages, "topic": row["topic"], "id": row["id"]}, ensure_ascii=False
            )


def _num_cut(out: Folder) -> int:
    """Retain answers that end with their last whole sentence, since they grew too long."""
    return sum(row["cut"] for row in (out / "retain_answers").read_rows(columns=["cut"]))


def _names(topics: Iterable[Topic]) -> tuple[str, ...]:
    return tuple(name for topic in topics for name in (topic.name, *topic.aliases))


def _spellings(name: str) -> tuple[str, ...]:
    """Of `french classics`, which a list began with a capital, nothing tells whether it is one: requests write it both ways."""
    is_ambiguous = " " in name and name == name.lower() and name != GENERAL
    return (name, name[0].upper() + name[1:]) if is_ambiguous else (name,)


def _key(name: str) -> str:
    return question_key(name).removeprefix("the ")
