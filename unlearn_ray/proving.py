"""The commands that prove a result: `evaluate` with its gate, `certify` and `verify`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.console import Console

from unlearn_ray.artifacts import Folder
from unlearn_ray.console import plain
from unlearn_ray.errors import ArtifactError, CheckError, ConfigError
from unlearn_ray.rows import GROUPS

if TYPE_CHECKING:
    from unlearn_ray.engines.protocols import Generator
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
            str | None,
            typer.Argument(metavar="CONFIG|RUN", help="A run's YAML file; or a finished run, which is only shown."),
        ] = None,
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
        model: Annotated[
            str | None,
            typer.Option(metavar="MODEL", help="Instead of a run: the folder or hub name of any model or adapter."),
        ] = None,
        against: Annotated[
            str | None, typer.Option(metavar="BASE", help="The model that it was made from, with --model.")
        ] = None,
        probes: Annotated[
            str | None, typer.Option(metavar="FILE", help="The probes that it is asked, with --model.")
        ] = None,
        topic: Annotated[
            list[str] | None,
            typer.Option(metavar="NAME", help="What it was to forget (default: as the probes tell), with --model."),
        ] = None,
        output: Annotated[
            str | None, typer.Option(metavar="FOLDER", help="Where its report is to be, with --model.")
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
            of_model = {"--against": against, "--probes": probes, "--topic": topic, "--output": output}
            if model is None and (stray := next((name for name, value in of_model.items() if value), None)):
                raise ConfigError(f"{stray} goes with --model MODEL: give both, or a run's YAML file alone")
            if model is None and source is None:
                raise ConfigError("give a run's YAML file, a run, or --model MODEL --against BASE --probes FILE")
            if model is not None and (against is None or probes is None):
                raise ConfigError("--model needs the model that it was made from, --against BASE, and --probes FILE")
            if model is not None and source is not None and "=" not in source:
                raise ConfigError(f"{source}: give a run or --model, not both")
        if model is not None and against is not None and probes is not None:
            with tools.errors():
                changed = [*([source] if source else []), *(overrides or [])]
                home = _evaluate_given(tools, model, against, probes, topic or [], output, changed)
                tools.show(home)
                tools.console.print(f"{plain(home)}/report.html", soft_wrap=True)
                _gate(tools, requirements, [home], {})
            return
        assert source is not None
        if _is_run(source):
            with tools.errors():
                if overrides:
                    raise ConfigError(f"{source} is a run: give its YAML file to set values in it")
                for home in _evaluations(tools, tools.run_folder(source)):
                    tools.show(home)
                    tools.console.print(f"{plain(home)}/report.html", soft_wrap=True)
        else:
            tools.execute(Path(source), overrides or [], only="evaluate", accept_thin_data=accept_thin_data)
        if requirements:
            with tools.errors():
                _gate_run(tools, requirements, _run_of(tools, source, overrides or []))

    @app.command()
    def probes(
        source: Annotated[
            str,
            typer.Argument(
                metavar="FILE|HUB_NAME", help="Rows of TOFU, RWKU, MUSE, WMDP or RETURN, known by their columns."
            ),
        ],
        output: Annotated[str, typer.Option(metavar="FILE", help="The .jsonl file to write, which is not there yet.")],
        topic: Annotated[
            str, typer.Option(metavar="NAME", help="What the rows are about, where they do not say.")
        ] = "",
        near: Annotated[
            list[str] | None, typer.Option(metavar="NAME", help="A topic to forget that they stand beside.")
        ] = None,
        kind: Annotated[
            str, typer.Option("--as", metavar="KIND", help="probes, questions (to forget) or retain (rows to keep).")
        ] = "probes",
        config: Annotated[str | None, typer.Option(metavar="NAME", help="Part of a data set on the hub.")] = None,
        split: Annotated[str | None, typer.Option(metavar="NAME", help="Split of a data set on the hub.")] = None,
    ) -> None:
        """Make a file of probes, questions or retained rows from a public benchmark."""
        tools = shell()
        with tools.errors():
            from unlearn_ray.converting import convert
            from unlearn_ray.evals.benchmarks import Asked

            number = convert(source, output, Asked(topic, tuple(near or ())), kind, config, split)
            tools.console.print(f"[green]✓[/] {number:,} rows: {plain(output)}", soft_wrap=True)

    @app.command()
    def certify(
        run: Annotated[
            str, typer.Argument(metavar="RUN", help="A run's folder, its name below runs/, or its YAML file.")
        ],
        key: Annotated[
            Path,
            typer.Option("--key", metavar="FILE", help="Your private ed25519 key, in PEM or as OpenSSH writes it."),
        ],
    ) -> None:
        """Sign what was unlearned, from which weights, with which data, and what was measured: certificate.json of each model.

        openssl genpkey -algorithm ed25519 -out key.pem makes a key, openssl pkey -in key.pem -pubout -out public.pem its public half.
        """
        tools = shell()
        with tools.errors():
            _certify(tools, run, key)

    @app.command()
    def verify(
        certificate: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="A certificate.json.")],
        public_key: Annotated[
            Path, typer.Option("--public-key", metavar="FILE", help="The public ed25519 key of who signed it.")
        ],
        model: Annotated[
            str | None, typer.Option(metavar="FOLDER", help="The unlearned model or adapter, to check its weights.")
        ] = None,
        base: Annotated[
            str | None, typer.Option(metavar="FOLDER", help="The base model's folder, to check its weights.")
        ] = None,
    ) -> None:
        """Check a certificate: its signature, and the weights that it is of. Exit code 3 where something does not hold."""
        tools = shell()
        with tools.errors():
            _verify(tools, certificate, public_key, model, base)


def _is_run(source: str) -> bool:
    """Whether it names a run's folder, and not a file with its config."""
    return not source.endswith((".yaml", ".yml")) and any(
        place.exists("run.json") for place in (Folder(source), Folder("runs") / source)
    )


