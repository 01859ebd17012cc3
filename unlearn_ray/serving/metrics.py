"""What a replica counts, for Prometheus. vLLM's own figures (queue, cache, batch) stand in the same registry."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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

    def render(self) -> bytes:
        return generate_latest(self._registry)
