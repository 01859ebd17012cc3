"""A replica's counters for Prometheus. vLLM's own figures (queue, cache, batch) are in the same registry."""

from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TEXT = "text/plain"
OWN = "replica=own"  # query: this replica's figures alone
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counters of one replica, labelled with the model's version and the replica."""

    def __init__(self, replica: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry, self._replica = registry, replica
        labels = ["model", "replica"]
        self._requests = Counter("unlearn_requests", "Requests ended", [*labels, "status"], registry=registry)
        self._tokens = Counter("unlearn_tokens", "Tokens read and written", [*labels, "kind"], registry=registry)
        self._first = Histogram(
            "unlearn_time_to_first_token_seconds",
            "From the request's last byte to its first event",
            labels,
            buckets=_SECONDS,
            registry=registry,
        )
        self._seconds = Histogram(
            "unlearn_request_seconds", "Whole requests", labels, buckets=_SECONDS, registry=registry
        )
        self._cut = Counter("unlearn_streams_cut", "Streams that ended in an error", labels, registry=registry)
        ongoing = Gauge("unlearn_ongoing_requests", "Requests under way or queued", ["replica"], registry=registry)
        ready = Gauge("unlearn_ready", "1 when every model answers", ["replica"], registry=registry)
        self.ongoing, self.ready = ongoing.labels(replica), ready.labels(replica)

    def ended(self, model: str, status: int, seconds: float) -> None:
        self._requests.labels(model, self._replica, str(status)).inc()
        self._seconds.labels(model, self._replica).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        self._first.labels(model, self._replica).observe(seconds)

    def tokens(self, model: str, prompt: int, completion: int) -> None:
        self._tokens.labels(model, self._replica, "prompt").inc(prompt)
        self._tokens.labels(model, self._replica, "completion").inc(completion)

    def cut(self, model: str) -> None:
        self._cut.labels(model, self._replica).inc()

    def render(self) -> str:
        """Everything in the registry as text. Each figure is labelled with its replica."""
        # Not splitlines(): a label may hold other line separators.
        lines = generate_latest(self._registry).decode().rstrip("\n").split("\n")
        return "".join(f"{_labelled(line, self._replica)}\n" for line in lines)


def _labelled(line: str, replica: str) -> str:
    name, brace, rest = line.partition("{")
    if not line or line.startswith("#") or 'replica="' in rest:
        return line
    replica = _label(replica)
    if brace:
        return f'{name}{{replica="{replica}",{rest}'
    name, _, value = line.partition(" ")
    return f'{name}{{replica="{replica}"}} {value}'


def _label(value: str) -> str:
    """A label's value as the text format writes it."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def merged(texts: Iterable[str]) -> str:
    """The figures of several replicas as one text. Figures of one name stand together, below one head."""
    families: dict[str, list[str]] = {}
    helps: dict[str, str] = {}
    for text in texts:
        samples: list[str] = []
        for line in text.split("\n"):
            if line.startswith("# HELP "):
                helps.setdefault(line.split(" ", 3)[2], line)
            elif line.startswith("# TYPE "):
                samples = families.setdefault(line, [])
            elif line:
                samples.append(line)
    shown: list[str] = []
    for head, samples in families.items():
        shown += [helps.get(head.split(" ")[2], ""), head, *samples]
    return "".join(f"{line}\n" for line in shown if line)
