"""The engines of one run, each started when a stage first needs it. What is heavy is imported then: a run with nothing to do starts no Ray."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_ray.chat import ChatFormat
from unlearn_ray.config import EndpointSettings, RunConfig
from unlearn_ray.engines.protocols import Generator, T, Trainer
from unlearn_ray.train.inspection import Inspected, inspect_model, lora_targets

if TYPE_CHECKING:
    from unlearn_ray.engines.endpoint_generation import EndpointGenerator
    from unlearn_ray.engines.generation import RayDataGenerator


class RunEngines:
    """Implements `pipeline.Engines`."""

    def __init__(
        self,
        config: RunConfig,
        on_progress: Callable[[str, int, int], None],
        stack: ExitStack,
        on_wait: Callable[[str], None] = lambda text: None,
        logs: Path | None = None,
        on_speed: Callable[[str, str], None] = lambda label, text: None,
    ) -> None:
        """
        Args:
            stack: ends what was started, when it is closed.
            on_wait: told what the run waits for where the cluster has no room.
            logs: folder for the logs of a Ray of our own.
            on_speed: called with a training's loss and speed.
        """
        self._config, self._on_progress, self._stack = config, on_progress, stack
        self._on_wait, self._logs, self._on_speed = on_wait, logs, on_speed
        self._fleet: RayDataGenerator | None = None
        self._endpoint: EndpointGenerator | None = None

    @cached_property
    def model(self) -> Inspected:
        """What the model's files tell."""
        return inspect_model(self._config.model_path, self._config.chat)

    @property
    def chat(self) -> ChatFormat:
        return self.model.chat

    def connect(self) -> None:
        """Join the cluster, or start one, and refuse what it can never hold.

        Raises:
            ClusterError: it, or the endpoint, can't be reached, or it has less than the config asks for.
            ConfigError: the endpoint does not serve the model.
        """
        from unlearn_ray.engines.session import connect, require

        if (endpoint := self._at_endpoint) is not None:
            endpoint.check()
        self._stack.enter_context(connect(self._config.cluster, logs=self._logs))
        self._stack.callback(self._end)  # before the cluster is left, whenever the first engine was thought of
        require(self._config.cluster)

    def _end(self) -> None:
        if self._fleet is not None:
            self._fleet.close()

    @property
    def generator(self) -> Generator:
        """What data are asked of."""
        return self._at_endpoint or self.evaluator

    @property
    def _at_endpoint(self) -> "EndpointGenerator | None":
        settings = self._config.cluster.engines
        if isinstance(settings, EndpointSettings) and self._endpoint is None:
            from unlearn_ray.engines.endpoint_generation import EndpointGenerator

            self._endpoint = EndpointGenerator(
                self._config.model, self._config.model_path, settings, self.evaluator, self._on_progress
            )
        return self._endpoint

    @property
    def evaluator(self) -> "RayDataGenerator":
        """What models are compared on: engines of the run's own, which take its adapters; they start when they are first asked."""
        if self._fleet is None:
            from unlearn_ray.engines.generation import RayDataGenerator

            weights = self._config.finetune.weights
            lora = None
            if weights.kind == "lora":
                targets = lora_targets(weights.target_modules, self.model, self._config.model)
                lora = weights.model_copy(update={"target_modules": targets})
            self._fleet = RayDataGenerator(
                self._config.model_path,
                self._config.cluster,
                chat=self.chat,
                lora=lora,
                on_progress=self._on_progress,
                on_wait=self._on_wait,
            )
        return self._fleet

    def alone(self, work: Callable[[Callable[[str, int, int], None]], Iterator[T]], label: str) -> Iterator[T]:
        """What work in one process yields, see `engines.alone`. Engines that hold what it needs end first."""
        from unlearn_ray.engines.alone import alone

        if self._fleet is not None:
            self._fleet.make_room()
        return alone(work, self._config.cluster, label, self._on_progress, self._on_wait)

    @property
    def trainer(self) -> Trainer:
        from unlearn_ray.engines.training import RayDeepSpeedTrainer

        if self._fleet is not None:
            self._fleet.make_room()
        return RayDeepSpeedTrainer(
            self._config.cluster, on_progress=self._on_progress, on_wait=self._on_wait, on_speed=self._on_speed
        )
