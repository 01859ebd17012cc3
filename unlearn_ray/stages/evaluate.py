"""evaluate: base, base + prefix and unlearned, asked the same held-out probes; writes the answers, report.json, report.html and report.md.

Out: `answers/` (what each model said to each probe, with its scores), `excluded/` (probes left out, with the reason).
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import Drawn, sampling_of
from unlearn_ray.config import SHIPPED_PROBES, EvaluateConfig, RunConfig, Topic
from unlearn_ray.engines.protocols import Generator, Reply, Request, RowDict
from unlearn_ray.errors import ArtifactError, InputError
from unlearn_ray.evals.known import known_only
from unlearn_ray.evals.probes import (
    ExcludedProbe,
    Selection,
    check_topics,
    near_misses,
    read_probes,
    select_probes,
    trained_questions,
    with_topics,
)
from unlearn_ray.evals.report import Report, StageSummary, figure_name, read_gate, read_losses
from unlearn_ray.evals.scoring import MODELS, Answered, Ask, ModelName, Score, asks_of, score_answer, unanswered
from unlearn_ray.evals.table import short_of
from unlearn_ray.evals.tally import make_report
from unlearn_ray.rows import GROUPS, Drop, Message, Probe, seed_of
from unlearn_ray.stages.answers import ANSWERS
from unlearn_ray.stages.card import EXPORT, write_cards
from unlearn_ray.stages.checking import shortfalls_of
from unlearn_ray.stages.dataset import DATASET
from unlearn_ray.stages.finetune import FINETUNE
from unlearn_ray.stages.gating import ROWS, gated_questions
from unlearn_ray.stages.general import GENERAL_POOL
from unlearn_ray.stages.mixture import MIXTURE
from unlearn_ray.stages.probing import told
from unlearn_ray.stages.questions import QUESTIONS
from unlearn_ray.stages.stage import Identity, Stage, StageRun, Unit, Work, finished_manifest
from unlearn_ray.stages.teaching import facts_trained_on
from unlearn_ray.synth.guardrails import guardrails_of
from unlearn_ray.words import normalised

NAME = "evaluate"
_ADAPTER = "adapter_config.json"
PROBE_TOKENS = 64  # of an answer to a file's probes, which are short
Calls = dict[
    str, tuple[Iterator[Ask], str | None]
]  # name of a map call -> its rows, and the model that it needs (None: the base model's engines)
_BASE = "base"
_ON_FLEET = "fleet"  # the call that the base model's engines serve: everything but full fine-tunes


def evaluate_identity(
    config: EvaluateConfig, topics: Sequence[Topic], *, model: str, guardrail: Mapping[str, str], seed: int
) -> Identity:
    """What a model's evaluation follows from, beside its rows and its training.

    Raises:
        InputError: the probe file can't be read.
    """
    section, inputs = config.model_dump(mode="json"), {}
    if (path := config.probes_path) is not None:
        # By its content: moving it changes nothing. The shipped facts, of which not all count, are not a file of the same content.
        section["probes"] = "facts" if config.counts_known_only else "file"
        inputs["probes"] = _content(Folder(path))
    fields = {"name", "aliases", "terms"}
    what = {
        "evaluate": section,
        "model": model,
        "topics": [topic.model_dump(mode="json", include=fields) for topic in topics],
        "guardrail": dict(guardrail),
        "seed": seed,
    }
    return what, inputs


def check_probes(config: EvaluateConfig, topics: Sequence[Topic]) -> None:
    """Refuse a file of probes that asks nothing about a topic in the split that is asked.

    Raises:
        InputError: says so, or that it can't be read.
    """
    if (path := config.probes_path) is not None:
        check_topics(
            with_topics(read_probes(path), topics),
            [topic.name for topic in topics],
            config.split,
            f"evaluate.probes: {config.probes}",
            is_shipped=config.probes in SHIPPED_PROBES,
        )


@dataclass(frozen=True, slots=True)
class Before:
    """What a model's evaluation reads, and tells of."""

    mixture: Folder
    finetuned: Folder
    terms: Mapping[str, Folder]  # rows of Term, by topic
    stages: Mapping[str, Sequence[Manifest]]  # by the stages' names, of all topics
    max_tokens: int  # of the model's own answers
    unguarded: Mapping[str, Folder] = field(default_factory=dict)  # the model's own answers, by topic


