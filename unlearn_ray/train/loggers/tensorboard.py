"""TensorBoard's event files, which `tensorboard --logdir RUN` shows. Ray Train brings the writer; TensorBoard need not be installed."""

from collections.abc import Mapping

from unlearn_ray.train.loggers.logger import Training

_FLUSH_SECONDS = 10


class TensorBoard:
    """Implements `Logger`."""

    def __init__(self, training: Training) -> None:
        from tensorboardX import SummaryWriter

        # A training that is taken up does steps again: those of the file before are not shown then.
        purge = training.first_step or None
        # By its second alone, a file of a quick second start would take the place of the first.
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
