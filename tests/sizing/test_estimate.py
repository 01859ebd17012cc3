"""The plan of a run's cost, of the shipped configs and others, on each kind of GPU."""

from pathlib import Path

import pytest

from unlearn_ray import config as configs
from unlearn_ray.config import RunConfig
from unlearn_ray.errors import ConfigError
from unlearn_ray.sizing.estimate import Estimate, estimate
from unlearn_ray.sizing.gpus import DEVICES
from unlearn_ray.sizing.shapes import shape_of
from unlearn_ray.sizing.show import checkpoints_in_words, misfit_line, shape_source

SHIPPED = Path(__file__).parents[2] / "jobs" / "configs"
GPUS = [name for name in DEVICES if name != "cpu"]


def planned(name: str, *overrides: str, gpu: str = "h100", num_gpus: int | None = None) -> tuple[RunConfig, Estimate]:
    config = configs.load(SHIPPED / f"{name}.yaml", overrides)
    return config, estimate(config, shape_of(shape_source(config)), gpu, num_gpus)


@pytest.mark.parametrize("name", ["llama3-8b-lora", "llama3-8b-full"])
@pytest.mark.parametrize("gpu", ["h100", "a100", "h200", "b200"])
def test_the_shipped_8b_configs_fit_where_they_say_they_do(name: str, gpu: str) -> None:
    """GPUs of 80 GB and more."""
    config, found = planned(name, gpu=gpu)
    assert found.misfits == ()
    finetune = next(stage for stage in found.stages if stage.name == "finetune")
    assert finetune.gpus == found.num_gpus == 8  # none of them idle
    assert config.cluster.workers.gradient_checkpointing == "none"  # memory allows to recompute nothing
    assert finetune.memory < DEVICES[gpu].memory


def test_every_stage_has_its_figures() -> None:
    config, found = planned("llama3-8b-lora")
    assert [stage.name for stage in found.stages] == ["questions", "answers", "dataset", "finetune", "evaluate"]
    for stage in found.stages:
        assert stage.rows > 0 and stage.tokens > 0 and stage.flops > 0 and stage.seconds > 0 and stage.memory > 0
    assert next(iter(found.stages)).rows == 3 * 2000
    assert found.cost(2.0) == pytest.approx(2 * found.gpu_hours) and found.gpu_hours > 0
    trained = next(stage for stage in found.stages if stage.name == "finetune")
    assert trained.rows == 3 * 600 * (32 + 32)
    assert config.topic_names  # of each topic a training


def test_twice_the_steps_take_twice_the_tokens_and_nearly_twice_the_time() -> None:
    _, once = planned("llama3-8b-full")
    _, twice = planned("llama3-8b-full", "finetune.num_steps=1800")
    first, second = once.stages[3], twice.stages[3]
    assert second.tokens == 2 * first.tokens and second.flops == 2 * first.flops
    assert 1.5 < second.seconds / first.seconds < 2
    assert twice.checkpoints == 35


def test_a_topic_with_steps_of_its_own_is_counted_with_them() -> None:
    _, plain = planned("llama3-8b-lora")
    _, own = planned(
        "llama3-8b-lora", "topics.0.finetune={num_steps: 1200}", "topics.1.questions={num_questions: 4000}"
    )
    assert own.stages[3].rows == plain.stages[3].rows + 600 * 64
    assert own.stages[0].rows == plain.stages[0].rows + 2000
    assert own.stages[3].seconds > plain.stages[3].seconds


def test_what_an_endpoint_serves_takes_no_gpu_of_the_runs_own() -> None:
    _, found = planned("llama3-8b-lora", "cluster.engines={kind: openai, base_url: 'http://host:8000/v1'}")
    assert [stage.gpus for stage in found.stages[:3]] == [0, 0, 0] and found.stages[4].gpus == 8


