"""`unlearn-ray`: parse, connect, call one function. Everything heavy is imported by the command that needs it."""

import logging
import os
import shlex
import signal
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from unlearn_ray import __version__, attacking
from unlearn_ray import config as configs
from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.config import RunConfig
from unlearn_ray.console import make_console, plain
from unlearn_ray.errors import ArtifactError, EngineError, PartialError, StorageError, UnlearnError
from unlearn_ray.proving import Shell, add_commands
from unlearn_ray.stages.table import STAGES
from unlearn_ray.words import visible

if TYPE_CHECKING:
    from unlearn_ray.console import Progression
    from unlearn_ray.forget import RunFile
    from unlearn_ray.pipeline import Failure
    from unlearn_ray.plan import Plan
    from unlearn_ray.stages.stage import Stage, Unit
    from unlearn_ray.synth.enough import Shortfall

HELP = """Make a language model forget topics, and measure and serve the result.

A run is one YAML file with a model and its topics. Start with: unlearn-ray run jobs/configs/pocket.yaml, or with your own
topic: unlearn-ray forget "Dune" --model MODEL
"""
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)
console, errors = make_console(), make_console(stderr=True)
log = logging.getLogger("unlearn_ray")
MAX_REPORTS = 3  # shown in full at the end of a run

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A run's YAML file, such as jobs/configs/pocket.yaml.")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY.PATH=VALUE", help="Values to set over the file's.")
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, its name below runs/, or its YAML file.")
]
GpuOption = Annotated[
    str, typer.Option("--gpu", metavar="GPU", help="GPU that the run will use: h100, h200, a100, l40s, b200 or cpu.")
]
PriceOption = Annotated[
    float | None, typer.Option("--usd-per-gpu-hour", metavar="X", help="Price per hour of one GPU, for the cost.")
]
NumGpusOption = Annotated[
    int | None,
    typer.Option("--num-gpus", metavar="N", min=1, help="GPUs in the cluster (default: those of one machine)."),
]
AcceptOption = Annotated[
    bool,
    typer.Option("--accept-thin-data", help="Train on data below the floors of dataset.floors; the report says so."),
]

FailFastOption = Annotated[bool, typer.Option("--fail-fast", help="End with the first topic or training that fails.")]


@app.command()
def run(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and those after it again.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and write nothing.")] = False,
    accept_thin_data: AcceptOption = False,
    fail_fast: FailFastOption = False,
) -> None:
    """Run a pipeline: questions, answers, dataset, finetune, evaluate. Finished stages are skipped."""
    _execute(
        config,
        overrides or [],
        until=until,
        start=start,
        dry_run=dry_run,
        accept_thin_data=accept_thin_data,
        fail_fast=fail_fast,
    )


