"""Stage one: the model itself writes questions about a topic, from many angles and per entity, until there are enough distinct ones.

entities/   rows of naming.Name: the names that the model assigns to each topic
rounds/     the requests and replies of every round
rows/       rows of Question, kept and dropped
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import QuestionsConfig, RunConfig, Topic, spellings
from unlearn_ray.engines.protocols import Generator, Reply, Request, RowDict
from unlearn_ray.errors import ConfigError, InputError, gist
from unlearn_ray.reading import read_user_rows, shown
from unlearn_ray.rows import AskedForm, Drop, Question, digest
from unlearn_ray.stages.asking import Budget, Prompted
from unlearn_ray.stages.asking_back import belonging
from unlearn_ray.stages.choosing import apart_from
from unlearn_ray.stages.gathering import Check, Patience, Subject, gather
from unlearn_ray.stages.ledger import Ledger
from unlearn_ray.stages.naming import Name, ask_names, fates
from unlearn_ray.stages.stage import Identity, Stage, StageRun, Unit, Work, asked_in_words, limited
from unlearn_ray.stages.subject_check import SubjectCheck
from unlearn_ray.synth.forms import is_vague, line_in
from unlearn_ray.synth.names import mentions_entity, parts_of
from unlearn_ray.synth.parsing import affirms
from unlearn_ray.synth.prompts import FormPrompts, Prompts, load_prompts
from unlearn_ray.words import name_key

CHECK_TOKENS = 32
_PROMPTS = (
    "questions",
    "angle_questions",
    "entity_questions",
    "entity_angle_questions",
    "entities",
    "entity_check",
    "topic_check",
    "question_about",
    "question_about_anything",
    "unrelated",
)


def questions_identity(
    config: QuestionsConfig, topic: Topic, model: str, seed: int, every: Sequence[Topic] = ()
) -> Identity:
    """The inputs of a topic's questions.

    Args:
        every: the topics that the user's file may name.

    Raises:
        InputError: a user's file can't be read.
    """
    values = config.model_dump(mode="json", exclude={"file", "prompts"}) | {"model": model, "seed": seed}
    values["topic"] = topic.model_dump(mode="json", include={"name", "kind", "aliases", "terms"})
    inputs = {"prompts": prompts_of(config, topic).fingerprint}
    if config.file is not None:
        own = [text for _, text in _given(config, every or (topic,)).get(topic.name, ())]
        if own:  # a file about other topics does not count
            inputs["file"] = digest(*own)
    return values, inputs


def prompts_of(config: QuestionsConfig, topic: Topic) -> Prompts:
    """The texts that this stage reads.

    Raises:
        InputError: the prompts file can't be used.
    """
    prompts = load_prompts(config.prompts)
    forms = prompts.forms if config.forms is None else [form for form in config.forms if form in prompts.forms]
    kinds = [] if config.angles else [topic.kind]
    languages = ["language_questions"] if config.languages else []
    chosen = ["angles.", *(f"angles.{kind}" for kind in kinds), "forms.", *(f"forms.{form}" for form in forms)]
    return prompts.part(*_PROMPTS, *languages, *chosen)


def make_questions(
    run: StageRun,
    config: QuestionsConfig,
    topic: Topic,
    generator: Generator,
    *,
    seed: int,
    every: Sequence[Topic] = (),
    budget: Budget = Budget(),
) -> Manifest:
    """Questions about a topic in `rows`.

    Args:
        every: the topics that the user's file may name.

    Raises:
        InputError: the user's questions or prompts can't be used.
        ConfigError: the model has no question about the topic.
    """
    prompts, out = prompts_of(config, topic), run.folder
    sampling = Prompted(seed, sampling_of(config, generator.chat), config.max_tokens)
    forms, languages = wanted_forms(config, prompts)
    own = {topic.name: topic.names}
    given = {topic.name: (*topic.names, *topic.terms)}
    with Ledger() as ledger:
        if config.file is not None:
            given_rows = _given(config, every or (topic,)).get(topic.name, ())
            ledger.add((_user_row(config.file, topic.name, line, text) for line, text in given_rows), 0)
        names = _entities(config, own, given, ledger, prompts, out, generator, sampling)
        entities = tuple(name.name for name in names if not name.drop)
        subject = Subject(
            topic.name,
            config.num_questions,
            config.angles or prompts.angles[topic.kind],
            entities,
            forms=tuple(form for form in forms if _of(form, prompts).requests),
            languages=languages,
            form_share=config.form_share,
        )
        for form in (form for form in forms if not _of(form, prompts).requests):
            number = math.floor(config.form_share * config.num_questions / (len(forms) + len(languages)))
            ledger.add(_of_names(form, subject, ledger, _of(form, prompts).questions, number), 0)
        # An entity that is only in lists does not make a question on topic: it must have passed the check.
        is_confirmed = bool(prompts.entity_check)
        about = {topic.name: given[topic.name] + (entities if is_confirmed else ())}
        rivals = {topic.name: apart_from(prompts.unrelated, topic.name, topic.names)}
        wordings = {form: each.questions for form, each in prompts.forms.items() if each is not None and each.requests}
        on_topic = OnTopic(prompts.topic_check, own, about, SubjectCheck.of(prompts), rivals, wordings)
        num_rounds = gather(
            [subject],
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
            budget=budget,
        )
        num_rows = (out / "rows").write_rows(ledger.rows(own), Question.schema())
        num_kept = ledger.num_kept(topic.name)
        kept_forms = Counter(row.form for row in ledger.rows(own) if not row.drop)
        drops = ledger.drops()
    if not num_kept:
        raise ConfigError(
            f"topics: the model wrote no usable question about {topic.name!r}: give some in questions.file"
        )
    details = {"forms": dict(kept_forms), "entities": fates(names), "rounds": num_rounds}
    details |= {"sampling": sampling.sampling} | budget.details
    return run.finish({"rows": num_rows, "kept": num_kept}, drops, details)


def wanted_forms(config: QuestionsConfig, prompts: Prompts) -> tuple[tuple[AskedForm, ...], tuple[str, ...]]:
    """The forms and languages besides plain questions.

    Raises:
        ConfigError: the prompts have no wording for one of them.
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
    assert found is not None  # wanted_forms has checked this
    return found