def _run_of(tools: Shell, source: str, overrides: Sequence[str]) -> Folder:
    """
    Raises:
        ArtifactError: there is no run.
    """
    if _is_run(source):
        return tools.run_folder(source)
    from unlearn_ray import config as configs

    return configs.load(Path(source), overrides).folder


def _evaluations(tools: Shell, folder: Folder) -> list[Folder]:
    """
    Raises:
        ArtifactError: none of the run's models is evaluated.
    """
    if not (homes := tools.evaluated(folder)):
        raise ArtifactError(f"{folder} is unfinished: finish it with unlearn-ray run CONFIG")
    return homes


def _gate_run(tools: Shell, requirements: "Sequence[Requirement]", folder: Folder) -> None:
    """
    Raises:
        ArtifactError: none of the run's models is evaluated.
        CheckError: says what does not hold, of each model, and which topics were not evaluated.
    """
    from unlearn_ray.runs import unevaluated

    _gate(tools, requirements, _evaluations(tools, folder), unevaluated(folder))


def _gate(
    tools: Shell, requirements: "Sequence[Requirement]", homes: Sequence[Folder], unevaluated: Mapping[str, str]
) -> None:
    """
    Args:
        unevaluated: topics without an evaluation, and why: nothing holds for them.

    Raises:
        CheckError: says what does not hold, of each model.
    """
    from unlearn_ray.evals import require as gate
    from unlearn_ray.evals.attacked import read_attacks
    from unlearn_ray.evals.report import Report

    failed = [f"{topic} was not evaluated: {reason}" for topic, reason in unevaluated.items()]
    for home in homes:
        for each in gate.check(requirements, Report.load(home), read_attacks(home)):
            name = f"{home.parent.name}: " if len(homes) + len(unevaluated) > 1 else ""
            if each.holds:
                tools.console.print(f"[green]✓[/] {plain(name + each.line)}", soft_wrap=True)
            else:
                failed.append(name + each.line)
    if failed:
        raise CheckError("\n".join(failed))


def _evaluate_given(
    tools: Shell,
    model: str,
    against: str,
    probes: str,
    topics: Sequence[str],
    output: str | None,
    overrides: Sequence[str],
) -> Folder:
    from unlearn_ray.console import Progression
    from unlearn_ray.engines.run_engines import RunEngines
    from unlearn_ray.given import evaluate_given, given

    what = given(model, against, probes, topics, output, overrides)
    with ExitStack() as stack:
        progress = stack.enter_context(Progression(tools.console))
        engines = RunEngines(what.config, progress.update, stack, on_wait=progress.say)

        def evaluator() -> "Generator":
            engines.connect()
            return engines.evaluator

        return evaluate_given(what, evaluator)


def _certify(tools: Shell, run: str, key: Path) -> None:
    from unlearn_ray import certificate

    private = certificate.read_private_key(key)
    for home in certificate.certify(tools.run_folder(run), private):
        tools.console.print(f"[green]✓[/] {plain(home)}/{certificate.FILE}", soft_wrap=True)


def _verify(tools: Shell, file: Path, public_key: Path, model: str | None, base: str | None) -> None:
    """
    Raises:
        CheckError: says what is not as the certificate says.
    """
    from unlearn_ray import certificate

    values, key = certificate.read_certificate(file), certificate.read_public_key(public_key)
    faults = list(certificate.signature_faults(values, key))
    if not faults:
        tools.console.print(f"[green]✓[/] signed with this key on {plain(values['issued_at'])}", soft_wrap=True)
    for what, folder, files in (
        ("model", model, certificate.files_of(values, Folder(model)) if model else {}),
        ("base", base, values["base"]["files"]),
    ):
        if folder is None:
            tools.console.print(f"[yellow]![/] the weights of {what} were not checked: give --{what} FOLDER")
            continue
        found = list(certificate.weights_faults(files, Folder(folder)))
        if not found:
            tools.console.print(f"[green]✓[/] {plain(folder)} has the files of the certificate", soft_wrap=True)
        faults += found
    if faults:
        raise CheckError("\n".join(faults))
    topics = ", ".join(values["topics"])
    tools.console.print(
        f"{plain(values['base']['name'])} unlearned {plain(topics)}: {_figures(values)}", soft_wrap=True
    )


def _figures(values: Mapping[str, Any]) -> str:
    """The headline of a certificate."""
    from unlearn_ray.evals.report import percent

    recall, said = values["scores"]["recall"], []
    for group in GROUPS:
        for name in (recall, "choice"):
            pair = [
                values["scores"]["models"].get(model, {}).get(group, {}).get(name) for model in ("base", "unlearned")
            ]
            if all(figure is not None and figure["value"] is not None for figure in pair):
                title = "recall" if name == recall else name
                before, after = (percent(figure["value"]) for figure in pair)
                said.append(f"{title} on {group} {before} before, {after} after")
    return "; ".join(said) or "nothing was measured"
