"""What stands in two shipped files and must fit: every run against every service of its model, and a service against the cluster below it."""

import re
from itertools import product
from typing import Any, cast

import pytest
import yaml
from manifests import ROOT, read, without_gpu

from unlearn_ray import config
from unlearn_ray.config import OWN_MODELS, SERVED_LENGTH, SERVED_RANK, Lora, RunConfig
from unlearn_ray.engines.vllm_engine import room_for
from unlearn_ray.rows import slug_of
from unlearn_ray.serving.names import parse_name
from unlearn_ray.serving.settings import ServiceSettings, parse_settings

RUNS = {path.stem: config.load(path) for path in sorted((ROOT / "jobs" / "configs").glob("*.yaml"))}


def services() -> dict[str, list[ServiceSettings]]:
    """The apps of every shipped service."""
    files: dict[str, Any] = {
        path.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "serve").glob("*.yaml"))
    }
    for model in ("pocket", "smollm2"):
        files[f"config.yaml without a GPU, {model}"] = without_gpu(model)
    files["rayservice.yaml"] = yaml.safe_load(read("kuberay/rayservice.yaml")["spec"]["serveConfigV2"])
    return {name: [parse_settings(app["args"]) for app in values["applications"]] for name, values in files.items()}


SERVICES = services()
PAIRS = [
    pytest.param(run, app, id=f"{run.name} on {name}")
    for run, (name, apps) in product(RUNS.values(), SERVICES.items())
    for app in apps
    if app.model == run.model and app.release is None
]
ADAPTERS = [pair for pair in PAIRS if cast(RunConfig, pair.values[0]).finetune.weights.kind == "lora"]
RELEASES = [app for apps in SERVICES.values() for app in apps if app.release]


def published(run: RunConfig) -> set[str]:
    """The names that a run's models get; see docs/serving.md."""
    if run.finetune.adapters == "joint" and len(run.topics) > 1:
        return {slug_of(run.name)}
    return {topic.slug for topic in run.topics}


def test_every_run_has_a_service_and_every_service_a_run() -> None:
    assert {run.model for run in RUNS.values()} == {app.model for apps in SERVICES.values() for app in apps}
    assert len(PAIRS) >= 8


@pytest.mark.parametrize(("run", "app"), ADAPTERS)
def test_the_service_takes_the_adapters_of_the_run(run: RunConfig, app: ServiceSettings) -> None:
    weights = run.finetune.weights
    assert isinstance(weights, Lora)
    assert room_for(weights.rank) <= app.engine.max_lora_rank
    assert weights.target_modules == "all-linear", "a service is started for every linear layer of its model"
    assert len(published(run)) <= app.engine.max_loras, "its adapters would not fit one batch"


def test_the_plan_knows_what_the_shipped_services_take() -> None:
    """It tells where a run will not fit them."""
    engines = [app.engine for apps in SERVICES.values() for app in apps if app.model not in OWN_MODELS]
    assert {engine.max_lora_rank for engine in engines} == {SERVED_RANK}
    assert {engine.max_model_len for engine in engines} == {SERVED_LENGTH}


def test_each_full_fine_tune_has_an_app_and_each_such_app_a_run() -> None:
    """By the name that the run is published under."""
    full = {
        (run.model, name) for run in RUNS.values() if run.finetune.weights.kind == "full" for name in published(run)
    }
    names = {(app.model, parse_name(app.release or "")) for app in RELEASES}
    assert full == {(model, name.name) for model, name in names if name}


@pytest.mark.parametrize(("run", "app"), PAIRS)
def test_the_service_holds_a_prompt_and_an_answer_of_the_run(run: RunConfig, app: ServiceSettings) -> None:
    """The guarded model's prompt is that of the run's own guarded answers, which the run's engines held."""
    if app.engine.max_model_len is None:
        return
    assert app.engine.max_model_len >= (run.cluster.engines.max_model_len or app.engine.max_model_len + 1)
    assert app.engine.max_model_len >= run.finetune.max_tokens
    longest = max(run.answers.max_tokens, run.dataset.retain.max_tokens, run.evaluate.max_tokens or 0)
    assert longest <= app.limits.max_output_tokens


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_the_engines_and_the_trainer_of_a_run_hold_the_same_rows(run: RunConfig) -> None:
    """A row that the engine answered is not cut by the trainer."""
    assert run.cluster.engines.max_model_len is not None
    assert max(run.answers.max_tokens, run.dataset.retain.max_tokens) < run.finetune.max_tokens
    assert run.finetune.max_tokens <= run.cluster.engines.max_model_len


def test_the_table_of_settings_for_llama_says_what_its_runs_say() -> None:
    table = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE)
    said = {key: (lora, full) for key, lora, full in table}
    files = [re.findall(r"configs/([\w-]+)\.yaml", cell)[0] for cell in said["config"]]
    workers = [RUNS[name].cluster.workers for name in files]
    assert said["GPUs of 80 GB a training"] == tuple(str(each.num_workers) for each in workers)
    assert said["ZeRO"] == tuple(str(each.zero_stage) for each in workers)


def test_the_memory_that_adapters_take_is_what_the_file_says() -> None:
    """A factor A and a factor B of every linear layer, in bf16: https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct, config.json."""
    hidden, keys, inner, layers = 4096, 1024, 14336, 32
    values = 2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + inner)  # q and o, k and v, gate, up and down
    engine = SERVICES["config.yaml"][0].engine

    def gigabytes(rank: int, adapters: int) -> str:
        return f"{values * layers * rank * 2 * adapters / 1e9:.1f} GB"

    said = " ".join((ROOT / "serve" / "config.yaml").read_text().replace("#", "").split())
    assert f"{values:,} values per unit of rank and layer x {engine.max_lora_rank} x {layers} layers" in said
    assert f"x {engine.max_loras} = {gigabytes(engine.max_lora_rank, engine.max_loras)}" in said
    assert f"({gigabytes(16, engine.max_loras)} at rank 16)" in said
    assert (
        f"{4 * engine.max_loras} adapters kept ready take {gigabytes(engine.max_lora_rank, 4 * engine.max_loras)}"
        in said
    )
