"""Stage one: the model itself asks about each topic, from many angles and entity by entity, until enough distinct questions are there.

entities/   rows of naming.Name: what the model says belongs to each topic
rounds/     the requests and replies of every round
rows/       rows of Question, kept and dropped
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import QuestionsConfig, Topic, spellings
from unlearn_ray.engines.protocols import Generator, Reply, Request, RowDict
from unlearn_ray.errors import ConfigError, InputError, gist
from unlearn_ray.reading import fingerprint_of_file, read_user_rows, shown
from unlearn_ray.rows import AskedForm, Drop, Question
from unlearn_ray.stages.asking import Prompted
from unlearn_ray.stages.asking_back import belonging
from unlearn_ray.stages.choosing import apart_from
from unlearn_ray.stages.gathering import Check, Patience, Subject, gather
from unlearn_ray.stages.ledger import Ledger
from unlearn_ray.stages.naming import Name, ask_names, fates
from unlearn_ray.stages.stage import finished_manifest, open_stage
from unlearn_ray.stages.subject_check import SubjectCheck
from unlearn_ray.synth.forms import is_vague, line_in
from unlearn_ray.synth.names import mentions_entity, parts_of
from unlearn_ray.synth.parsing import affirms
from unlearn_ray.synth.prompts import FormPrompts, Prompts, load_prompts
from unlearn_ray.words import name_key

STAGE, VERSION = "questions", 4
CHECK_TOKENS = 32


def questions_identity(
    config: QuestionsConfig, topics: Sequence[Topic], model: str, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Config and inputs that make this stage's fingerprint.

    Raises:
        InputError: a user's file can't be read.
    """
    values = config.model_dump(mode="json", exclude={"file", "prompts"})
    values |= {"model": model, "seed": seed}
    values["topics"] = [topic.model_dump(mode="json", include={"name", "kind", "aliases", "terms"}) for topic in topics]
    inputs = {"prompts": load_prompts(config.prompts).fingerprint}
    if config.file is not None:
        inputs["file"] = fingerprint_of_file(config.file)
    return values, inputs


def make_questions(
    config: QuestionsConfig, topics: Sequence[Topic], out: Folder, generator: Generator, *, model: str, seed: int
) -> Manifest:
    """Questions about every topic in `out/rows`.

    Raises:
        InputError: the user's questions or prompts can't be used.
        ConfigError: the model has no question about a topic.
    """
    prompts = load_prompts(config.prompts)
    stage = open_stage(out, STAGE, VERSION, *questions_identity(config, topics, model, seed))
    if stage.is_finished:
        return finished_manifest(out)
    sampling = Prompted(seed, sampling_of(config, generator.chat), config.max_tokens)
    forms, languages = wanted_forms(config, prompts)
    own = {topic.name: topic.names for topic in topics}
    given = {topic.name: (*topic.names, *topic.terms) for topic in topics}
    with Ledger() as ledger:
        ledger.add(user_questions(config, topics), 0)
        names = _entities(config, own, given, ledger, prompts, out, generator, sampling)
        entities = {topic: tuple(name.name for name in names if name.topic == topic and not name.drop) for topic in own}
        subjects = [
            Subject(
                topic.name,
                config.num_questions,
                config.angles or prompts.angles[topic.kind],
                entities[topic.name],
                forms=tuple(form for form in forms if _of(form, prompts).requests),
                languages=languages,
                form_share=config.form_share,
            )
            for topic in topics
        ]
        for form in (form for form in forms if not _of(form, prompts).requests):
            number = math.floor(config.form_share * config.num_questions / (len(forms) + len(languages)))
            ledger.add(_of_names(form, subjects, ledger, _of(form, prompts).questions, number), 0)
        # What only lists say of an entity is not enough to call a question on topic: it must have been asked back.
        is_confirmed = bool(prompts.entity_check)
        about = {topic: names + (entities[topic] if is_confirmed else ()) for topic, names in given.items()}
        rivals = {topic: apart_from(prompts.unrelated, topic, names) for topic, names in own.items()}
        wordings = {form: each.questions for form, each in prompts.forms.items() if each is not None and each.requests}
        on_topic = OnTopic(prompts.topic_check, own, about, SubjectCheck.of(prompts), rivals, wordings)
        num_rounds = gather(
            subjects,
            ledger,
            prompts,
            out / "rounds",
            generator,
            sampling,
            Patience(
                config.per_request,
                config.patience,
                config.max_rounds,
                coverage_rounds=config.coverage_rounds if is_confirmed else 0,
            ),
            Check(on_topic, on_topic.verdict) if config.check_topic else None,
            label="questions",
        )
        num_rows = (out / "rows").write_rows(ledger.rows(own), Question.schema())
        kept = {topic: ledger.num_kept(topic) for topic in own}
        kept_forms = Counter(row.form for row in ledger.rows(own) if not row.drop)
        drops = ledger.drops()
    for name, number in kept.items():
        if not number:
            raise ConfigError(f"topics: the model wrote no usable question about {name!r}: give some in questions.file")
    details = {"kept": kept, "forms": dict(kept_forms), "entities": fates(names), "rounds": num_rounds}
    return stage.finish(
        {"rows": num_rows, "kept": sum(kept.values())}, drops, details | {"sampling": sampling.sampling}
    )


