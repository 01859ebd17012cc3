"""Stage one: the model itself asks about each topic, from many angles and entity by entity, until enough distinct questions are there.

entities/   rows of naming.Name: what the model says belongs to each topic
rounds/     the requests and replies of every round
rows/       rows of Question, kept and dropped
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import QuestionsConfig, Topic, spellings
from unlearn_ray.engines.protocols import Generator, Reply, Request, RowDict
from unlearn_ray.errors import ConfigError, InputError, gist
from unlearn_ray.reading import fingerprint_of_file, read_user_rows, shown
from unlearn_ray.rows import Drop, Question
from unlearn_ray.stages.asking import Prompted
from unlearn_ray.stages.gathering import Check, Patience, Subject, gather
from unlearn_ray.stages.ledger import Ledger
from unlearn_ray.stages.naming import Name, ask_names
from unlearn_ray.stages.stage import finished_manifest, open_stage
from unlearn_ray.synth.dedup import question_key
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.parsing import affirms
from unlearn_ray.synth.prompts import Prompts, load_prompts
from unlearn_ray.words import name_key

STAGE, VERSION = "questions", 2
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
    values["topics"] = [topic.model_dump(mode="json", include={"name", "kind", "aliases"}) for topic in topics]
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
    with Ledger() as ledger:
        ledger.add(user_questions(config, topics), 0)
        entities = _entities(config, topics, ledger, prompts, out, generator, sampling)
        subjects = [
            Subject(
                topic.name,
                config.num_questions,
                config.angles or prompts.angles[topic.kind],
                tuple(entity.name for entity in entities if entity.topic == topic.name and not entity.drop),
            )
            for topic in topics
        ]
        on_topic = OnTopic(prompts.topic_check, {topic.name: (topic.name, *topic.aliases) for topic in topics})
        num_rounds = gather(
            subjects,
            ledger,
            prompts,
            out / "rounds",
            generator,
            sampling,
            Patience(config.per_request, config.patience, config.max_rounds),
            Check(on_topic, on_topic.verdict) if config.check_topic else None,
            label="questions",
        )
        num_rows = (out / "rows").write_rows(ledger.rows(topic.name for topic in topics), Question.schema())
        kept = {topic.name: ledger.num_kept(topic.name) for topic in topics}
        drops = ledger.drops()
    for name, number in kept.items():
        if not number:
            raise ConfigError(f"topics: the model wrote no usable question about {name!r}: give some in questions.file")
    return stage.finish(
        {"rows": num_rows, "kept": sum(kept.values())},
        drops,
        {"kept": kept, "rounds": num_rounds, "sampling": sampling.sampling},
    )


@dataclass(frozen=True, slots=True)
class OnTopic:
    """Asks the model whether a question is on its topic: greedy, a short reply."""

    template: str
    names: Mapping[str, tuple[str, ...]]  # of each topic: its name and aliases

    def __call__(self, row: RowDict) -> list[Request]:
        text = self.template.format(question=row["text"], topic=row["topic"])
        return [Request([{"role": "user", "content": text}], max_tokens=CHECK_TOKENS)]

    def verdict(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        """The row, with the reason if it is off its topic."""
        question, (reply,) = Question.of(row), replies
        names = self.names[question.topic]
        # A question that names the topic is on it, whatever the model says.
        is_on = mentions(question.text, names) or any(affirms(text, names) for text in reply.texts)
        drop = reply.error or (None if is_on else Drop.OFF_TOPIC.value)
        return [replace(question, drop=drop).to_dict()]


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
    topics: Sequence[Topic],
    ledger: Ledger,
    prompts: Prompts,
    out: Folder,
    generator: Generator,
    sampling: Prompted,
) -> list[Name]:
    """What belongs to each topic that still needs questions."""
    own = {topic.name: (topic.name, *topic.aliases) for topic in topics}
    wanted = {
        name: config.num_entities
        for name in own
        if ledger.num_kept(name) < config.num_questions and config.num_entities
    }

    def reason(topic: str, name: str) -> str | None:
        is_topic = question_key(name).removeprefix("the ") in {
            question_key(own_name).removeprefix("the ") for own_name in own[topic]
        }
        return Drop.DUPLICATE.value if is_topic else None

    names = ask_names(
        generator, out / "rounds" / "entities", prompts.entities, wanted, sampling, reason, label="questions, entities"
    )
    (out / "entities").write_rows(names, Name.schema())
    return names