def evaluate(
    stage: StageRun,
    config: EvaluateConfig,
    topics: Sequence[Topic],
    before: Before,
    generator: Generator,
    *,
    run: str,
    model_path: str,
    guardrail: Mapping[str, str],
    seed: int,
    notes: Sequence[str] = (),
) -> Manifest:
    """Ask the three models, score their answers and write the report.

    Args:
        guardrail: system message by topic. A forget probe gets its own topic's, a near probe that of the topic it
            neighbours, a far probe that of a topic chosen by hash.
        notes: what a reader must know of the data before believing the figures.

    Raises:
        ArtifactError: there is no fine-tuned model.
        InputError: the probe file can't be used, or no probe is left.
    """
    out = stage.folder
    names = [topic.name for topic in topics]
    export = find_export(before.finetuned)
    selection = _select(config, topics, before.mixture, before.finetuned)
    (out / "excluded").write_rows(selection.excluded, ExcludedProbe.schema())

    max_tokens = _max_tokens(config, before.max_tokens)
    sampling = sampling_of(config, generator.chat)
    asking = Asking(config.num_samples, sampling, max_tokens, seed)
    scoring = Scoring(_terms(before.terms, topics), {topic.name: topic.names for topic in topics})
    num_tokens: Counter[str] = Counter()
    calls = _calls(selection, guardrail, export)
    if config.counts_known_only:
        calls = _base_first(calls, out / "parts" / _BASE)
    for call, (rows, path) in calls.items():
        (out / "asks" / call).write_rows(rows, Ask.schema())
        counts = generator.map(
            out / "asks" / call,
            out / "parts" / call,
            asking,
            scoring,
            Answered.schema(),
            label=NAME if path is None else f"{NAME} {call}",
            model=path,
        )
        num_tokens.update(
            prompt_tokens=counts.num_prompt_tokens,
            output_tokens=counts.num_output_tokens,
            prefix_queries=counts.num_prefix_queries,
            prefix_hits=counts.num_prefix_hits,
        )
    answered = (row for call in calls for row in (out / "parts" / call).read_rows())
    num_answers = (out / "answers").write_rows(answered, Answered.schema())

    scores, drops = _read_scores(out / "answers")
    trained = facts_trained_on(generator.each, selection.kept, topics, before.mixture, before.unguarded)
    report = make_report(
        scores,
        config,
        run=run,
        model=_model_name(model_path),
        topics=names,
        selection=selection,
        unanswered=drops,
        trained=trained,
        notes=[*notes, *_notes(config, topics, before)],
        losses=read_losses(before.finetuned),
        stages={name: summary_of(manifests) for name, manifests in before.stages.items()},
        seed=seed,
    )
    steps = [each.details.get("training", {}).get("exported_step") for each in before.stages.get(FINETUNE.name, ())]
    report = report.model_copy(update={"gate": read_gate(before.finetuned), "exported_step": next(iter(steps), None)})
    report.save(out)
    from unlearn_ray.evals.markdown import write_pages  # plots take a second to import: a plan need not wait

    write_pages(out)
    for part in ("asks", "parts"):
        (out / part).delete()
    return stage.finish(
        {"answers": num_answers, **{f"{group}_probes": num for group, num in selection.num_kept().items()}},
        dict(
            Counter(selection.num_excluded())
            + Counter({reason: sum(d[reason] for d in drops.values()) for reason in _reasons(drops)})
        ),
        {"headline": _headline(report), **_known(report), "tokens": dict(num_tokens), "sampling": sampling},
    )


