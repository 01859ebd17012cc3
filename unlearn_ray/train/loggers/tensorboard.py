"""Event files for TensorBoard (`tensorboard --logdir RUN`). The writer is installed with Ray Train; TensorBoard itself is not needed."""

from collections.abc import Mapping

from unlearn_ray.train.loggers.logger import Training

_FLUSH_SECONDS = 10


class TensorBoard:
    """Implements `Logger`."""

    def __init__(self, training: Training) -> None:
        from tensorboardX import SummaryWriter

        # A resumed training repeats steps: TensorBoard then hides the repeated steps of the earlier file.
        purge = training.first_step or None
        # File names have seconds only: without a suffix, a quick restart would overwrite the first file.
        suffix = f".{training.first_step}"
        self._writer = SummaryWriter(
            str(training.folder), purge_step=purge, flush_secs=_FLUSH_SECONDS, filename_suffix=suffix
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def open(training: Training) -> TensorBoard:
    return TensorBoard(training)
