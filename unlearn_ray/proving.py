"""The commands that prove a result: `evaluate` with its gate, `certify` and `verify`."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.console import Console

from unlearn_ray.artifacts import Folder
from unlearn_ray.console import plain
from unlearn_ray.errors import ArtifactError, CheckError, ConfigError

if TYPE_CHECKING:
    from unlearn_ray.evals.require import Requirement


class Executes(Protocol):
    """Does a stage of a run."""

    def __call__(self, path: Path, overrides: Sequence[str], *, only: str, accept_thin_data: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Shell:
    """What the command line lends to its commands."""

    console: Console
    errors: Callable[[], AbstractContextManager[None]]  # one line an error, and its exit code
    run_folder: Callable[[str], Folder]
    evaluated: Callable[[Folder], list[Folder]]
    execute: Executes
    show: Callable[[Folder], None]  # the report of an evaluation


def add_commands(app: typer.Typer, shell: Callable[[], Shell]) -> None:
    """
    Args:
        shell: called by a command.
    """

    @app.command()
    def evaluate(
        source: Annotated[
            str, typer.Argument(metavar="CONFIG|RUN", help="A run's YAML file; or a finished run, which is only shown.")
        ],
        overrides: Annotated[
            list[str] | None, typer.Argument(metavar="KEY.PATH=VALUE", help="Values to set over the file's.")
        ] = None,
        require: Annotated[
            list[str] | None,
            typer.Option(
                "--require",
                metavar="FIGURE<=VALUE",
                help='What must hold, such as "forget.choice<=0.35" or "near.recall>=0.95"; else exit code 3.',
            ),
        ] = None,
        accept_thin_data: Annotated[
            bool,
            typer.Option(
                "--accept-thin-data", help="Train on data below the floors of dataset.floors; the report says so."
            ),
        ] = False,
    ) -> None:
        """Only this stage. The evaluation: base, base + prefix, unlearned. With --require, a gate on its figures."""
        tools = shell()
        with tools.errors():
            from unlearn_ray.evals import require as gate

            requirements = gate.parse(require or [])
        if _is_run(source):
            with tools.errors():
                if overrides:
                    raise ConfigError(f"{source} is a run: give its YAML file to set values in it")
                for home in _evaluations(tools, source):
                    tools.show(home)
                    tools.console.print(f"{plain(home)}/report.html", soft_wrap=True)
        else:
            tools.execute(Path(source), overrides or [], only="evaluate", accept_thin_data=accept_thin_data)
        if requirements:
            with tools.errors():
                _gate(tools, requirements, _evaluations(tools, source, overrides or []))


def _is_run(source: str) -> bool:
    """Whether it names a run's folder, and not a file with its config."""
    return not source.endswith((".yaml", ".yml")) and any(
        place.exists("run.json") for place in (Folder(source), Folder("runs") / source)
    )


def _evaluations(tools: Shell, source: str, overrides: Sequence[str] = ()) -> list[Folder]:
    """
    Raises:
        ArtifactError: there is no run, or none of its models is evaluated.
    """
    if _is_run(source):
        folder = tools.run_folder(source)
    else:
        from unlearn_ray import config as configs

        folder = configs.load(Path(source), overrides).folder
    if not (homes := tools.evaluated(folder)):
        raise ArtifactError(f"{folder} is unfinished: finish it with unlearn-ray run CONFIG")
    return homes


def _gate(tools: Shell, requirements: "Sequence[Requirement]", homes: Sequence[Folder]) -> None:
    """
    Raises:
        CheckError: says what does not hold, of each model.
    """
    from unlearn_ray.evals import require as gate
    from unlearn_ray.evals.attacked import read_attacks
    from unlearn_ray.evals.report import Report

    failed = []
    for home in homes:
        for each in gate.check(requirements, Report.load(home), read_attacks(home)):
            name = f"{home.parent.name}: " if len(homes) > 1 else ""
            if each.holds:
                tools.console.print(f"[green]✓[/] {plain(name + each.line)}", soft_wrap=True)
            else:
                failed.append(name + each.line)
    if failed:
        raise CheckError("\n".join(failed))
