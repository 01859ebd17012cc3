"""Attacks on a run's models: each is an artifact of its own, with a manifest; what is finished, with the same identity, is skipped.

models/<name>/attacks/<attack>/   hits/: rows of Hit; prompt also has answers/: what was said
models/<name>/attacks/            attacks.json and attacks.html: the figures of all attacks that are done
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from unlearn_ray.artifacts import Folder, Manifest, read_manifest
from unlearn_ray.attacks.attack import Hit
from unlearn_ray.attacks.context import AttackEngines, Context, Options, read_context
from unlearn_ray.attacks.figures import AttackFigures, AttackReport, figures_of
from unlearn_ray.attacks.page import page
from unlearn_ray.attacks.prompt import ANSWERS
from unlearn_ray.attacks.table import ATTACKS, Attack
from unlearn_ray.config import RunConfig
from unlearn_ray.errors import ClusterError, ConfigError, EngineError, UnlearnError
from unlearn_ray.evals.attacked import ATTACKS_FILE, ATTACKS_PAGE, HOME
from unlearn_ray.evals.markdown import write_pages
from unlearn_ray.stages.stage import JOINT, StageRun, State, Unit, finished_manifest, models_of, open_stage

log = logging.getLogger(__name__)
_HITS = "hits"
_VERSION = 1  # of what attacks are given: probes, halves, rows
_INPUTS = ("mixture", "finetune", "evaluate")


@dataclass(frozen=True, slots=True)
class Job:
    """An attack on a model, its folder not yet touched."""

    attack: Attack
    context: Context

    @property
    def folder(self) -> Folder:
        return self.context.unit.home / HOME / self.attack.name

    @property
    def label(self) -> str:
        """What a person calls it: with the model's name, where a run has several."""
        name, unit = self.attack.name, self.context.unit
        return name if unit.name == JOINT or len(unit.base.topics) == 1 else f"{unit.topic.name}, {name}"

    def opened(self) -> StageRun:
        """The attack's folder, opened: work of another identity is cleared."""
        unit, options = self.context.unit, self.context.options
        values = {"attack": dict(self.attack.identity(options)), "seed": self.context.seed, "context": _VERSION}
        return open_stage(self.folder, f"attack {self.attack.name}", self.attack.version, values, _inputs(unit))


@dataclass(frozen=True, slots=True)
class Hooks:
    """What attacks tell of themselves."""

    on_start: Callable[[Job, State], None] = lambda job, state: None
    on_finish: Callable[[Job, Manifest, bool], None] = lambda job, manifest, is_new: None
    on_failure: Callable[[Job, Exception], None] = lambda job, error: None


def chosen(names: str | None) -> list[Attack]:
    """The attacks that a user names, in the order of the table; all without names.

    Args:
        names: with commas between them.

    Raises:
        ConfigError: one is unknown.
    """
    if names is None:
        return list(ATTACKS)
    asked = [name.strip() for name in names.split(",") if name.strip()]
    known = [attack.name for attack in ATTACKS]
    for name in asked:
        if name not in known:
            raise ConfigError(f"--only: there is no attack {name[:60]!r}: choose from {', '.join(known)}")
    if not asked:
        raise ConfigError(f"--only names no attack: choose from {', '.join(known)}")
    return [attack for attack in ATTACKS if attack.name in asked]


def contexts_of(config: RunConfig, homes: Sequence[Folder], options: Options) -> list[Context]:
    """The models of a run that are evaluated, as attacks see them.

    Args:
        config: the run's, with its folder where it is now.
        homes: the models' folders.

    Raises:
        ArtifactError: a table of the run can't be read.
        InputError: its probes can't be used.
    """
    names = {home.name for home in homes}
    units = [unit for unit in models_of(config, config.topics, "") if unit.name in names]
    return [read_context(unit, _guardrail(unit), options) for unit in units]