def test_checkpoints_are_counted_as_they_are_written() -> None:
    config, found = planned("llama3-8b-full")
    assert checkpoints_in_words(config, found).startswith(
        "2 x 96.4 GB = 192.7 GB at most (17 are written, every 50 of 900 steps"
    )


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.3-70B-Instruct", "google/gemma-2-27b-it"])  # fmt: skip
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", ["llama3-8b-lora", "llama3-8b-full"])
def test_what_is_said_to_fit_does(model: str, gpu: str, name: str) -> None:
    """A red line names settings, and with those there is none of its kind left."""
    _, found = planned(name, f"model={model}", gpu=gpu, num_gpus=64)
    for misfit in found.misfits:
        assert misfit.needed > misfit.there
        line = misfit_line(misfit)
        assert line.startswith("[red]") and "\n" not in line
        if misfit.settings:
            assert all(setting in line for setting in misfit.settings)
            _, changed = planned(name, f"model={model}", *misfit.settings, gpu=gpu, num_gpus=64)
            assert misfit.stage not in {left.stage for left in changed.misfits}


def test_a_70b_model_on_one_gpu_an_engine_is_told_how_many_it_needs() -> None:
    _, found = planned("llama3-8b-lora", "model=meta-llama/Llama-3.1-70B-Instruct")
    engines = next(misfit for misfit in found.misfits if misfit.stage == "engines")
    assert engines.settings == ("cluster.engines.tensor_parallel_size=2",)


def test_the_mildest_change_is_named() -> None:
    """A pass of many rows is made smaller before anything is recomputed or shared out."""
    _, found = planned("llama3-8b-lora", "cluster.workers.micro_batch=32", "cluster.workers.num_workers=1", "finetune.forget_batch=32")  # fmt: skip
    (misfit,) = found.misfits
    assert [setting.partition("=")[0] for setting in misfit.settings] == ["cluster.workers.micro_batch"]


def test_of_a_choice_of_workers_the_fewest_must_fit_and_the_most_count_for_time() -> None:
    one, (_, span) = planned("llama3-8b-lora", "cluster.workers.num_workers=1")[1], planned("llama3-8b-lora", "cluster.workers.num_workers=[1, 4]", num_gpus=8)  # fmt: skip
    four = planned("llama3-8b-lora", "cluster.workers.num_workers=4", num_gpus=8)[1]
    assert span.worker == one.worker and span.step_seconds == four.step_seconds
    planned("llama3-8b-lora", "cluster.workers.num_workers=[1, 16]", num_gpus=8)  # takes as many as there are
    with pytest.raises(ConfigError, match="num_workers: 9 GPUs are asked for, and there are 8"):
        planned("llama3-8b-lora", "cluster.workers.num_workers=[9, 16]", num_gpus=8)


def test_the_engines_of_the_cpu_plan_share_its_memory() -> None:
    _, found = planned("pocket", gpu="cpu")
    assert found.num_gpus == 1 and found.misfits == ()
    assert 0 < found.seconds < 3600


@pytest.mark.parametrize(
    ("gpu", "num_gpus", "overrides", "said"),
    [
        ("h1000", None, (), "--gpu: there is no 'h1000': choose one of h100"),
        ("h100", 2, (), "cluster.workers.num_workers: 8 GPUs are asked for, and there are 2 (--num-gpus)"),
        ("h100", 8, ("cluster.engines.tensor_parallel_size=16",), "cluster.engines: 16 GPUs"),
    ],
)
def test_what_there_is_not_is_one_line(gpu: str, num_gpus: int | None, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        planned("llama3-8b-full", *overrides, gpu=gpu, num_gpus=num_gpus)
    assert said in str(refused.value)


def test_a_training_too_short_for_a_checkpoint_says_so() -> None:
    config, found = planned("smollm2", gpu="cpu")
    assert checkpoints_in_words(config, found) == "none in 40 steps (one every 50)"
    assert found.checkpoint_space == 0
