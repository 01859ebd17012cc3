"""One vLLM engine in this process, shared by any number of callers. Knows no Ray: an actor of `fleet` holds one.

`vllm.LLM.generate` blocks until its whole batch is done, so the tail of each batch leaves the engine idle. Here one thread steps the
engine and callers only add requests and wait: batches of several callers run together (continuous batching), on a CPU as on a GPU.
"""

import json
import logging
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from unlearn_ray.chat import PLAIN, ChatFormat, spoken
from unlearn_ray.config import FleetSettings, Lora
from unlearn_ray.engines.encoding import Encoder, continues, sampling_values, tokenizer_of
from unlearn_ray.engines.failures import root_cause
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.settings import WITHOUT_GPU
from unlearn_ray.engines.weights import local_copy
from unlearn_ray.errors import EngineError, ModelError, gist
from unlearn_ray.rows import Drop

log = logging.getLogger(__name__)

# A model's files as transformers reads them, in run and service alike. Left to itself, vLLM takes what lies beside them in the format of
# Mistral's own library: other weights, another config, and another rendering of a chat than the one that training learns.
AS_TRANSFORMERS = {"config_format": "hf", "load_format": "hf", "tokenizer_mode": "hf"}
LoraRank = Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]  # those that vLLM has kernels for
_SECONDS_BETWEEN_LOOKS = 5  # of a waiting caller, at whether the engine still lives


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is made from; small enough to send to an actor."""

    model: str
    resources: FleetSettings
    device: Literal["cpu", "cuda"]
    chat: ChatFormat = PLAIN  # how the model is talked to
    lora: Lora | None = None  # the shape of the adapters that requests will name; its targets by name
    max_loras: int = 4  # adapters that one batch may mix

    @property
    def shape(self) -> dict[str, float]:
        """What the engine's actor asks of a node."""
        num_gpus = self.resources.num_gpus if self.device == "cuda" else 0
        return {"CPU": self.resources.num_cpus, "GPU": float(num_gpus)}