def jobs_of(attacks: Sequence[Attack], contexts: Sequence[Context]) -> list[Job]:
    """Each attack on each model: attack by attack, for engines stay up from model to model, and end before what works in one process."""
    return [Job(attack, context) for attack in attacks for context in contexts]


def perform(jobs: Sequence[Job], engines: Callable[[], AttackEngines], hooks: Hooks) -> list[tuple[Job, Exception]]:
    """Do each attack that is not done; what stops one stops no other, unless it stops all alike. Returns those that failed.

    Args:
        engines: called when the first attack has something to do.

    Raises:
        ClusterError: the cluster has no room.
        StorageError: a folder can't be written.
    """
    failures: list[tuple[Job, Exception]] = []
    for job in jobs:
        run = job.opened()
        hooks.on_start(job, run.state)
        if run.is_finished:
            hooks.on_finish(job, finished_manifest(run.folder), False)
            continue
        try:
            hooks.on_finish(job, _work(job, run, engines()), True)
        except ClusterError:
            raise
        except (UnlearnError, EngineError) as error:
            log.error("%s: %s", job.label, error, exc_info=error)
            failures.append((job, error))
            hooks.on_failure(job, error)
    return failures


def write_report(context: Context) -> AttackReport:
    """Write the figures of all attacks on a model that are done for what is there now.

    Raises:
        ArtifactError: a table of hits can't be read.
    """
    unit, inputs = context.unit, _inputs(context.unit)
    found = []
    for attack in ATTACKS:
        job = Job(attack, context)
        manifest = read_manifest(job.folder)
        if manifest is None or manifest.inputs != inputs or manifest.version != attack.version:
            continue
        hits = _hits(job.folder)
        figures = figures_of(hits, unit.config.evaluate.num_bootstrap, context.seed)
        found.append(
            AttackFigures(
                name=attack.name,
                summary=attack.summary,
                axis=attack.axis,
                fingerprint=manifest.fingerprint,
                seconds=manifest.seconds,
                figures=figures,
                facts_per_topic=manifest.config["attack"].get("facts"),
                unanswered=manifest.drops,
            )
        )
    report = AttackReport(
        run=unit.config.name,
        model=unit.name,
        topics=[topic.name for topic in unit.topics],
        finetune=inputs["finetune"],
        evaluate=inputs["evaluate"],
        attacks=found,
    )
    folder = unit.home / HOME
    folder.write_text(ATTACKS_FILE, report.model_dump_json(indent=1))
    told = (row for row in (folder / "prompt" / ANSWERS).read_rows()) if report.of("prompt") else ()
    folder.write_text(ATTACKS_PAGE, page(report, told))
    write_pages(unit.home / "evaluate")
    return report


def _work(job: Job, run: StageRun, engines: AttackEngines) -> Manifest:
    num_hits = (run.folder / _HITS).write_rows(job.attack.hits(job.context, engines, run.folder), Hit.schema())
    return run.finish({_HITS: num_hits}, _drops(run.folder))


def _drops(folder: Folder) -> dict[str, int]:
    """What the engines could not answer, by reason."""
    if not (folder / ANSWERS).names(".parquet"):
        return {}
    counts = (folder / ANSWERS).counts(["drop"])
    return {str(reason): number for (reason,), number in sorted(counts.items(), key=str) if reason}


def _hits(folder: Folder) -> Iterator[Hit]:
    return (Hit.of(row) for row in (folder / _HITS).read_rows())


def _inputs(unit: Unit) -> dict[str, str]:
    return {name: finished_manifest(unit.home / name).fingerprint for name in _INPUTS}


def _guardrail(unit: Unit) -> dict[str, str]:
    """The system messages that the evaluation put before the guarded model, by topic."""
    return dict(finished_manifest(unit.home / "evaluate").config["guardrail"])


__all__ = ["Hooks", "Job", "chosen", "contexts_of", "jobs_of", "perform", "write_report"]