class _TakesNames(typer.core.TyperCommand):
    """A command whose arguments are names of the user's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # typer has a click of its own, and does not export its errors
            if type(error).__name__ == "NoSuchOption":
                error.message += " (a topic that begins with a dash goes to the end, behind --)"  # type: ignore[attr-defined]
            raise


@app.command(cls=_TakesNames)
def forget(
    topics: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TOPIC|KEY.PATH=VALUE",
            help="What to forget, one topic or several, and values to set in the file. A topic that begins with a dash goes to the end, behind --.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model's folder, or its name on the Hugging Face hub.")
    ] = None,
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="What the topics are: fiction, product, person or general.")
    ] = "general",
    output: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where the run's folder is to be (default: runs).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the file and the resolved plan, and write nothing.")
    ] = False,
    accept_thin_data: AcceptOption = False,
) -> None:
    """Write a run's YAML file for a topic, and run it: from nothing to a report.

    unlearn-ray forget "Dune" --model Qwen/Qwen2.5-0.5B-Instruct writes dune.yaml here, which unlearn-ray run dune.yaml runs again.
    """
    with _one_line_errors():
        from unlearn_ray.forget import compose

        file = compose(topics or [], model, kind, output)
        console.print(f"[bold]{plain(file.path)}[/]{' [dim](it is there)[/]' if file.is_there else ''}")
        for line in file.text.splitlines():
            console.print(f"  {plain(line)}", soft_wrap=True)
        console.print()
    _execute(file.path, [], file=file, dry_run=dry_run, accept_thin_data=accept_thin_data)


@app.command()
def plan(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    gpu: GpuOption = "h100",
    usd_per_gpu_hour: PriceOption = None,
    num_gpus: NumGpusOption = None,
) -> None:
    """Print the rows, tokens, time, memory and cost of each stage before a run, and the settings to change if it does not fit.

    It needs a model's config.json, but no weights. Well-known models need neither.
    """
    with _one_line_errors():
        from unlearn_ray.sizing.show import show_plan

        show_plan(console, config, overrides or [], gpu, usd_per_gpu_hour, num_gpus)


def _stage_command(stage: str, help: str) -> None:
    def command(
        config: ConfigArgument, overrides: OverridesArgument = None, accept_thin_data: AcceptOption = False
    ) -> None:
        _execute(config, overrides or [], only=stage, accept_thin_data=accept_thin_data)

    app.command(stage, help=help)(command)


for each in STAGES:
    if each.name == each.command and each.name != "evaluate":
        _stage_command(each.name, f"Only this stage. {each.summary}")
add_commands(app, lambda: _shell())


@app.command()
def status(run: RunArgument) -> None:
    """Say what a run has done so far."""
    with _one_line_errors():
        from unlearn_ray import console as shown
        from unlearn_ray.runs import states

        folder = _run_folder(run)
        console.print(f"[bold]{plain(folder)}[/]")
        found = states(folder)
        console.print(shown.status_table(found))
        for each in found:
            if each.reason:
                name = f"{each.label}, {each.stage}" if each.stage else each.label
                console.print(shown.failure_line(name, each.reason), soft_wrap=True)
                for line in shown.log_lines(name, each.log):
                    console.print(line, soft_wrap=True)
            elif each.training is not None:
                console.print(shown.training_line(each.label, each.training), soft_wrap=True)
        for home in _evaluated(folder):
            console.print(f"Report: {plain(home)}/report.html")


attacking.add_command(app, lambda: _attack_shell())


@app.command()
def report(
    run: RunArgument,
    open_it: Annotated[
        bool | None, typer.Option("--open/--no-open", help="Open it in a browser (default: only beside a screen).")
    ] = None,
) -> None:
    """Show a finished run's scores and open its HTML report, or print where it is."""
    with _one_line_errors():
        from unlearn_ray.evals.attacked import refresh

        homes = _evaluated(_run_folder(run))
        if not homes:
            raise ArtifactError(f"{_run_folder(run)} is unfinished: finish it with unlearn-ray run CONFIG")
        for home in homes:
            refresh(home)
            _show(home)
            console.print(f"{plain(home)}/report.html", soft_wrap=True)
        if open_it is None:
            open_it = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
        if open_it and homes[0].is_local:
            webbrowser.open((homes[0].local / "report.html").as_uri())


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs' folders, names below runs/, or YAML files.")
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page of all their topics and models as well.")
    ] = None,
) -> None:
    """Show the figures of several runs' models beside each other."""
    with _one_line_errors():
        from unlearn_ray.evals import overview
        from unlearn_ray.runs import lines_of

        folders = [_run_folder(run) for run in runs]
        lines = [line for folder in folders for line in lines_of(folder, base=_link_to(folder))]
        console.print(overview.table(lines))
        if html is not None:
            try:
                html.write_text(overview.page(", ".join(folder.name for folder in folders), lines), encoding="utf-8")
            except OSError as error:
                raise ArtifactError(f"{html} can't be written: {error.strerror or error}") from error
            console.print(f"Look at  {plain(html)}", soft_wrap=True)


def _link_to(folder: Folder) -> str:
    """A run's folder as a page elsewhere links to it."""
    return f"{folder.local.as_uri()}/" if folder.is_local else f"{folder.uri}/"


RegistryOption = Annotated[
    str | None,
    typer.Option("--registry", metavar="FOLDER", help="Where versions are published (default: runs/registry)."),
]


