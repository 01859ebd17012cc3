"""evaluate: base, base + prefix and unlearned, asked the same held-out probes; writes the answers, report.json and report.html.

Out: `answers/` (what each model said to each probe, with its scores), `excluded/` (probes left out, with the reason).
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from unlearn_ray.artifacts import Folder, Manifest, read_manifest
from unlearn_ray.chat import Drawn, sampling_of
from unlearn_ray.config import SHIPPED_PROBES, EvaluateConfig, Topic
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
from unlearn_ray.evals.report import Report, StageSummary, read_losses
from unlearn_ray.evals.scoring import MODELS, Answered, Ask, ModelName, Score, asks_of, score_answer, unanswered
from unlearn_ray.evals.tally import make_report
from unlearn_ray.rows import GROUPS, Message, Probe, seed_of
from unlearn_ray.stages.probing import told
from unlearn_ray.stages.stage import finished_manifest, open_stage

STAGE = "evaluate"
VERSION = 4
JOINT = "joint"
_ADAPTER = "adapter_config.json"
PROBE_TOKENS = 64  # of an answer to a file's probes, which are short
Calls = dict[
    str, tuple[Iterator[Ask], str | None]
]  # name of a map call -> its rows, and the model that it needs (None: the base model's engines)
_BASE = "base"
_ON_FLEET = "fleet"  # the call that the base model's engines serve: everything but full fine-tunes


def evaluate_identity(
    config: EvaluateConfig,
    topics: Sequence[Topic],
    *,
    model: str,
    guardrail: Mapping[str, str],
    seed: int,
    fingerprints: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """What `open_stage` is told: the config and inputs that make this result what it is. Reads the probe file alone.

    Args:
        fingerprints: of `dataset`, `answers` and `finetune`.

    Raises:
        InputError: the probe file can't be used, or asks nothing about a topic in the split that is asked.
    """
    section = config.model_dump(mode="json")
    inputs = dict(fingerprints)
    if (path := config.probes_path) is not None:
        check_topics(
            with_topics(read_probes(path), topics),
            [topic.name for topic in topics],
            config.split,
            f"evaluate.probes: {config.probes}",
            is_shipped=config.probes in SHIPPED_PROBES,
        )
        # By its content: moving it changes nothing. The shipped facts, of which not all count, are not a file of the same content.
        section["probes"] = "facts" if config.counts_known_only else "file"
        inputs["probes"] = _content(Folder(path))
    what = {
        "evaluate": section,
        "model": model,
        "topics": [topic.model_dump(mode="json") for topic in topics],
        "guardrail": dict(guardrail),
        "seed": seed,
    }
    return what, inputs


def evaluate(
    config: EvaluateConfig,
    topics: Sequence[Topic],
    dataset: Folder,
    answers: Folder,
    finetuned: Folder,
    out: Folder,
    generator: Generator,
    *,
    model: str,
    model_path: str,
    guardrail: Mapping[str, str],
    seed: int,
    notes: Sequence[str] = (),
) -> Manifest:
    """Ask the three models, score their answers and write the report.

    Args:
        guardrail: system message by topic. A forget probe gets its own topic's, a near probe that of the topic it
            neighbours, a far probe that of a topic chosen by hash; and likewise adapters, where each topic has its own.
        notes: what a reader must know of the data before believing the figures.

    Raises:
        ArtifactError: an input is unfinished, or a topic has no fine-tuned model.
        InputError: the probe file can't be used, or no probe is left.
    """
    before = {"dataset": dataset, "answers": answers, "finetune": finetuned}
    manifests = {stage: finished_manifest(folder) for stage, folder in before.items()}
    prints = {stage: manifest.fingerprint for stage, manifest in manifests.items()}
    what, inputs = evaluate_identity(config, topics, model=model, guardrail=guardrail, seed=seed, fingerprints=prints)
    run = open_stage(out, STAGE, VERSION, what, inputs)
    if run.is_finished:
        return finished_manifest(out)

    names = [topic.name for topic in topics]
    exports = find_exports(finetuned, topics, is_joint=manifests["finetune"].config["adapters"] == "joint")
    selection = _select(config, topics, dataset)
    (out / "excluded").write_rows(selection.excluded, ExcludedProbe.schema())

    max_tokens = _max_tokens(config, manifests["answers"].config, manifests["dataset"].config)
    sampling = sampling_of(config, generator.chat)
    asking = Asking(config.num_samples, sampling, max_tokens, seed)
    scoring = Scoring(_terms(answers, topics), {topic.name: (topic.name, *topic.aliases) for topic in topics})
    num_tokens: Counter[str] = Counter()
    calls = _calls(selection, guardrail, exports)
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
            label=STAGE if path is None else f"{STAGE} {call}",
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
    # Questions are not read here, but their counts belong into the report.
    questions = read_manifest(answers.parent / "questions")
    stages = ({"questions": questions} if questions else {}) | {
        stage: manifests[stage] for stage in ("answers", "dataset", "finetune")
    }
    report = make_report(
        scores,
        config,
        run=out.parent.name,
        model=_model_name(model_path),
        topics=names,
        selection=selection,
        unanswered=drops,
        notes=[*notes, *_notes(config, topics, manifests["dataset"])],
        losses=read_losses(finetuned / "losses"),
        stages={name: StageSummary.model_validate(manifest, from_attributes=True) for name, manifest in stages.items()},
        seed=seed,
    )
    report.save(out)
    from unlearn_ray.evals.html import write_html  # its plotting library takes a second to import: a plan need not wait

    write_html(report, out)
    for part in ("asks", "parts"):
        (out / part).delete()
    return run.finish(
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
            seed = seed_of(self.seed, STAGE, row["probe_id"])
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
        scored = score_answer(
            ask,
            self.terms.get(ask.served_topic, ()),
            self.names.get(ask.served_topic, ()),
            answer=greedy.texts[0],
            samples=[text for reply in sampled for text in reply.texts],
            logprobs=right.logprobs,
            argmax=right.argmax,
            wrong_logprobs=[reply.logprobs for reply in wrong],
            whole=(*right.logprobs, *right.ending),
            wrong_wholes=[(*reply.logprobs, *reply.ending) for reply in wrong],
            is_truncated=any(greedy.truncated),
        )
        return [scored.to_dict()]


@dataclass(frozen=True, slots=True)
class Export:
    """A fine-tuned model or adapter."""

    name: str  # slug of its topic, or "joint"
    path: str
    is_adapter: bool


def find_exports(finetuned: Folder, topics: Sequence[Topic], *, is_joint: bool) -> dict[str, Export]:
    """The export that forgets each topic: one for all of them, or its own.

    Raises:
        ArtifactError: a topic has none.
    """
    models = finetuned / "models"
    present = set(models.names())
    found = {}
    for topic in topics:
        name = JOINT if is_joint else topic.slug
        if name not in present:
            raise ArtifactError(f"{models} has no model that forgets {topic.name!r}: rerun with --from finetune")
        found[topic.name] = Export(name, str(models / name), (models / name).exists(_ADAPTER))
    return found


def _calls(selection: Selection, guardrail: Mapping[str, str], exports: Mapping[str, Export]) -> Calls:
    """What is asked, in the order in which it is asked."""
    # Rows with the same prefix or adapter are neighbours: engines share the prefix's work and swap no adapters.
    probes = sorted(selection.kept, key=lambda placed: placed.served_topic)
    adapters = {topic: export.path for topic, export in exports.items() if export.is_adapter}

    def on_fleet() -> Iterator[Ask]:
        yield from asks_of(probes, "base", {}, {})
        yield from asks_of(probes, "guarded", guardrail, {})
        yield from asks_of([placed for placed in probes if placed.served_topic in adapters], "unlearned", {}, adapters)

    def on_model(export: Export) -> Iterator[Ask]:
        yield from asks_of([placed for placed in probes if exports[placed.served_topic] == export], "unlearned", {}, {})

    calls: Calls = {_ON_FLEET: (on_fleet(), None)}
    for export in sorted(
        {export for export in exports.values() if not export.is_adapter}, key=lambda export: export.name
    ):
        calls[f"model-{export.name}"] = (on_model(export), export.path)
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


def _select(config: EvaluateConfig, topics: Sequence[Topic], dataset: Folder) -> Selection:
    names = [topic.name for topic in topics]
    trained = trained_questions(_probes(config, topics, dataset), _training_rows(dataset))
    selection = select_probes(_probes(config, topics, dataset), names, config.split, trained, config.max_probes)
    if not selection.num_kept()["forget"]:
        reasons = (
            ", ".join(f"{num} {reason}" for reason, num in selection.num_excluded().items())
            or "there are none of this split"
        )
        source = f"evaluate.probes: {config.probes}" if config.probes else dataset / "probes"
        raise InputError(
            f"{source} leaves no probe about {', '.join(names)} to ask ({reasons}): set evaluate.probes or evaluate.split"
        )
    return selection


def _notes(config: EvaluateConfig, topics: Sequence[Topic], dataset: Manifest) -> list[str]:
    """What a reader must know of where the probes come from."""
    if config.probes_path is not None:
        return near_misses(read_probes(config.probes_path), topics)
    return [told(dataset.details["probing"])] if "probing" in dataset.details else []


def _probes(config: EvaluateConfig, topics: Sequence[Topic], dataset: Folder) -> Iterator[Probe]:
    path = config.probes_path
    if path is not None:
        yield from with_topics(read_probes(path), topics)
        return
    for row in (dataset / "probes").read_rows():
        lists = {name: tuple(row[name] or ()) for name in ("near", "aliases", "wrong")}
        # Held-out questions were never used for tuning: they serve either split.
        yield Probe.of({**row, **lists, "split": config.split})


def _max_tokens(config: EvaluateConfig, answers: Mapping[str, Any], dataset: Mapping[str, Any]) -> int:
    """Room for a whole reference: to a held-out question that is the base model's own answer, of those stages' lengths."""
    if config.max_tokens is not None:
        return config.max_tokens
    if config.probes_path is not None:
        return PROBE_TOKENS
    return max(answers["max_tokens"], dataset["retain"]["max_tokens"])


def _training_rows(dataset: Folder) -> Iterator[RowDict]:
    if not (dataset / "forget").names(".parquet"):
        raise ArtifactError(
            f"{dataset} has no training rows, so that probes can't be kept apart from them: rerun with --from dataset"
        )
    for part in ("forget", "retain"):
        yield from (row for row in (dataset / part).read_rows(["question", "split"]) if row["split"] == "train")


def _terms(answers: Folder, topics: Sequence[Topic]) -> dict[str, tuple[str, ...]]:
    terms = {topic.name: set(topic.terms) for topic in topics}
    for row in (answers / "terms").read_rows(["topic", "term"]):
        if row["topic"] in terms:
            terms[row["topic"]].add(row["term"])
    return {topic: tuple(sorted(found)) for topic, found in terms.items()}


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
        f"{model}_{group}{suffix}": round(metric.agg_value, 4)
        for name, suffix in ((report.recall, ""), ("choice", "_choice"))
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
