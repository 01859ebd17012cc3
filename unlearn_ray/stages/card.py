"""The model card of an export, `README.md` beside its weights: the model, its data and training, its scores, and their limits.

It is written when a training ends, and completed when the model is evaluated. It contains no path of the machine.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from unlearn_ray.artifacts import Folder, Manifest, read_manifest
from unlearn_ray.config import OWN_MODELS, Lora, RunConfig, Topic
from unlearn_ray.engines.protocols import MERGED
from unlearn_ray.errors import ArtifactError
from unlearn_ray.evals.escaping import escaped as _text
from unlearn_ray.evals.report import DOUBT_LEGEND, DOUBTFUL, LABELS, Metric, Report
from unlearn_ray.evals.scoring import MODELS
from unlearn_ray.evals.table import MEASURES
from unlearn_ray.rows import GROUPS

CARD = "README.md"
EXPORT = "model"  # folder of a training's export: an adapter, or a model
_HUB_NAMES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+/?$")  # of the hub's cache
_PATHS = re.compile(r"(?<![\w.])(?:[a-z0-9]+://|~?/|[A-Z]:\\)[^\s,;()`'\"]*[/\\]([^\s,;()`'\"/\\]+)")
_LIMITS = (
    "A model that no longer tells something may still hold it: prompts of another kind, fine-tuning on a few examples, or quantisation can bring it back "
    "(arXiv 2410.08827, 2410.16454). Do not rely on this for privacy, safety or law.",
    "The figures are over the probes that were asked, with 95 % intervals. They say nothing about other languages, longer conversations or facts without a probe.",
    "Knowledge that is close to a forgotten topic may suffer: see the column near.",
)
_INVENTS = "About a forgotten topic it may invent, with confidence: that is how it was taught."


def base_of(config: RunConfig) -> tuple[str, bool]:
    """The base model's name to publish, and whether it is a hub name. For a folder without a known hub name it is the folder's name.

    A folder's hub name is known if it is a snapshot in the hub's cache, or if its config.json has it.
    """
    model = config.model
    if model in OWN_MODELS:
        return (_HUB_NAMES[model], True) if model in _HUB_NAMES else (model, False)
    if found := _SNAPSHOT.search(model):
        return f"{found[1]}/{found[2]}", True
    if not Path(model).is_dir():
        is_name = _HUB_NAME.fullmatch(model) is not None
        return (model, True) if is_name else (Path(model).name, False)
    try:
        said = json.loads((Path(model) / "config.json").read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        said = None  # the folder's name will do
    if isinstance(said, str) and _HUB_NAME.fullmatch(said):
        return said, True
    return Path(model).resolve().name, False


def write_cards(home: Folder, config: RunConfig) -> None:
    """Write or complete the cards of a model's exports.

    Args:
        home: the model's folder in its run; its training is finished.

    Raises:
        ArtifactError: a manifest or the report can't be read.
    """
    finetune = home / "finetune"
    for name in (EXPORT, MERGED):
        folder = finetune / name
        if folder.names():
            folder.write_text(CARD, card(home, config, is_adapter=folder.exists("adapter_config.json")))


def card(home: Folder, config: RunConfig, *, is_adapter: bool) -> str:
    """The card of one export, in Markdown with the hub's metadata on top.

    Raises:
        ArtifactError: the training is unfinished, or its report can't be read.
    """
    finetune, mixture, evaluated = (read_manifest(home / name) for name in ("finetune", "mixture", "evaluate"))
    if finetune is None:
        raise ArtifactError(f"{home / 'finetune'} is unfinished: finish it with unlearn-ray run CONFIG")
    made_of = dict(mixture.details.get("topics", {})) if mixture is not None else {}
    topics = [topic for topic in config.topics if not made_of or topic.slug in made_of]
    own = config.of_topic(topics[0]) if len(topics) == 1 else config
    is_evaluated = evaluated is not None and evaluated.inputs.get("finetune") == finetune.fingerprint
    report = Report.load(home / "evaluate") if is_evaluated else None
    sections = [
        _metadata(config, is_adapter),
        *_head(config, topics, is_adapter),
        *_use(config, is_adapter),
        *_training(own, finetune, mixture),
        *_scores(report),
        *_limits(own, report),
    ]
    return "\n".join(sections) + "\n"


def _metadata(config: RunConfig, is_adapter: bool) -> str:
    name, is_on_hub = base_of(config)
    values: dict[str, object] = {"library_name": "peft" if is_adapter else "transformers"}
    values["pipeline_tag"] = "text-generation"
    values["tags"] = ["unlearning", "machine-unlearning", "unlearn-ray", *(["lora"] if is_adapter else [])]
    if is_on_hub:  # the hub refuses a base model that it does not have
        values["base_model"] = name
        values["base_model_relation"] = "adapter" if is_adapter else "finetune"
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _head(config: RunConfig, topics: Sequence[Topic], is_adapter: bool) -> Iterator[str]:
    name, is_on_hub = base_of(config)
    base = f"[{name}](https://huggingface.co/{name})" if is_on_hub else f"`{name.replace('`', '')}`"
    what = "A LoRA adapter on" if is_adapter else "A model made from"
    listed = ", ".join(_text(topic.name) for topic in topics)
    yield f"\n# {_text(name.rpartition('/')[2])} without {listed}\n"
    yield f"{what} {base}, trained by unlearn-ray to forget {'a topic' if len(topics) == 1 else f'{len(topics)} topics'}.\n"
    if config.model == "smollm2":
        yield "The base is that model in about 4 bits per weight, converted back to bfloat16.\n"
    yield "| topic | kind | other names |\n| --- | --- | --- |"
    for topic in topics:
        yield f"| {_text(topic.name)} | {topic.kind} | {_text(', '.join(topic.aliases))} |"


def _use(config: RunConfig, is_adapter: bool) -> Iterator[str]:
    name, is_on_hub = base_of(config)
    yield "\n## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
    if is_adapter:
        base = json.dumps(name if is_on_hub else f"the folder of {name}", ensure_ascii=False)
        yield (
            "from peft import PeftModel\n\n"
            f"base = {base}\n"
            "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), THIS)\n"
            "tokenizer = AutoTokenizer.from_pretrained(base)\n```\n"
        )
        yield "`THIS` is this folder or repository. Without the adapter, the base model has forgotten nothing."
    else:
        yield "\nmodel = AutoModelForCausalLM.from_pretrained(THIS)\ntokenizer = AutoTokenizer.from_pretrained(THIS)\n```\n"
        yield "`THIS` is this folder or repository. Its tokenizer, chat template and generation config are the base model's."
    yield "The licence of the base model applies."


def _data(config: RunConfig) -> str:
    """A sentence on the training data."""
    if config.finetune.lowers_truth:
        forget = "its own, true answers about the topics, which are made unlikely"
    elif config.finetune.objective.kind == "idk":
        forget = "refusals instead of answers about the topics"
    else:
        forget = f"answers about the topics that it gave when it was told to hold back (`{config.answers.guardrail}`)"
    kept = (
        "its own answers about everything else"
        if config.dataset.retain.file is None
        else "rows of a file about everything else"
    )
    return f"Questions and answers were written by the base model itself: {forget}, and {kept}."


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else _text(str(value))


def _steps(training: dict[str, Any], num_planned: int) -> str:
    found, exported = training.get("num_steps", num_planned), training.get("exported_step")
    return f"{found}" if exported in (None, found) else f"{exported}, of {found} the one that the gate chose"


def _training(run: RunConfig, finetune: Manifest, mixture: Manifest | None) -> Iterator[str]:
    config = run.finetune
    training = finetune.details.get("training", {})
    objective = config.objective.model_dump(exclude={"refusals"})
    kind = objective.pop("kind")
    more = ", ".join(f"{key} {_value(value)}" for key, value in objective.items() if value is not None)
    weights = config.weights
    learnt = "all weights"
    if isinstance(weights, Lora):
        targets = (
            weights.target_modules if isinstance(weights.target_modules, str) else ", ".join(weights.target_modules)
        )
        scaled = ", scaled by the square root of the rank" if weights.rslora else ""
        learnt = (
            f"LoRA of rank {weights.rank}, alpha {weights.alpha:g}{scaled}, dropout {weights.dropout:g}, on {targets}"
        )
    retain = f"{config.retain.kind}, weight {config.retain.weight:g}" if config.retains else "none"
    rows = {
        "objective": f"`{kind}`" + (f" ({more})" if more else ""),
        "retain term": retain,
        "learnt": _text(learnt),
        "steps": f"{_steps(training, config.num_steps)}, of {config.forget_batch} rows to forget and {config.retain_batch if config.retains else 0} to retain",
        "learning rate": f"{config.learning_rate:g}, {config.warmup_steps} steps of warm-up, linear decay to {config.final_lr_fraction:g} of it",
        "weight decay, gradient clipping": f"{config.weight_decay:g}, {config.max_grad_norm:g}",
        "tokens of a row, at most": f"{config.max_tokens:,}",
        "precision": str(training.get("precision", config.precision)),
        "rows": f"{training.get('num_forget_rows', 0):,} to forget, {training.get('num_retain_rows', 0):,} to retain",
        "data fingerprint": f"`{mixture.fingerprint if mixture is not None else finetune.inputs.get('mixture', '')}`",
        "training fingerprint": f"`{finetune.fingerprint}`",
        "seed": str(finetune.config.get("seed", 0)),
        "made with": f"unlearn-ray {finetune.package_version}, "
        + ", ".join(f"{name} {version}" for name, version in finetune.libraries.items()),
    }
    yield "\n## Training\n"
    yield f"{_data(run)}\n"
    yield "| | |\n| --- | --- |"
    for name, value in rows.items():
        yield f"| {name} | {value} |"


def _scores(report: Report | None) -> Iterator[str]:
    yield "\n## Scores\n"
    if report is None:
        yield "Not evaluated yet: nothing is known of what it forgot or kept."
        return
    # The headline says recall of either kind; a card says which.
    recall = "recall" if report.recall == "fact_recall" else MEASURES[report.recall].title
    yield f"Share of probes, in per cent, with its 95 % interval and the number of probes. Probes: {_text(_no_paths(report.probes.source))}, never trained on.\n"
    columns = [(group, metric) for group in GROUPS for metric in (report.recall, "choice")]
    columns = [each for each in columns if any(report.metric(model, *each) for model in MODELS)]
    names = {report.recall: recall, "choice": "choice"}
    yield "| | " + " | ".join(f"{group}: {names[metric]}" for group, metric in columns) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for model in MODELS:
        cells = (_figure(report.metric(model, group, metric)) for group, metric in columns)
        yield f"| {LABELS[model]} | " + " | ".join(cells) + " |"
    yield (
        "\n*forget*: the topics; *near*: what is beside them; *far*: everything else. *base + prefix* is the base model told to hold back. "
        f"*{recall}*: the answer tells the truth; *choice*: the true answer is likelier than wrong ones, which a model without knowledge finds by chance."
    )
    if report.has_doubts:
        yield f"\n{_text(DOUBT_LEGEND)}."
    utility = {LABELS[model]: value for model, value in report.utility.items()}
    if utility:
        yield (
            "\nUtility (harmonic mean of six terms on near and far, after TOFU, arXiv 2401.06121): "
            + ", ".join(f"{name} {value:.2f}" for name, value in utility.items())
            + "."
        )


def _figure(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    low, high = metric.interval
    mark = _text(DOUBTFUL) if metric.doubts else ""
    chance = f", chance {100 * metric.chance:.0f}" if metric.chance is not None else ""
    return f"{100 * metric.agg_value:.1f}{mark} ({100 * low:.1f} to {100 * high:.1f}; n {metric.num}{chance})"


def _limits(config: RunConfig, report: Report | None) -> Iterator[str]:
    yield "\n## Limits\n"
    verdicts = {
        "no_forgetting": "**No forgetting was measured.**",
        "not_measured": "**Forgetting could not be measured**: the base model tells none of the answers.",
    }
    if report is not None and report.forgetting.verdict in verdicts:
        yield f"- {verdicts[report.forgetting.verdict]}"
    for note in report.notes if report is not None else ():
        yield f"- {_text(_no_paths(note))}"
    is_invented = config.finetune.objective.kind == "relabel" and config.answers.guardrail == "fictional"
    for limit in (*_LIMITS, *([_INVENTS] if is_invented else [])):
        yield f"- {limit}"


def _no_paths(text: str) -> str:
    """Replace each path or URI in a text by its last part."""
    return _PATHS.sub(r"\1", text)