@app.command()
def serve(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run's folder, or its name below runs/.")],
    overrides: OverridesArgument = None,
    host: Annotated[str, typer.Option(help="127.0.0.1, or 0.0.0.0 for others too, with API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    keys: Annotated[Path | None, typer.Option(metavar="FILE", help="API keys, one a line.")] = None,
    registry: RegistryOption = None,
) -> None:
    """Serve the base model and what a run produced behind one OpenAI-compatible endpoint, until Ctrl-C.

    Settings of serve/config.yaml can be set as KEY.PATH=VALUE, such as engine.max_loras=16.
    """
    with _one_line_errors("The service has ended."):
        from unlearn_ray.serving import service, start

        prepared = start.prepare(run, overrides or [], host=host, port=port, keys=keys, registry=registry)
        for release, is_new in prepared.releases:
            console.print(f"[green]✓[/] {plain(release.id)} {'published' if is_new else 'is published already'}")
        console.print(
            f"  starting {plain(prepared.settings.model)} on {plain(host)}:{prepared.settings.port}, in about a minute ..."
        )
        with service.running(prepared.settings, host) as address:
            if prepared.settings.allow_no_keys:
                console.print("[yellow]![/] no API keys: everybody on this machine may ask (--keys FILE asks for one)")
            _list_models(prepared.settings.registry)
            console.print(f"\nEndpoint  {address}/v1   [dim]metrics {address}/metrics, state {address}/ready[/]")
            console.print(
                f"Next      {plain(shlex.join(['unlearn-ray', 'demo', run]))}   [dim]or unlearn-ray publish another run; Ctrl-C ends the service[/]"
            )
            service.stay(prepared.settings, lambda text: console.print(plain(text), soft_wrap=True))


@app.command()
def publish(
    source: Annotated[
        str, typer.Argument(metavar="RUN", help="A finished run, or a PEFT adapter's folder; local, s3:// or gs://.")
    ],
    name: Annotated[str | None, typer.Option(help="Name to serve it under (default: the topic's).")] = None,
    registry: RegistryOption = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub", metavar="OWNER/NAME", help="Also push it to this repository on the Hugging Face hub."
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Create that repository as private, if it is new.")
    ] = False,
) -> None:
    """Publish a run's result as a new version; running services take it up within a second."""
    with _one_line_errors():
        from unlearn_ray.serving import start

        found = start.publish_all(
            source,
            name,
            registry,
            repo=push_to_hub,
            is_private=private,
            on_push=lambda address: console.print(f"[green]✓[/] pushed to {plain(address)}", soft_wrap=True),
        )
        for release, is_new in found:
            console.print(
                f"[green]✓[/] {release.id} {'published' if is_new else 'is published already'}: {release.name} is now {release.id}"
            )


@app.command()
def rollback(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A model's name, such as harry-potter, or a version, harry-potter@1.")
    ],
    registry: RegistryOption = None,
) -> None:
    """Point a name back to the version before, or to the one given."""
    with _one_line_errors():
        from unlearn_ray.serving import start

        release = start.roll_back(name, registry)
        console.print(f"[green]✓[/] {release.name} is now {release.id}")


@app.command()
def models(registry: RegistryOption = None) -> None:
    """List what is published."""
    with _one_line_errors():
        _list_models(registry)


def _list_models(registry: str | None) -> None:
    from unlearn_ray.serving import start

    console.print(start.table(start.open_registry(registry).read()))


@app.command()
def demo(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="The run that is served; the service knows the rest.")
    ] = None,
    endpoint: Annotated[str, typer.Option(help="Address of the service.")] = "http://127.0.0.1:8000",
    port: Annotated[int, typer.Option(help="Port of the page.")] = 8501,
) -> None:
    """Open the Streamlit page that shows the served models side by side."""
    with _one_line_errors("The demo has ended."):
        from unlearn_ray.serving import start

        if run is not None:
            _run_folder(run)
        start.show_demo(endpoint, port)


@app.command()
def version() -> None:
    """Print the version."""
    console.print(__version__)


def run_alone(arguments: Sequence[str], name: str) -> None:
    """The command `run` as a program of its own, whose help shows what it takes itself."""
    group = typer.main.get_group(app)
    group.commands["run"].main(list(arguments), prog_name=name)


