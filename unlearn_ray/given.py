"""A model or adapter that no run of ours made, evaluated on a file of probes against its base, with the same metrics and report.

FOLDER/given/      what a run would have made: a link to the model, and no training rows
FOLDER/evaluate/   the report and its answers
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearn_ray import config as configs
from unlearn_ray.artifacts import Folder, fingerprint_of
from unlearn_ray.config import SHIPPED_PROBES, RunConfig, path_of
from unlearn_ray.engines.protocols import Generator
from unlearn_ray.engines.weights import local_copy
from unlearn_ray.errors import ArtifactError, InputError, ModelError, gist
from unlearn_ray.evals.probes import read_probes
from unlearn_ray.plan import check_files, check_model, identity_of
from unlearn_ray.rows import Example, slug_of
from unlearn_ray.runs import MARKER
from unlearn_ray.stages.card import EXPORT
from unlearn_ray.stages.evaluate import EVALUATE, Before, evaluate, evaluate_identity
from unlearn_ray.stages.finetune import FINETUNE
from unlearn_ray.stages.mixture import MIXTURE
from unlearn_ray.stages.stage import Identity, open_stage
from unlearn_ray.synth.guardrails import guardrails_of
from unlearn_ray.train.identity import model_identity
from unlearn_ray.train.inspection import Inspected, inspect_model
from unlearn_ray.train.modelfiles import open_model
from unlearn_ray.train.tokens import tokens_of

NOTE = "The model was not made by this run: whether it was trained on these probes is not known."
_ADAPTER = "adapter_config.json"
_MADE = "given"  # in the folder of a report: what a run would have made
_OF_A_MODEL = (MIXTURE.name, FINETUNE.name)  # stages in the folder of a run's model
_NUM_DIGITS = 8  # of the digest in a folder's name
_MAX_COMPARED = 200  # texts of probes that both tokenizers encode


@dataclass(frozen=True, slots=True)
class Given:
    """What is evaluated."""

    config: RunConfig  # of base, with the probes' topics and the shape of the adapter
    model: Path
    base: Inspected
    folder: Folder


def given(
    model: str,
    against: str,
    probes: str,
    topics: Sequence[str] = (),
    output: str | None = None,
    overrides: Sequence[str] = (),
) -> Given:
    """What a user names, looked at before anything is started.

    Args:
        model: folder, local or in remote storage, or hub name, of a model or of an adapter.
        against: the base model.
        topics: that were to be forgotten; none: those that probes stand beside (`near`), or the only one there is.

    Raises:
        UnlearnError: what can't be used, in one line; or that the folder of its report holds something else.
    """
    if not topics:
        topics = _topics_in(probes)
    folder = _folder_of(model)
    values = {
        "name": _name_of(model),
        "model": against,
        "topics": [{"name": topic} for topic in topics],
        "evaluate": {"probes": probes},
        "finetune": {"weights": _weights(folder)},
    }
    for override in overrides:
        configs.apply_override(values, override)
    config = configs.parse(values, source=f"--model {model}")
    base = inspect_model(config.model_path, config.chat)
    check_files(config, base, check_model(config, base))
    if not (folder / _ADAPTER).is_file():
        _check_tokenizer(folder, base, model, config)
    home = Folder(output) if output else _default_home(config, folder)
    _check_home(home)
    return Given(config, folder, base, home)


def evaluate_given(what: Given, evaluator: Callable[[], Generator]) -> Folder:
    """Ask base, base + prefix and the model; returns the folder of the report. What is finished is not done again.

    Args:
        evaluator: engines on the base model; called when there is something to ask.

    Raises:
        InputError: no probe is left.
    """
    config, topics = what.config, what.config.topics
    guardrail = guardrails_of(config, topics)
    # Made first: it marks the folder as one of these, whose report may be replaced.
    made = (what.folder / _MADE).make()
    stage = open_stage(what.folder / EVALUATE.name, EVALUATE.name, EVALUATE.version, *_identity(config, what.model))
    if stage.is_finished:
        return stage.folder
    for table in ("forget", "retain"):
        (made / "mixture" / table).write_rows([], Example.schema())
    link = (made / "finetune").make().local / EXPORT
    link.unlink(missing_ok=True)
    link.symlink_to(what.model.absolute(), target_is_directory=True)
    before = Before(
        mixture=made / "mixture",
        finetuned=made / "finetune",
        terms={topic.name: made / "terms" / topic.slug for topic in topics},
        stages={},
        max_tokens=config.answers.max_tokens,
    )
    evaluate(
        stage,
        config.evaluate,
        topics,
        before,
        evaluator(),
        run=config.name,
        model_path=config.model_path,
        guardrail=guardrail,
        seed=config.seed,
        notes=[NOTE],
    )
    return stage.folder


def _identity(config: RunConfig, model: Path) -> Identity:
    """What the report follows from: the probes, the base model, the topics, and the model itself by its content."""
    guardrail = guardrails_of(config, config.topics)
    values, inputs = evaluate_identity(
        config.evaluate, config.topics, model=identity_of(config), guardrail=guardrail, seed=config.seed
    )
    return values, inputs | {"given": model_identity(str(model))}


def _default_home(config: RunConfig, model: Path) -> Folder:
    """A folder per model and probes: models of the same name, such as `checkpoint-100` of two trainings, do not share one."""
    digest = fingerprint_of(EVALUATE.name, EVALUATE.version, *_identity(config, model))
    return Folder("runs") / f"evaluated-{config.name}-{digest[:_NUM_DIGITS]}"


def _check_home(home: Folder) -> None:
    """Refuse a folder whose `evaluate/` is not of this command: it would be deleted.

    Raises:
        ArtifactError: says so.
    """
    names = set(home.names())
    is_own = _MADE in names or not (home / EVALUATE.name).names()
    if not is_own or names & {MARKER, *_OF_A_MODEL}:
        raise ArtifactError(f"{home} holds something else: choose another --output")


def _topics_in(probes: str) -> list[str]:
    """
    Raises:
        InputError: the file leaves it open which topics were to be forgotten.
    """
    counts, neighbours = Counter[str](), dict[str, None]()
    for probe in read_probes(str(SHIPPED_PROBES.get(probes, probes))):
        counts[probe.topic] += 1
        neighbours |= dict.fromkeys(probe.near)
    found = [topic for topic in neighbours if topic in counts] or (list(counts) if len(counts) == 1 else [])
    if not found:
        listed = ", ".join(topic for topic, _ in counts.most_common(6))
        raise InputError(
            f"{probes} does not say which topics were to be forgotten: name them with --topic (its topics: {listed})"
        )
    return found


def _folder_of(model: str) -> Path:
    """The folder of a model or adapter on this machine's disk; from the hub it is fetched.

    Raises:
        ModelError: it isn't there.
    """
    if "://" in model:
        return local_copy(model)
    folder = Path(path_of(model)).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in (_ADAPTER, "config.json")):
            raise ModelError(f"--model {model} is not a model folder: it has neither config.json nor {_ADAPTER}")
        return folder
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise ModelError(
            f"--model {model} is not there: give the folder of a model or adapter, or a name on the Hugging Face hub"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model))
    except Exception as error:  # of the hub, of HTTP or of the disk, each with classes of its own
        raise ModelError(f"--model {model} can't be fetched from the Hugging Face hub: {gist(error)}") from error


def _weights(folder: Path) -> dict[str, object]:
    """The shape of an adapter, as the config of a run has it; of a model that it is one."""
    file = folder / _ADAPTER
    if not file.is_file():
        return {"kind": "full"}
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        rank, targets = int(said["r"]), said.get("target_modules")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} can't be read: give an adapter of PEFT's LoRA ({gist(error)})") from error
    # What is written as a pattern reaches layers that nothing here names: room is made for all.
    is_list = isinstance(targets, list) and targets and all(isinstance(each, str) for each in targets)
    return {"kind": "lora", "rank": rank, "target_modules": sorted(targets) if is_list else "all-linear"}


def _check_tokenizer(folder: Path, base: Inspected, model: str, config: RunConfig) -> None:
    """Refuse a model whose tokenizer is not base's: what one token of theirs is, is another share of an answer.

    Raises:
        ModelError: says so, or that the model can't be used.
    """
    own = tokens_of(open_model(str(folder)))
    path = config.evaluate.probes_path
    texts = [
        text
        for probe, _ in zip(read_probes(str(path)), range(_MAX_COMPARED), strict=False)
        for text in (probe.question, probe.answer)
    ]
    for text in texts:
        if own.encode(text) != base.tokens.encode(text):
            raise ModelError(
                f"--model {model} has another tokenizer than --against {config.model}: figures per token can't be compared; give the model that it was made from"
            )


def _name_of(model: str) -> str:
    """What the report calls it: of a run's export, the name of the model in the run."""
    parts = [part for part in model.rstrip("/").split("/") if part not in ("", ".", "..")]
    while len(parts) > 1 and parts[-1] in (EXPORT, FINETUNE.name):
        parts.pop()
    return slug_of(parts[-1] if parts else model)