def _of_names(
    form: AskedForm, subject: Subject, ledger: Ledger, wordings: Sequence[str], number: int
) -> Iterator[RowDict]:
    """Questions made only of names, such as `Tell me about Hogwarts.`: at most `number`, and only if the subject needs questions."""
    if ledger.num_kept(subject.name) >= subject.number:
        return
    things = (subject.name, *subject.entities)
    for index in range(min(number, len(things) * len(wordings))):
        turn, place = divmod(index, len(things))
        thing = things[place]
        yield {
            "topic": subject.name,
            "number": index,
            "place": 1,  # after the user's own
            "text": wordings[(place + turn) % len(wordings)].format(entity=thing),
            "source": form if not place else f"{form}:entity:{thing}",
            "drop": None,
            "form": form,
        }


@dataclass(frozen=True, slots=True)
class OnTopic:
    """Checks whether a question is on its topic: it names the topic or something of it, or the model says so (greedy, a short reply)."""

    template: str
    own_names: Mapping[str, tuple[str, ...]]  # per topic: its name and aliases
    names: Mapping[str, tuple[str, ...]]  # per topic: these, the user's terms, and the confirmed entities
    check: SubjectCheck | None = None  # used instead of the template
    rivals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # per topic: other subjects
    wordings: Mapping[AskedForm, tuple[str, ...]] = field(
        default_factory=dict
    )  # per form: the templates that turn a line into a question

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
        """The model's line without the wording around it, which may name the topic for any line."""
        return line_in(row["text"], self.wordings.get(row["form"], ()), row["topic"])


def user_questions(config: QuestionsConfig, topics: Sequence[Topic]) -> Iterator[RowDict]:
    """The user's own questions. All except copies are kept. Their source names the line, for messages.

    Raises:
        InputError: the file can't be used; names the line.
    """
    if config.file is not None:
        for line, topic, text in _read_given(config.file, topics):
            yield _user_row(config.file, topic, line, text)


def _user_row(file: Path, topic: str, line: int, text: str) -> RowDict:
    source = f"user:{file.name}:{line}"
    return {"topic": topic, "number": line, "place": 0, "text": text, "source": source, "drop": None}


def _read_given(file: Path, topics: Sequence[Topic]) -> Iterator[tuple[int, str, str]]:
    """Line, topic and question of each row in the user's file."""
    names, keys = spellings(topics), dict[str, str]()
    for line, row in read_user_rows(file, ("topic", "question")):
        if row["topic"] not in keys:  # cached: there are few names and many rows
            keys[row["topic"]] = name_key(row["topic"])
        topic = names.get(keys[row["topic"]])
        if topic is None:
            known = gist(", ".join(topic.name for topic in topics))
            raise InputError(f"{file}, line {line}: topic {shown(row['topic'])} is not one of the run's ({known})")
        yield line, topic, " ".join(row["question"].split())


def _given(config: QuestionsConfig, topics: Sequence[Topic]) -> dict[str, list[tuple[int, str]]]:
    """Line and text of the user's questions, by topic. The file is read once, and not once per topic."""
    file = config.file
    assert file is not None
    try:
        found = file.stat()
        state = (found.st_mtime_ns, found.st_size, found.st_ino)
    except OSError:
        state = (0, 0, 0)  # reading the file reports the error
    return _given_in(file, state, _Named(tuple(topics)))


class _Named:
    """Topics as the key of a cache. Two keys are equal if all names are."""

    def __init__(self, topics: tuple[Topic, ...]) -> None:
        self.topics, self._names = topics, tuple((topic.name, topic.aliases) for topic in topics)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self._names == other._names

    def __hash__(self) -> int:
        return hash(self._names)


@lru_cache(maxsize=1)
def _given_in(file: Path, state: tuple[int, ...], named: _Named) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for line, topic, text in _read_given(file, named.topics):
        found.setdefault(topic, []).append((line, text))
    return found


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
    """The entities of each topic that still needs questions."""
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


def _identity(unit: Unit) -> Identity:
    config = unit.config
    return limited(questions_identity(config.questions, unit.topic, unit.model, config.seed, config.topics), unit)


def _run(work: Work) -> Manifest:
    unit, config = work.unit, work.unit.config
    return make_questions(
        work.run,
        config.questions,
        unit.topic,
        work.engines.generator,
        seed=config.seed,
        every=config.topics,
        budget=Budget(config.max_output_tokens, (work.run.folder,)),
    )


def _describe(config: RunConfig) -> tuple[str, str]:
    number = sum(config.of_topic(topic).questions.num_questions for topic in config.topics)
    return f"{number:,} questions", asked_in_words(config)


QUESTIONS = Stage(
    "questions", 6, "topic", (), "questions", "The base model writes questions.", _identity, _run, _describe
)