@dataclass(frozen=True, slots=True)
class Asking:
    """Renders one row: a greedy answer, the reference and the wrong answers to score, and samples for forget probes."""

    num_samples: int
    sampling: Drawn  # of what is drawn, as `chat.sampling_of` says
    max_tokens: int
    seed: int

    def __call__(self, row: RowDict) -> list[Request]:
        system: list[Message] = [{"role": "system", "content": row["prefix"]}] if row["prefix"] else []
        messages: list[Message] = [*system, {"role": "user", "content": row["question"]}]
        adapter = row["adapter"] or None
        requests = [Request(messages, max_tokens=self.max_tokens, adapter=adapter)]
        requests += [Request(messages, adapter=adapter, score=answer) for answer in (row["reference"], *row["wrong"])]
        if row["group"] == "forget":
            # The seed leaves the model out: all three draw with the same luck.
            seed = seed_of(self.seed, NAME, row["probe_id"])
            drawn = Request(
                messages, seed, self.num_samples, max_tokens=self.max_tokens, adapter=adapter, **self.sampling
            )
            requests.append(drawn)
        return requests


@dataclass(frozen=True, slots=True)
class Scoring:
    """Parses the replies to one row into its scored answer, on the worker."""

    terms: Mapping[str, tuple[str, ...]]  # topic -> what gives it away
    names: Mapping[str, tuple[str, ...]]  # topic -> what it is called

    def __call__(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        ask = Ask.of(row)
        greedy, right, *others = replies
        if greedy.error is not None:
            return [unanswered(ask, greedy.error).to_dict()]
        wrong = others[: len(ask.wrong)]
        sampled = others[len(ask.wrong) :]
        if not all(math.isfinite(logp) for reply in (right, *wrong) for logp in _whole(reply)):
            return [unanswered(ask, Drop.NOT_FINITE.value).to_dict()]  # one NaN would make every mean one
        scored = score_answer(
            ask,
            self.terms.get(ask.served_topic, ()),
            self.names.get(ask.served_topic, ()),
            answer=greedy.texts[0],
            samples=[text for reply in sampled for text in reply.texts],
            logprobs=_whole(right),
            argmax=right.argmax,
            wrong_logprobs=[_whole(reply) for reply in wrong],
            wrong_argmax=[reply.argmax for reply in wrong],
            is_truncated=any(greedy.truncated),
        )
        return [scored.to_dict()]


def _whole(reply: Reply) -> tuple[float, ...]:
    """The log-probabilities of a scored answer and of the end of its turn."""
    return (*reply.logprobs, *reply.ending)


@dataclass(frozen=True, slots=True)
class Export:
    """A fine-tuned model or adapter."""

    path: str
    is_adapter: bool


def find_export(finetuned: Folder) -> Export:
    """
    Raises:
        ArtifactError: there is none.
    """
    folder = finetuned / EXPORT
    if not folder.names():
        raise ArtifactError(f"{folder} is not there: rerun with --from finetune")
    return Export(str(folder), folder.exists(_ADAPTER))


def _calls(selection: Selection, guardrail: Mapping[str, str], export: Export) -> Calls:
    """What is asked, in the order in which it is asked."""
    # Rows with the same prefix are neighbours: engines share its work.
    probes = sorted(selection.kept, key=lambda placed: placed.served_topic)

    def on_fleet() -> Iterator[Ask]:
        yield from asks_of(probes, "base", {}, {})
        yield from asks_of(probes, "guarded", guardrail, {})
        if export.is_adapter:
            yield from asks_of(probes, "unlearned", {}, {placed.served_topic: export.path for placed in probes})

    calls: Calls = {_ON_FLEET: (on_fleet(), None)}
    if not export.is_adapter:
        calls["model"] = (iter(asks_of(probes, "unlearned", {}, {})), export.path)
    return calls


def _base_first(calls: Calls, base: Folder) -> Calls:
    """The same calls, the base model's rows in one of their own, and the others' only for what that call has shown it to know.

    Args:
        base: where the rows of that call go.
    """
    asked = {call: list(rows) for call, (rows, _) in calls.items()}

    @cache
    def known() -> set[str]:
        scores = [Score.of(row) for row in base.read_rows() if not row["drop"]]
        return {score.probe_id for score in known_only(scores)[0]}

    def of_known(asks: Sequence[Ask]) -> Iterator[Ask]:
        return (ask for ask in asks if ask.model != "base" and ask.probe_id in known())

    first = (ask for asks in asked.values() for ask in asks if ask.model == "base")
    return {_BASE: (first, None)} | {call: (of_known(asks), calls[call][1]) for call, asks in asked.items()}


def _select(config: EvaluateConfig, topics: Sequence[Topic], mixture: Folder, finetuned: Folder) -> Selection:
    names = [topic.name for topic in topics]
    trained = trained_questions(probes_of(config, topics, mixture), _training_rows(mixture))
    questions = gated_questions(finetuned / ROWS)
    gated = {each.fact_id for each in probes_of(config, topics, mixture) if normalised(each.question) in questions}
    selection = select_probes(
        probes_of(config, topics, mixture), names, config.split, trained, config.max_probes, gated
    )
    if not selection.num_kept()["forget"]:
        reasons = (
            ", ".join(f"{num} {reason}" for reason, num in selection.num_excluded().items())
            or "there are none of this split"
        )
        source = f"evaluate.probes: {config.probes}" if config.probes else mixture / "probes"
        raise InputError(
            f"{source} leaves no probe about {', '.join(names)} to ask ({reasons}): set evaluate.probes or evaluate.split"
        )
    return selection


def _notes(config: EvaluateConfig, topics: Sequence[Topic], before: Before) -> list[str]:
    """What a reader must know of where the probes come from."""
    if config.probes_path is not None:
        return near_misses(read_probes(config.probes_path), topics)
    counts: dict[str, Counter[str]] = {}
    for manifest in (each for name in ("dataset", "general") for each in before.stages.get(name, ())):
        for group, found in manifest.details.get("probing", {}).items():
            counts.setdefault(group, Counter()).update(found)
    return [told(counts)] if counts else []


def probes_of(config: EvaluateConfig, topics: Sequence[Topic], mixture: Folder) -> Iterator[Probe]:
    """The probes of a model's topics, those of a file or of its mixture, whether they are asked or not."""
    path = config.probes_path
    if path is not None:
        yield from with_topics(read_probes(path), topics)
        return
    for row in (mixture / "probes").read_rows():
        lists = {name: tuple(row[name] or ()) for name in ("near", "aliases", "wrong")}
        # Held-out questions were never used for tuning: they serve either split.
        yield Probe.of({**row, **lists, "split": config.split})


def _max_tokens(config: EvaluateConfig, own: int) -> int:
    """Room for a whole reference: to a held-out question that is the base model's own answer, of `own` tokens at most."""
    if config.max_tokens is not None:
        return config.max_tokens
    return own if config.probes_path is None else PROBE_TOKENS


def _training_rows(mixture: Folder) -> Iterator[RowDict]:
    if not (mixture / "forget").names(".parquet"):
        raise ArtifactError(
            f"{mixture} has no training rows, so that probes can't be kept apart from them: rerun with --from dataset"
        )
    for part in ("forget", "retain"):
        yield from (row for row in (mixture / part).read_rows(["question", "split"]) if row["split"] == "train")


def _terms(terms: Mapping[str, Folder], topics: Sequence[Topic]) -> dict[str, tuple[str, ...]]:
    """What gives each topic away: the user's terms, and those that were learnt."""
    return {
        topic.name: tuple(sorted({*topic.terms, *(row["term"] for row in terms[topic.name].read_rows(["term"]))}))
        for topic in topics
    }


def summary_of(manifests: Sequence[Manifest]) -> StageSummary:
    """What the manifests of one stage say, those of all topics added up."""
    last = max(manifests, key=lambda each: each.finished_at)
    tokens = sum((Counter(each.details.get("tokens", {})) for each in manifests), Counter[str]())
    total = last.model_copy(
        update={
            "num_rows": dict(sum((Counter(each.num_rows) for each in manifests), Counter())),
            "drops": dict(sum((Counter(each.drops) for each in manifests), Counter())),
            "seconds": sum(each.seconds for each in manifests),
        }
    )
    return StageSummary.model_validate(total, from_attributes=True).model_copy(update={"tokens": dict(tokens)})


def _read_scores(answers: Folder) -> tuple[list[Score], dict[ModelName, Counter[str]]]:
    scores, drops = [], {model: Counter[str]() for model in MODELS}
    columns = [
        name for name in Answered.schema().names if name not in {"answer", "samples", "question", "leaked_terms"}
    ]
    for row in answers.read_rows(columns):
        if row["drop"]:
            drops[row["model"]][row["drop"]] += 1
        else:
            scores.append(Score.of(row))
    # Engines finish in any order; intervals must not depend on it.
    return sorted(scores, key=lambda score: (score.model, score.probe_id)), drops


def _headline(report: Report) -> dict[str, float | str]:
    """The figures that a list of runs shows, and whether anything was forgotten."""
    figures = {
        figure_name(model, group, short_of(name)): round(metric.agg_value, 4)
        for name in (report.recall, "choice")
        for model in MODELS
        for group in GROUPS
        if (metric := report.metric(model, group, name))
    }
    return {**figures, "forgetting": report.forgetting.verdict}


def _known(report: Report) -> dict[str, dict[str, dict[str, int]]]:
    """How much the base model knows of what was asked, where that alone counts."""
    known = report.probes.known
    return {} if known is None else {"known": {group: count.model_dump() for group, count in known.items()}}


def _model_name(path: str) -> str:
    """What a reader calls the model: its name on the hub, or its folder's (that above, where it is just called `model`)."""
    if not Path(path).is_dir():
        return path
    folder = Path(path).absolute()
    return folder.parent.name if folder.name == "model" else folder.name


def _reasons(drops: Mapping[ModelName, Counter[str]]) -> set[str]:
    return {reason for found in drops.values() for reason in found}


def _content(file: Folder) -> str:
    found = hashlib.sha256()
    with file.filesystem.open_input_stream(file.path) as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()[:16]


def _guardrail(unit: Unit) -> dict[str, str]:
    return guardrails_of(unit.base, unit.topics)


def _identity(unit: Unit) -> Identity:
    config = unit.config
    return evaluate_identity(
        config.evaluate, unit.topics, model=unit.model, guardrail=_guardrail(unit), seed=config.seed
    )


def _run(work: Work) -> Manifest:
    unit, config = work.unit, work.unit.config
    chains = {stage.name: list(work.of_topics(stage).values()) for stage in (QUESTIONS, ANSWERS, DATASET)}
    shared = {name: [work.inputs[name]] for name in (GENERAL_POOL.name, MIXTURE.name, FINETUNE.name)}
    before = Before(
        mixture=work.inputs[MIXTURE.name],
        finetuned=work.inputs[FINETUNE.name],
        terms={topic: folder / "terms" for topic, folder in work.of_topics(ANSWERS).items()},
        unguarded={topic: folder / "unguarded" for topic, folder in work.of_topics(ANSWERS).items()},
        stages={name: [finished_manifest(each) for each in folders] for name, folders in (chains | shared).items()},
        max_tokens=max(
            max(own.answers.max_tokens, own.dataset.retain.max_tokens)
            for own in (unit.base, *(unit.base.of_topic(topic) for topic in unit.topics))
        ),
    )
    manifest = evaluate(
        work.run,
        config.evaluate,
        unit.topics,
        before,
        work.engines.evaluator,
        run=config.name,
        model_path=config.model_path,
        guardrail=_guardrail(unit),
        seed=config.seed,
        notes=[found.note for found in shortfalls_of(unit)],
    )
    write_cards(work.unit.home, work.unit.base)  # the training's, with these figures
    return manifest


def _describe(config: RunConfig) -> tuple[str, str]:
    return f"probes: {config.evaluate.probes or 'held-out questions'}", config.cluster.engines.in_words


EVALUATE = Stage(
    NAME,
    7,
    "model",
    (QUESTIONS, ANSWERS, DATASET, GENERAL_POOL, MIXTURE, FINETUNE),
    NAME,
    "The evaluation: base, base + prefix, unlearned.",
    _identity,
    _run,
    _describe,
)