def _execute(
    path: Path,
    overrides: Sequence[str],
    *,
    file: "RunFile | None" = None,
    only: str | None = None,
    until: str | None = None,
    start: str | None = None,
    dry_run: bool = False,
    accept_thin_data: bool = False,
    fail_fast: bool = False,
) -> None:
    with _one_line_errors():
        config = file.config if file else configs.load(path, overrides)
        from unlearn_ray import console as shown
        from unlearn_ray import pipeline
        from unlearn_ray import plan as plans
        from unlearn_ray.engines.run_engines import RunEngines
        from unlearn_ray.synth.enough import ACCEPT

        selected = plans.select(only=only, until=until, start=start)
        plan = plans.plan(config, selected, redo_from=start, is_dry=dry_run)
        if dry_run:
            console.print(
                f"[bold]{config.name}[/]: {plain(config.model)} forgets {plain(', '.join(config.topic_names))}, in {plain(config.folder)}"
            )
            console.print(shown.plan_table(plan.stages))
            for note in plan.notes:
                console.print(shown.note_line(note), soft_wrap=True)
            return
        if plan.thin and not accept_thin_data:
            pipeline.refuse(plan.thin)
        arguments = [str(path), *overrides, *([ACCEPT] if accept_thin_data else [])]
        with ExitStack() as stack:
            progress = shown.Progression(console)
            logs = Path(_log_folder(config))
            engines = RunEngines(
                config, progress.update, stack, on_wait=progress.say, logs=logs, on_speed=progress.describe
            )
            if any(stage.is_selected and not stage.is_finished for stage in plan.stages):
                engines.connect()  # first, so that asking for too much leaves nothing behind
            stack.enter_context(plans.claimed(config, redo_from=start, on_wait=progress.say))
            if file:
                file.write()
            _log_to(config)
            stack.enter_context(progress)
            for note in plan.notes:
                log.warning("%s", note)
                console.print(shown.note_line(note), soft_wrap=True)

            def accepted(found: "Sequence[Shortfall]") -> None:
                if not accept_thin_data:
                    pipeline.refuse(found)
                for each in found:
                    log.warning("accepted: %s", each)
                    console.print(shown.note_line(str(each)), soft_wrap=True)

            telling = _Telling(config, plan, selected, progress)
            hooks = pipeline.Hooks(telling.started, telling.finished, telling.failed, accepted)
            try:
                pipeline.run(config, engines, selected, hooks, fail_fast=fail_fast)
            except PartialError as error:
                _index(config.folder)
                # As an error, so that the same command, --from and all, goes on and does not begin again.
                stack.__exit__(type(error), error, error.__traceback__)
                _summary(config, arguments, selected)
                raise
            except Exception:
                _index(config.folder)
                raise
            _index(config.folder)
        _summary(config, arguments, selected)


def _index(folder: Folder) -> None:
    """Write the run's page of topics and models anew, however the run ended. Storage that is away must not hide why it did."""
    from unlearn_ray.runs import write_index

    try:
        write_index(folder)
    except (ArtifactError, OSError) as error:
        log.warning("the page of topics and models in %s is not up to date: %s", folder, error)


class _Telling:
    """What the terminal and the log hear of a run: of one topic each stage, of several each topic and model."""

    def __init__(self, config: RunConfig, plan: "Plan", selected: Sequence[str], progress: "Progression") -> None:
        self._plan, self._progress, self._is_alone = plan, progress, len(config.topics) == 1
        self._last = {stage.scope: stage for stage in STAGES if stage.command in selected}

    def started(self, stage: "Stage", unit: "Unit") -> None:
        from unlearn_ray.console import start_line

        state = self._plan.state(stage, unit)
        if line := start_line(self._name(stage, unit), state):
            log.info("%s, %s: %s", unit.label, stage.name, state)
            console.print(line)

    def finished(self, stage: "Stage", unit: "Unit", manifest: Manifest) -> None:
        from unlearn_ray.console import stage_line

        self._progress.clear()
        log.info("%s, %s finished: %s", unit.label, stage.name, manifest.model_dump_json())
        is_told = self._is_alone or unit.scope == "pool" or stage is self._last[unit.scope]
        if is_told and any(manifest.num_rows.values()):
            is_skipped = self._plan.state(stage, unit) == "finished"
            console.print(stage_line(self._name(stage, unit), manifest, is_skipped))

    def failed(self, failure: "Failure") -> None:
        from unlearn_ray.console import failure_line, log_lines

        name, said = self._name(failure.stage, failure.unit), failure.log
        if not self._is_alone:
            console.print(failure_line(name, failure.reason), soft_wrap=True)
        for line in log_lines(name, said):
            console.print(line, soft_wrap=True)

    def _name(self, stage: "Stage | str", unit: "Unit") -> str:
        name = stage if isinstance(stage, str) else stage.name
        return name if self._is_alone or unit.scope == "pool" else f"{unit.label}, {name}"


