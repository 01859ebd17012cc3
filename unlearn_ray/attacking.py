"""The command `attack`: what brings the forgotten back, tried on a finished run."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.config import RunConfig
from unlearn_ray.console import Progression, failure_line, plain, stage_line, start_line
from unlearn_ray.errors import ArtifactError, PartialError

if TYPE_CHECKING:
    from unlearn_ray.attacks.context import AttackEngines, Context, Options
    from unlearn_ray.attacks.running import Job
    from unlearn_ray.stages.stage import State


@dataclass(frozen=True, slots=True)
class Shell:
    """What the command line lends to this command."""

    console: Console
    errors: Callable[[], AbstractContextManager[None]]  # one line an error, and its exit code
    run_folder: Callable[[str], Folder]
    log_to: Callable[[RunConfig], None]
    log_folder: Callable[[RunConfig], str]


def add_command(app: typer.Typer, shell: Callable[[], Shell]) -> None:
    """
    Args:
        shell: called by the command.
    """

    @app.command()
    def attack(
        run: Annotated[
            str, typer.Argument(metavar="RUN", help="A finished run's folder, its name below runs/, or its YAML file.")
        ],
        only: Annotated[
            str | None,
            typer.Option("--only", metavar="ATTACK,...", help="These alone: prompt, relearn, quantize, probe, steer."),
        ] = None,
        prompts: Annotated[
            Path | None,
            typer.Option(
                "--prompts", metavar="FILE", help="Kinds of prompts of your own beside ours: docs/attacks.md."
            ),
        ] = None,
        facts: Annotated[
            int, typer.Option("--facts", metavar="N", min=1, help="Facts of each topic that prompts ask for.")
        ] = 24,
        twin: Annotated[
            str | None,
            typer.Option(
                "--twin",
                metavar="MODEL",
                help="A model that never knew the topics, to be attacked beside: folder or hub name.",
            ),
        ] = None,
    ) -> None:
        """Attack a finished run: what prompts, relearning, quantisation and probes bring back. Finished attacks are skipped."""
        tools = shell()
        with tools.errors():
            from unlearn_ray.attacks.context import Options
            from unlearn_ray.attacks.running import chosen, jobs_of

            attacks = chosen(only)
            options = Options(None if prompts is None else str(prompts.absolute()), facts, _model(twin))
            for each in attacks:
                each.identity(options)  # a file of prompts that can't be used is told before all else
            folder = tools.run_folder(run)
            contexts = _contexts(folder, options)
            _attack(tools, contexts, jobs_of(attacks, contexts))


def _model(name: str | None) -> str | None:
    """A model as engines take it.

    Raises:
        ModelError: it is a folder that is not there, or no language model.
    """
    if name is None:
        return None
    from unlearn_ray.config import path_of
    from unlearn_ray.train.chat import check_architecture

    path = path_of(name)
    check_architecture(path)
    return str(Path(path).absolute()) if Path(path).is_dir() else path


def _contexts(folder: Folder, options: "Options") -> "list[Context]":
    """The models of a run that can be attacked.

    Raises:
        ArtifactError: the run is unfinished.
        InputError: its probes can't be used.
    """
    from unlearn_ray.attacks.running import contexts_of
    from unlearn_ray.runs import config_of, evaluated

    homes = [home.parent for home in evaluated(folder)]
    if not homes:
        raise ArtifactError(f"{folder} is unfinished: finish it with unlearn-ray run CONFIG")
    # Wherever the run's folder is now.
    config = config_of(folder).model_copy(update={"output": folder.parent.uri, "name": folder.name})
    return contexts_of(config, homes, options)


def _attack(tools: Shell, contexts: "Sequence[Context]", jobs: "Sequence[Job]") -> None:
    """Do what is left to do; write and show the figures.

    Raises:
        PartialError: some attacks failed, a line each; the others are done.
    """
    from unlearn_ray.attacks.page import table
    from unlearn_ray.attacks.running import Hooks, perform, write_report
    from unlearn_ray.engines.run_engines import RunEngines
    from unlearn_ray.evals.attacked import ATTACKS_PAGE, HOME
    from unlearn_ray.plan import locked

    config, progress = contexts[0].unit.base, Progression(tools.console)

    def started(job: "Job", state: "State") -> None:
        if line := start_line(job.label, state):
            tools.console.print(line)

    def finished(job: "Job", manifest: Manifest, is_new: bool) -> None:
        progress.clear()
        tools.console.print(stage_line(job.label, manifest, not is_new))

    def failed(job: "Job", error: Exception) -> None:
        tools.console.print(failure_line(job.label, " ".join(str(error).split())), soft_wrap=True)

    with ExitStack() as stack:
        stack.enter_context(locked(config.folder, progress.say))
        tools.log_to(config)
        engines = RunEngines(config, progress.update, stack, on_wait=progress.say, logs=Path(tools.log_folder(config)))
        is_connected = False

        def connected() -> "AttackEngines":
            nonlocal is_connected
            if not is_connected:
                engines.connect()
                is_connected = True
            return engines

        stack.enter_context(progress)
        failures = perform(jobs, connected, Hooks(started, finished, failed))
        reports = [write_report(context) for context in contexts]
    for context, report in zip(contexts, reports, strict=True):
        tools.console.print()
        tools.console.print(table(report))
        tools.console.print(f"Look at  {plain(context.unit.home / HOME)}/{ATTACKS_PAGE}", soft_wrap=True)
    if len(failures) == len(jobs) == 1:
        raise failures[0][1]
    if failures:
        lines = [f"{job.label}: {error}" for job, error in failures]
        raise PartialError("\n".join([*lines, "the others are done and kept; the same command tries only what failed"]))
