"""The few exceptions that a user can see. Each has one message that says what to do, and can be pickled on its way back from a Ray worker."""


class UnlearnError(Exception):
    """Base of every error that the user can fix. The command line prints its message as one line and exits with `exit_code`."""

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
    """A model that does not exist, is not a causal language model, or has no chat template."""


class ArtifactError(UnlearnError):
    """A run or stage folder that is unfinished, foreign, corrupt or not writable."""


class ThinDataError(UnlearnError):
    """Data below the floors of `dataset.floors`. They are not trained on unless the user accepts it."""


class ClusterError(UnlearnError):
    """A request for more than the cluster has, or a cluster that cannot be reached."""


class DivergenceError(UnlearnError):
    """A training that destroys the model. Nothing is exported."""


class FailedError(UnlearnError):
    """Several pieces of work that all failed, with one line per failure."""

    @property
    def lines(self) -> list[str]:
        return str(self).splitlines()


class PartialError(FailedError):
    """Some of the work failed for good, with one line per failure. The rest is done and kept."""

    exit_code = 3


class CheckError(FailedError):
    """What the user asked to hold does not: a requirement of a gate, a signature, the weights of a certificate. A line each."""

    exit_code = 3


class StorageError(OSError):
    """A disk or object store that can no longer be written or read: full, unmounted, out of reach. It is an OSError with the original number,
    so that code which tells passing from lasting errors still can."""

    exit_code = 2

    def __str__(self) -> str:
        return str(self.args[-1])


class EngineError(RuntimeError):
    """An engine that failed for good. Not the user's input: the command line prints its message, exits with code 1, and logs its traceback."""


def gist(error: object, length: int = 300) -> str:
    """An error's text as part of one line: without line breaks. A long text is cut at the end of a sentence or a word."""
    text = " ".join(str(error).split()) or (type(error).__name__ if isinstance(error, BaseException) else "")
    if len(text) <= length:
        return text
    head = text[: length + 1]
    sentence = max(head.rfind(". "), head.rfind("! "), head.rfind("? "))
    if sentence >= length // 3:
        return f"{head[: sentence + 1]} ..."
    return f"{head[: head.rfind(' ') if ' ' in head else length].rstrip(' ,;:')} ..."
