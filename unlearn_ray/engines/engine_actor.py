"""The actor around one engine, on whatever node has room for it."""

import multiprocessing
import os

import ray

from unlearn_ray.engines.failures import BatchError, told
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.vllm_engine import EngineSpec, PrefixCounts, VllmEngine
from unlearn_ray.errors import EngineError, UnlearnError


class EngineActor:
    """The actor around one engine. It is there as soon as a node has room for it; then it is told to load its model."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._engine: VllmEngine | None = None

    def place(self) -> tuple[str, int]:
        """Its node's id, and its process's."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def start(self) -> None:
        self._engine = VllmEngine(self._spec)

    def num_steps(self) -> int:
        """A sign of life: while there is work, each step makes tokens, and the number grows."""
        return 0 if self._engine is None else self._engine.num_steps

    def generate(self, requests: list[Request]) -> tuple[PrefixCounts, list[Reply]]:
        """Await the counts alone to leave the replies on their node. They are of all batches since they were last told.

        Raises:
            EngineError: the engine died; whoever hears it ends this actor.
            BatchError: these requests can't be asked.
        """
        assert self._engine is not None
        try:
            replies = self._engine.generate(requests)
            return self._engine.take_prefix_counts(), replies
        except (EngineError, UnlearnError):
            raise
        except Exception as error:
            raise BatchError(f"the engine can't be asked: {told(error)}") from None

    def close(self) -> None:
        """End the processes that vLLM started: they would outlive a killed actor, and keep the GPU's memory."""
        for child in multiprocessing.active_children():
            child.kill()