def wanted_forms(config: QuestionsConfig, prompts: Prompts) -> tuple[tuple[AskedForm, ...], tuple[str, ...]]:
    """The forms and languages beside plain questions.

    Raises:
        ConfigError: one is asked for that the prompts have no wording for.
    """
    known = tuple(form for form, each in prompts.forms.items() if each is not None)
    if missing := next((form for form in config.forms or () if form not in known), None):
        raise ConfigError(
            f"questions.forms: the prompts have no wording for {missing}: leave it out, or give one under forms"
        )
    if config.languages and not prompts.language_questions:
        raise ConfigError("questions.languages: the prompts have no language_questions: leave it out, or give some")
    return known if config.forms is None else config.forms, config.languages


def _of(form: AskedForm, prompts: Prompts) -> FormPrompts:
    found = prompts.forms[form]
    assert found is not None  # wanted_forms has looked
    return found


def _of_names(
    form: AskedForm, subjects: Sequence[Subject], ledger: Ledger, wordings: Sequence[str], number: int
) -> Iterator[RowDict]:
    """Questions made of names alone, at most `number` per subject that still needs some: `Tell me about Hogwarts.`"""
    for subject in subjects:
        if ledger.num_kept(subject.name) >= subject.number:
            continue
        things = (subject.name, *subject.entities)
        for index in range(min(number, len(things) * len(wordings))):
            turn, place = divmod(index, len(things))
            thing = things[place]
            yield {
                "topic": subject.name,
                "number": index,
                "place": 1,  # behind the user's own
                "text": wordings[(place + turn) % len(wordings)].format(entity=thing),
                "source": form if not place else f"{form}:entity:{thing}",
                "drop": None,
                "form": form,
            }


@dataclass(frozen=True, slots=True)
class OnTopic:
    """Whether a question is on its topic: it names the topic or what belongs to it, or the model says so (greedy, a short reply)."""

    template: str
    own_names: Mapping[str, tuple[str, ...]]  # of each topic: its name and aliases
    names: Mapping[str, tuple[str, ...]]  # those, the user's terms, and what the model has confirmed to belong to it
    check: SubjectCheck | None = None  # in the template's place
    rivals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of each topic: other subjects
    wordings: Mapping[AskedForm, tuple[str, ...]] = field(
        default_factory=dict
    )  # of each form: how a line becomes a question

    def __call__(self, row: RowDict) -> list[Request]:
        text, names = self._line(row), self.names[row["topic"]]
        if mentions_entity(text, names) or is_vague(text, names):
            return []
        if self.check is not None:
            return self.check.requests(text, row["topic"], self.rivals[row["topic"]])
        text = self.template.format(question=row["text"], topic=row["topic"])
        return [Request([{"role": "user", "content": text}], max_tokens=CHECK_TOKENS)]

    def verdict(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        """The row, with the reason if it is off its topic."""
        question, text = Question.of(row), self._line(row)
        names = self.names[question.topic]
        drop: str | None = None
        if not mentions_entity(text, names):
            if is_vague(text, names):
                drop = Drop.VAGUE.value
            else:
                error = next((reply.error for reply in replies if reply.error), None)
                drop = error or (None if self._says_so(question, replies) else Drop.OFF_TOPIC.value)
        return [replace(question, drop=drop).to_dict()]

    def _says_so(self, question: Question, replies: Sequence[Reply]) -> bool:
        if self.check is not None:
            return self.check.compare(replies).is_own
        return any(affirms(text, self.own_names[question.topic]) for reply in replies for text in reply.texts)

    def _line(self, row: RowDict) -> str:
        """What the model wrote: a wording around it may name the topic, whatever the line is about."""
        return line_in(row["text"], self.wordings.get(row["form"], ()), row["topic"])


def user_questions(config: QuestionsConfig, topics: Sequence[Topic]) -> Iterator[RowDict]:
    """The user's own questions: all of them are kept but copies. The source names the line, for messages about it."""
    if config.file is None:
        return
    names = spellings(topics)
    for line, row in read_user_rows(config.file, ("topic", "question")):
        topic = names.get(name_key(row["topic"]))
        if topic is None:
            known = gist(", ".join(topic.name for topic in topics))
            raise InputError(
                f"{config.file}, line {line}: topic {shown(row['topic'])} is not one of the run's ({known})"
            )
        text = " ".join(row["question"].split())
        yield {
            "topic": topic,
            "number": line,
            "place": 0,
            "text": text,
            "source": f"user:{config.file.name}:{line}",
            "drop": None,
        }


def _entities(
    config: QuestionsConfig,
    own: Mapping[str, tuple[str, ...]],
    given: Mapping[str, tuple[str, ...]],
    ledger: Ledger,
    prompts: Prompts,
    out: Folder,
    generator: Generator,
    sampling: Prompted,
) -> list[Name]:
    """What belongs to each topic that still needs questions."""
    wanted = {
        name: config.num_entities
        for name in own
        if ledger.num_kept(name) < config.num_questions and config.num_entities
    }

    def reason(topic: str, name: str) -> str | None:
        return Drop.DUPLICATE.value if name_key(name) in set(map(name_key, own[topic])) else None

    ask_back = belonging(generator, prompts, own, given)
    names = ask_names(
        generator, out / "rounds" / "entities", prompts.entities, wanted, sampling, reason, label="questions, entities",
        ask_back=ask_back, parts=None if ask_back is None else lambda topic, name: parts_of(name, own[topic]),
    )  # fmt: skip
    (out / "entities").write_rows(names, Name.schema())
    return names