def environment(spec: EngineSpec) -> dict[str, str]:
    """Variables that must stand before vLLM is imported."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": os.environ.get("VLLM_CONFIGURE_LOGGING", "1")}
    if Path(spec.model).is_dir():
        variables["HF_HUB_OFFLINE"] = "1"  # a folder needs no hub, and asking one costs seconds where there is none
    if spec.device == "cpu":
        variables |= {
            "VLLM_CPU_KVCACHE_SPACE": f"{max(1, round(spec.resources.kv_cache_gib))}",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # "auto" pins every engine of a machine to its first cores
            "TORCHDYNAMO_DISABLE": "1",  # nothing is compiled here but one line of the sampler, for seven seconds of every engine
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process instead of three: 2.5 s to start instead of 22
            "OMP_NUM_THREADS": f"{max(1, int(spec.resources.num_cpus))}",
            "MALLOC_ARENA_MAX": "1",  # glibc's main arena is faster, and the engine runs in another thread: a tenth of its time
            "OMP_WAIT_POLICY": "PASSIVE",  # idle threads sleep: other engines and trainers share these cores
            # On a machine with GPUs too: vLLM asks the driver's library for them, whatever is visible, unless it is told.
            "VLLM_TARGET_DEVICE": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
    else:
        variables |= _without_toolkit()
    return variables


def _without_toolkit() -> dict[str, str]:
    """Start a CUDA engine where there is no nvcc that fits: FlashInfer's sampler is compiled when vLLM warms up, and nothing falls back.

    Can go when vLLM tries whether it can be compiled first (vllm-project/vllm#49497). Other parts of FlashInfer are left out by vLLM
    itself where there is no nvcc, or fall back.
    """
    return {"VLLM_USE_FLASHINFER_SAMPLER": os.environ.get("VLLM_USE_FLASHINFER_SAMPLER", "0")}


class PrefixCounts(NamedTuple):
    """Prompt tokens that an engine looked for in its prefix cache, once for each sample, and those that were there."""

    queries: int
    hits: int


class _CacheCounter:
    """Stands where vLLM has its own loggers of statistics, and counts what the prefix cache did. Used by the stepping thread, but for `take`."""

    def __init__(self) -> None:
        self._queries = self._hits = 0
        self._lock = threading.Lock()

    def record(self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None) -> None:
        found = scheduler_stats.prefix_cache_stats
        if found.queries:
            with self._lock:
                self._queries += found.queries
                self._hits += found.hits

    def log(self) -> None:
        """Nothing: stages tell it."""

    def take(self) -> PrefixCounts:
        """What was counted since the last call."""
        with self._lock:
            found = PrefixCounts(self._queries, self._hits)
            self._queries = self._hits = 0
        return found


@dataclass(slots=True)
class _Batch:
    """What one caller waits for. It is woken once, at the end: at each reply, it would take the stepping thread's turns."""

    prompts: list[dict[str, Any]]  # arguments of the engine's `add_request`
    outputs: list[Any] = field(init=False)  # one per prompt: vLLM's output, or its refusal
    num_left: int = field(init=False)
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.outputs, self.num_left = [None] * len(self.prompts), len(self.prompts)

    def put(self, index: int, output: Any) -> None:
        self.outputs[index] = output
        self.num_left -= 1
        if self.num_left == 0:
            self.done.set()


class VllmEngine:
    """A running engine. `generate` may be called from many threads at once."""

    def __init__(self, spec: EngineSpec) -> None:
        """Load the model.

        Raises:
            ModelError: it isn't there, or has no chat template.
            EngineError: vLLM can't start, such as for want of memory; the message says why.
        """
        os.environ.update({name: value for name, value in environment(spec).items() if name not in os.environ})
        self.spec = spec
        self._incoming: queue.SimpleQueue[_Batch] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._ids = count()
        self._adapters: dict[str, Any] = {}
        self._lock = threading.Lock()  # the tokenizer and the table of adapters are not thread-safe
        self._num_steps = 0
        self._counter = _CacheCounter()
        started: Future[None] = Future()
        # The engine is built and stepped by one thread: CUDA and OpenMP keep state per thread.
        threading.Thread(target=self._run, args=(started,), name="vllm-engine", daemon=True).start()
        started.result()

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def num_steps(self) -> int:
        """Steps that the engine made; grows as long as it makes tokens."""
        return self._num_steps

    def take_prefix_counts(self) -> PrefixCounts:
        """What the prefix cache did since the last call."""
        return self._counter.take()

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests; one that can't be answered has its `error` set.

        Raises:
            EngineError: the engine died.
        """
        with self._lock:
            encoded = self._encoder.encode(requests)
            adapters = {request.adapter: self._adapter(request.adapter) for request in requests}
        replies: list[Reply | None] = [None] * len(requests)
        asked, prompts = [], []
        for index, (request, (prompt, answer)) in enumerate(zip(requests, encoded, strict=True)):
            ids = prompt + answer
            if len(ids) >= self.max_model_len:
                replies[index] = Reply(error=Drop.TOO_LONG, num_prompt_tokens=len(ids))
                continue
            asked.append(index)
            prompts.append(
                {
                    "prompt": {"prompt_token_ids": ids},
                    "params": self._sampling(request),
                    "lora_request": adapters[request.adapter],
                }
            )
        for index, output in zip(asked, self._ask(prompts), strict=True):
            replies[index] = self._reply(requests[index], encoded[index][0], output)
        return [reply for reply in replies if reply is not None]

    def _ask(self, prompts: list[dict[str, Any]]) -> list[Any]:
        if not prompts:
            return []
        batch = _Batch(prompts)
        self._incoming.put(batch)
        while not batch.done.wait(timeout=_SECONDS_BETWEEN_LOOKS):
            if self._failure is not None:
                break
        if batch.num_left:
            failure = self._failure or EngineError("it stopped")
            raise EngineError(f"the engine died: {type(failure).__name__}: {root_cause(failure)}") from failure
        return batch.outputs

    def _reply(self, request: Request, prompt: list[int], output: Any) -> Reply:
        if isinstance(output, ValueError):  # vLLM refused this request alone
            log.warning("request refused: %s", output)
            return Reply(error=Drop.ENGINE, num_prompt_tokens=len(prompt))
        if request.score is not None:
            tokens = output.prompt_token_ids[len(prompt) :]
            scored = output.prompt_logprobs[len(prompt) :]
            entries = [choices[token] for choices, token in zip(scored, tokens, strict=True)]
            num_answer = len(entries) - self._encoder.num_ending(tokens)
            return Reply(
                logprobs=tuple(float(entry.logprob) for entry in entries[:num_answer]),
                ending=tuple(float(entry.logprob) for entry in entries[num_answer:]),
                argmax=tuple(entry.rank == 1 for entry in entries[:num_answer]),
                num_prompt_tokens=len(output.prompt_token_ids),
            )
        outputs = sorted(output.outputs, key=lambda sample: sample.index)
        return Reply(
            # An answer that is begun has no thought before it.
            texts=tuple(
                sample.text if continues(request.messages) else spoken(sample.text, self.spec.chat)
                for sample in outputs
            ),
            truncated=tuple(sample.finish_reason == "length" for sample in outputs),
            num_prompt_tokens=len(prompt),
            num_output_tokens=sum(len(sample.token_ids) for sample in outputs),
        )

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if request.score is not None:
            # No text is wanted: turning each scored token back into some took as long as the model did.
            return SamplingParams(
                temperature=0.0,
                max_tokens=1,
                prompt_logprobs=0,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        return SamplingParams(**sampling_values(request, self.spec.chat), output_kind=RequestOutputKind.FINAL_ONLY)

    def _adapter(self, adapter: str | None) -> Any:
        """What vLLM calls an adapter. One it can't use is refused here: loading it in a step would end the engine.

        Raises:
            ModelError: it isn't there, or doesn't fit the engine.
        """
        if adapter is None:
            return None
        if adapter not in self._adapters:
            from vllm.lora.request import LoRARequest

            path = local_copy(adapter)
            try:
                rank = int(json.loads((path / "adapter_config.json").read_text())["r"])
            except (OSError, ValueError, KeyError) as error:
                raise ModelError(f"{adapter} is no PEFT adapter: {gist(error)}") from error
            if self.spec.lora is None or rank > self.spec.lora.rank:
                room = f"rank {self.spec.lora.rank}" if self.spec.lora else "no adapters"
                raise ModelError(f"{adapter} is of rank {rank}, the engine was started for {room}")
            self._adapters[adapter] = LoRARequest(
                lora_name=adapter, lora_int_id=len(self._adapters) + 1, lora_path=str(path)
            )
        return self._adapters[adapter]

    def _run(self, started: "Future[None]") -> None:
        try:
            path = str(local_copy(self.spec.model)) if "://" in self.spec.model else self.spec.model
            self._encoder = Encoder(tokenizer_of(path), self.spec.chat)
            self._engine = _start(self.spec, path)
            _count_cache_hits_alone(self._engine, self._counter)
            self._max_model_len = int(self._engine.model_config.max_model_len)
            started.set_result(None)
        except BaseException as error:
            started.set_exception(error)
            return
        pending: dict[str, tuple[_Batch, int]] = {}
        try:
            while True:
                self._admit(pending)
                outputs = self._engine.step()
                self._num_steps += 1
                for output in outputs:
                    if output.finished and (place := pending.pop(output.request_id, None)):
                        batch, index = place
                        batch.put(index, output)
        except BaseException as error:
            log.exception("the engine died")
            self._failure = error
            for batch, _ in pending.values():
                batch.done.set()

    def _admit(self, pending: dict[str, tuple[_Batch, int]]) -> None:
        """Hand new requests to the engine; with nothing to do, wait for some."""
        while not pending or not self._incoming.empty():
            batch = self._incoming.get()
            for index, arguments in enumerate(batch.prompts):
                name = str(next(self._ids))
                try:
                    self._engine.add_request(name, **arguments)
                    pending[name] = batch, index
                except ValueError as error:
                    batch.put(index, error)


def engine_arguments(spec: EngineSpec, path: str) -> dict[str, Any]:
    """What an engine is made with, as fields of vLLM's EngineArgs."""
    resources = spec.resources
    arguments: dict[str, Any] = {
        "model": path,
        "dtype": resources.dtype,
        "max_model_len": resources.max_model_len,
        "max_num_seqs": resources.max_num_seqs,
        "tensor_parallel_size": resources.tensor_parallel_size,
        "pipeline_parallel_size": resources.pipeline_parallel_size,
        "enable_prefix_caching": True,
        "disable_log_stats": False,  # `_count_cache_hits_alone`
        "generation_config": "vllm",  # sampling comes from the request and the spec, and nobody else adds to it
        "seed": 0,
        **AS_TRANSFORMERS,
        **resources.args,  # `settings.check_arguments` left none of those that must be as they are
    }
    if spec.lora is not None:
        arguments |= {"enable_lora": True, "max_loras": spec.max_loras, "max_lora_rank": room_for(spec.lora.rank)}
        # Named, so that the output layer stays plain: its LoRA twin miscounts the rows of prompt log-probabilities.
        arguments["lora_target_modules"] = [name.rpartition(".")[2] for name in spec.lora.target_modules]
    if spec.device == "cpu":
        # A seeded request kills vLLM's CPU engine when prompts are prefilled in chunks.
        arguments |= WITHOUT_GPU
    else:
        arguments |= {"gpu_memory_utilization": resources.gpu_memory_utilization}
    return arguments


def _start(spec: EngineSpec, path: str) -> Any:
    from vllm import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    try:
        # Of the context that `vllm.LLM` has: it decides how many tokens a step may hold, and the default is the least.
        return LLMEngine.from_engine_args(
            EngineArgs(**engine_arguments(spec, path)), usage_context=UsageContext.LLM_CLASS
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineError(f"vLLM can't start on {spec.model}: {root_cause(error)}") from error


def _count_cache_hits_alone(engine: Any, counter: _CacheCounter) -> None:
    """Take the statistics of each request away again, and vLLM's loggers of them: they cost the small models that are run on CPUs several per
    cent of their time, and the scheduler, which alone knows the prefix cache, keeps its own only where they were asked for
    (vllm-project/vllm#16460).

    Can go when vLLM counts the hits of its prefix cache without them.
    """
    engine.log_stats = engine.output_processor.log_stats = False
    engine.logger_manager = counter


async def load_adapter(models: Any, name: str, path: str) -> str:
    """Load an adapter into a running server of vLLM's.

    Args:
        models: its `OpenAIServingModels`.

    Returns:
        Why it can't be loaded; "" if it is.
    """
    from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

    answer = await models.load_lora_adapter(LoadLoRAAdapterRequest(lora_name=name, lora_path=path))
    return "" if isinstance(answer, str) or name in models.lora_requests else str(answer.error.message)


def room_for(rank: int) -> int:
    """The least rank at or above `rank` that vLLM has kernels for."""
    return next((size for size in get_args(LoraRank) if size >= rank), rank)


__all__ = [
    "AS_TRANSFORMERS",
    "EngineSpec",
    "LoraRank",
    "PrefixCounts",
    "VllmEngine",
    "engine_arguments",
    "environment",
    "load_adapter",
    "room_for",
]
