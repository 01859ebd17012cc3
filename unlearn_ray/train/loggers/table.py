"""All loggers. A new logger needs a file beside this one, and a line here."""

import difflib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from unlearn_ray.errors import ConfigError, gist
from unlearn_ray.train.loggers import mlflow, tensorboard, wandb
from unlearn_ray.train.loggers.logger import Logger, Training


class Entry(NamedTuple):
    open: Callable[[Training], Logger]  # imports its library
    module: str  # the library's module
    package: str  # the package to install


LOGGERS = {
    "tensorboard": Entry(tensorboard.open, "tensorboardX", "tensorboardX"),
    "wandb": Entry(wandb.open, "wandb", "wandb"),
    "mlflow": Entry(mlflow.open, "mlflow", "mlflow"),
}
_DEFAULT = "tensorboard"


def chosen(loggers: Sequence[str] | None) -> list[str]:
    """The names of the loggers that `finetune.loggers` asks for, each once.

    Raises:
        ConfigError: there is no such logger, or it is not installed here.
    """
    if loggers is None:
        return [_DEFAULT] if _is_installed(_DEFAULT) else []
    for name in loggers:
        if name not in LOGGERS:
            near = difflib.get_close_matches(name, LOGGERS, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose of {', '.join(LOGGERS)}"
            raise ConfigError(f"finetune.loggers: there is no logger {name!r}: {hint}")
        if not _is_installed(name):
            raise ConfigError(
                f"finetune.loggers: {name} is not installed: pip install {LOGGERS[name].package}, here and where workers run, or leave it out"
            )
    return list(dict.fromkeys(loggers))


def opened(name: str, training: Training) -> Logger:
    """Open a logger.

    Raises:
        ConfigError: it can't start, for example without an API key.
    """
    try:
        training.folder.mkdir(parents=True, exist_ok=True)
        return LOGGERS[name].open(training)
    except Exception as error:  # each library has its own errors
        raise ConfigError(f"finetune.loggers: {name} can't begin: {gist(error)}") from error


def _is_installed(name: str) -> bool:
    return find_spec(LOGGERS[name].module) is not None
