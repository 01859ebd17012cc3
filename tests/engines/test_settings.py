"""What a plan says of `cluster.engines`, before anything starts."""

import dataclasses

import pytest

from unlearn_ray.config import ClusterConfig, EndpointSettings, EngineResources, Lora, RunConfig, Topic
from unlearn_ray.engines.session import engine_span, num_engines
from unlearn_ray.engines.settings import argument_names, check_arguments, check_arguments_without_gpu, notes_on
from unlearn_ray.engines.vllm_engine import EngineSpec, engine_arguments
from unlearn_ray.errors import ClusterError, ConfigError
from unlearn_ray.plan import plan


def with_arguments(**arguments: object) -> EngineResources:
    return EngineResources(args=arguments)


@pytest.mark.real
def test_the_names_that_are_read_are_those_of_vllms_own_class() -> None:
    from vllm import EngineArgs

    assert argument_names() == {
        field.name for field in dataclasses.fields(EngineArgs) if not field.name.startswith("_")
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "swap_spaces",
            r"args\.swap_spaces is not an argument of vLLM's engine: they are the fields of vllm\.EngineArgs",
        ),
        ("kv_cache_dtpe", r"did you mean kv_cache_dtype or "),
        ("max_num_batch_tokens", r"did you mean max_num_batched_tokens or "),
        ("_api_process_rank", r"is not an argument"),
        ("tensor_parallel_size", r"can't be set here: set cluster\.engines\.tensor_parallel_size"),
        ("data_parallel_size", r"can't be set here: num_engines"),
        ("seed", r"can't be set here: each row has its own seed"),
        ("max_lora_rank", r"can't be set here: it follows from the adapters"),
        ("hf_token", r"a key has no place in a config: set HF_TOKEN"),
    ],
)
def test_an_argument_that_is_not_to_be_set_is_one_line_with_the_nearest_or_the_reason(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_arguments(with_arguments(**{name: 1}))
    assert str(caught.value).startswith(f"cluster.engines.args.{name} ") and "\n" not in str(caught.value)


def test_every_other_argument_reaches_the_engine() -> None:
    resources = EngineResources(
        args={"block_size": 32, "enable_prefix_caching": False, "enforce_eager": True}, pipeline_parallel_size=2
    )
    check_arguments(resources)
    lora = Lora(rank=12, target_modules=("q_proj",))
    found = engine_arguments(EngineSpec("some/model", resources, "cuda", lora=lora), "some/model")
    assert found["block_size"] == 32 and found["enforce_eager"] and not found["enable_prefix_caching"]
    assert found["pipeline_parallel_size"] == 2 and found["max_lora_rank"] == 16
    assert set(found) <= argument_names()


def test_what_an_engine_on_cpus_needs_is_not_the_users_to_set() -> None:
    check_arguments_without_gpu(with_arguments(enforce_eager=True))
    with pytest.raises(
        ConfigError, match=r"args\.enable_chunked_prefill can't be set without a GPU, where it is false"
    ):
        check_arguments_without_gpu(with_arguments(enable_chunked_prefill=True))


def test_a_plan_refuses_an_unknown_argument() -> None:
    config = RunConfig(
        name="a", topics=(Topic(name="Dune"),), cluster=ClusterConfig(engines=with_arguments(blocksize=1))
    )
    with pytest.raises(ConfigError, match=r"cluster\.engines\.args\.blocksize .*did you mean block_size"):
        plan(config)


def test_a_plan_says_what_a_served_model_is_asked_and_what_it_is_not() -> None:
    settings = EndpointSettings(base_url="http://host:8000/v1", api="chat")
    config = RunConfig(name="a", topics=(Topic(name="Dune"),), cluster=ClusterConfig(engines=settings))
    planned = plan(config)
    engines = {stage.name: stage.engine for stage in planned.stages}
    assert engines["answers"] == "http://host:8000/v1, 64 at a time" and "vLLM" in engines["evaluate"]
    (first, second) = notes_on(config)
    assert "must serve pocket" in first and "evaluation compares base and unlearned on vLLM engines" in first
    assert "chat can't score a given answer" in second and {first, second} <= set(planned.notes)
    assert not list(notes_on(config.model_copy(update={"cluster": ClusterConfig()})))


def test_a_fleet_has_a_number_of_engines_or_a_span() -> None:
    assert num_engines(ClusterConfig(engines=EngineResources(num_engines=(2, 16)))) == 2
    assert engine_span(ClusterConfig(engines=EngineResources(num_engines=(2, 16)))) == (2, 16)
    assert engine_span(ClusterConfig(engines=EngineResources(num_engines=3))) == (3, 3)
    assert EngineResources(num_engines=(1, 4), pipeline_parallel_size=2).in_words == (
        "1 to 4 x vLLM, tensor parallel 1, pipeline parallel 2"
    )


def test_an_engine_without_gpus_is_one_process(ray_session: ClusterConfig) -> None:
    from unlearn_ray.engines.session import require_engines

    engines = ray_session.engines.model_copy(update={"pipeline_parallel_size": 2})
    with pytest.raises(ClusterError, match="tensor_parallel_size and pipeline_parallel_size count GPUs"):
        require_engines(ray_session.model_copy(update={"engines": engines}))