def _summary(config: RunConfig, arguments: Sequence[str], selected: Sequence[str]) -> None:
    folder = config.folder
    if "evaluate" not in selected:
        again = plain(shlex.join(["unlearn-ray", "run", *arguments]))
        console.print(f"\nRows: {plain(folder)}/topics\nNext: {again}", soft_wrap=True)
        return
    homes = _evaluated(folder)
    for home in homes[:MAX_REPORTS]:
        console.print()
        _show(home)
    console.print()
    if len(homes) > MAX_REPORTS:
        console.print(f"... and {len(homes) - MAX_REPORTS} more: {plain(folder)}/models")
    for home in homes[:MAX_REPORTS]:
        console.print(f"Look at  {plain(home)}/report.html", soft_wrap=True)
        console.print(f"Model    {plain(home.parent)}/finetune/model", soft_wrap=True)
    if len(config.topics) > 1:
        console.print(f"All      {plain(folder)}/index.html", soft_wrap=True)
    again = plain(shlex.join(["unlearn-ray", "report", _address(config)]))
    console.print(
        f"Next     {again}   [dim]or your own topic: unlearn-ray forget TOPIC --model MODEL[/]",
        soft_wrap=True,
    )


def _evaluated(folder: Folder) -> list[Folder]:
    """The evaluations of a run's models that are finished."""
    from unlearn_ray.runs import evaluated

    return evaluated(folder)


def _show(home: Folder) -> None:
    """The figures of an evaluation, below what a reader must know before believing them."""
    from unlearn_ray.console import note_line
    from unlearn_ray.evals.attacked import read_attacks
    from unlearn_ray.evals.report import Report, summary_table
    from unlearn_ray.evals.sentence import sentence

    report = Report.load(home)
    for note in report.notes:
        console.print(note_line(note), soft_wrap=True)
    console.print(f"[bold]{plain(sentence(report, read_attacks(home)))}[/]\n")
    console.print(summary_table(report))


def _shell() -> Shell:
    return Shell(console, _one_line_errors, _run_folder, _evaluated, _execute, _show)


def _attack_shell() -> attacking.Shell:
    return attacking.Shell(console, _one_line_errors, _run_folder, _log_to, _log_folder)


def _address(config: RunConfig) -> str:
    """What the other commands find the run by."""
    return config.name if config.folder == Folder("runs") / config.name else config.folder.uri


def _run_folder(run: str) -> Folder:
    """A run's folder by its path, its name below runs/, or its YAML file."""
    if run.endswith((".yaml", ".yml")):
        folder = configs.load(run).folder
    else:
        folder = Folder(run)
        if not folder.exists("run.json") and "://" not in run:
            folder = Folder("runs") / run
    if not folder.exists("run.json"):
        raise ArtifactError(f"{run} is not a run: give a run's folder, its name below runs/, or its YAML file")
    from unlearn_ray.runs import check_layout

    check_layout(folder)
    return folder


def _log_folder(config: RunConfig) -> str:
    """Logs go into the run's folder, or into runs/ here where that folder is in remote storage."""
    folder = config.folder
    return str((folder if folder.is_local else Folder("runs") / config.name) / "logs")


def _log_to(config: RunConfig) -> None:
    """Everything the driver logs goes to a file of this start; the console stays quiet."""
    folder = Path(_log_folder(config))
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"{datetime.now():%Y%m%d-%H%M%S}.log", encoding="utf-8")
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    log.info("%s: %s", shlex.join(sys.argv), config.model_dump_json())


class _OneLine(logging.Formatter):
    """A message is one line of the log, whatever users and models wrote into it; tracebacks keep theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = visible(record.message)
        return super().formatMessage(record)


@contextmanager
def _one_line_errors(farewell: str = "Stopped. The same command goes on where this one ended.") -> Iterator[None]:
    """Bad input is one line and exit code 2, work of which a part failed a line each and 3, an engine that failed a line and 1, Ctrl-C or
    a job's stop a line and 130; all else keeps its traceback."""
    signal.signal(signal.SIGTERM, _interrupt)  # how clusters stop a job
    logging.getLogger().addHandler(
        logging.NullHandler()
    )  # without one, Python prints what is logged here a second time
    try:
        yield
    except UnlearnError as error:
        log.error("%s", error)
        for line in error.lines:
            errors.print(f"[red]unlearn-ray:[/] {plain(line)}", soft_wrap=True)
        raise typer.Exit(error.exit_code) from error
    except StorageError as error:
        log.exception("storage failed")
        errors.print(f"[red]unlearn-ray:[/] {plain(error)}", soft_wrap=True)
        errors.print("The same command goes on where this one ended.")
        raise typer.Exit(error.exit_code) from error
    except EngineError as error:
        log.exception("an engine failed")
        for line in str(error).splitlines() or [type(error).__name__]:
            errors.print(f"[red]unlearn-ray:[/] {plain(line)}", soft_wrap=True)
        errors.print("The run's log has more; the same command goes on where this one ended.")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        errors.print(f"\n{farewell}")
        raise typer.Exit(130) from error


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt
