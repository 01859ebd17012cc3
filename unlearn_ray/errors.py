"""The few exceptions a user can meet. Each carries one message that says what to do, and pickles on its way back from a Ray worker."""


class UnlearnError(Exception):
    """Base of every error that is the user's to mend: the command line prints its message as one line and exits with `exit_code`."""

    exit_code = 2

    @property
    def lines(self) -> list[str]:
        """The message as the command line prints it."""
        return [" ".join(str(self).split())]


class ConfigError(UnlearnError):
    """A key, value or topic of the run's configuration that cannot be used."""


class InputError(UnlearnError):
    """A file of the user's (questions, retain rows, probes, a template) that cannot be used."""


class ModelError(UnlearnError):
    """A model that is not there, is not a causal language model, or has no chat template."""


class ArtifactError(UnlearnError):
    """A run or stage folder that is unfinished, foreign, corrupt or not writable."""


class ThinDataError(UnlearnError):
    """Data below the floors of `dataset.floors`: nothing is trained on them unless the user accepts it."""


class ClusterError(UnlearnError):
    """More than the cluster has, or a cluster that cannot be reached."""


class DivergenceError(UnlearnError):
    """A training that destroys the model: nothing of it is exported."""


class FailedError(UnlearnError):
    """Several pieces of work that all failed: a line each."""

    @property
    def lines(self) -> list[str]:
        return str(self).splitlines()


class PartialError(FailedError):
    """Some of the work failed for good, a line each; the rest is done and kept."""

    exit_code = 3


class CheckError(FailedError):
    """What the user asked to hold does not: a requirement of a gate, a signature, the weights of a certificate. A line each."""

    exit_code = 3


class StorageError(OSError):
    """A disk, or an object store, that can't be written or read any more: full, unmounted, out of reach. Still an OSError, with its number: who
    knows one that passes from one that lasts goes on knowing it."""

    exit_code = 2

    def __str__(self) -> str:
        return str(self.args[-1])


class EngineError(RuntimeError):
    """An engine that failed for good. Not the user's input: the command line prints its message, exits with code 1, and logs its traceback."""


def gist(error: object, length: int = 300) -> str:
    """What an error says as part of one line: without line breaks, and where it is long up to the end of a sentence, or of a word."""
    text = " ".join(str(error).split()) or (type(error).__name__ if isinstance(error, BaseException) else "")
    if len(text) <= length:
        return text
    head = text[: length + 1]
    sentence = max(head.rfind(". "), head.rfind("! "), head.rfind("? "))
    if sentence >= length // 3:
        return f"{head[: sentence + 1]} ..."
    return f"{head[: head.rfind(' ') if ' ' in head else length].rstrip(' ,;:')} ..."
