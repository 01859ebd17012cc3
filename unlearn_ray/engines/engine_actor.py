"""The actor around one engine, on any node with room for it."""

import multiprocessing
import os

import ray

from unlearn_ray.engines.failures import BatchError, told
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.vllm_engine import EngineSpec, PrefixCounts, VllmEngine
from unlearn_ray.errors import EngineError, UnlearnError


class EngineActor:
    """The actor around one engine. It starts as soon as a node has room for it. `start` then loads the model."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._engine: VllmEngine | None = None

    def place(self) -> tuple[str, int]:
        """The ids of its node and its process."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def start(self) -> None:
        self._engine = VllmEngine(self._spec)

    def num_steps(self) -> int:
        """The engine's steps so far, as a sign of life. While there is work, each step makes tokens."""
        return 0 if self._engine is None else self._engine.num_steps

    def generate(self, requests: list[Request]) -> tuple[PrefixCounts, list[Reply]]:
        """The counts of the prefix cache since the last call, and the replies. Await only the counts to leave the replies on their node.

        Raises:
            EngineError: the engine died; the caller must end this actor.
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
        """End the processes that vLLM started. They would outlive a killed actor, and keep the GPU's memory."""
        for child in multiprocessing.active_children():
            child.kill()
