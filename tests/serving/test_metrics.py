"""What Prometheus reads: each replica's figures, and those of all replicas as one text."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families

from unlearn_ray.serving.metrics import Metrics, merged


def replica(name: str, num_requests: int) -> str:
    registry = CollectorRegistry()
    metrics = Metrics(name, registry)
    for _ in range(num_requests):
        metrics.ended("harry-potter@1", 200, 0.3)
    Gauge("vllm:num_requests_waiting", "Not ours", ["engine"], registry=registry).labels("0").set(7)
    Counter("process_starts", "Not ours, without labels", registry=registry).inc()
    return metrics.render()


def samples(text: str) -> dict[tuple[str, str, str], float]:
    return {
        (sample.name, sample.labels["replica"], sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_figure_says_whose_it_is_also_those_that_are_not_ours() -> None:
    found = samples(replica("r1", 3))
    assert found["unlearn_requests_total", "r1", ""] == 3
    assert found["vllm:num_requests_waiting", "r1", ""] == 7
    assert found["process_starts_total", "r1", ""] == 1
    assert {name for _, name, _ in found} == {"r1"}


def test_the_figures_of_all_replicas_stand_below_one_head_each() -> None:
    text = merged([replica("r1", 3), replica("r2", 5)])
    found = samples(text)
    assert found["unlearn_requests_total", "r1", ""] == 3 and found["unlearn_requests_total", "r2", ""] == 5
    assert found["unlearn_request_seconds_bucket", "r2", "0.5"] == 5
    heads = [line for line in text.splitlines() if line.startswith(("# TYPE", "# HELP"))]
    assert len(heads) == len(set(heads)) and any("TYPE unlearn_requests_total" in head for head in heads)


@pytest.mark.parametrize("num_replicas", [0, 1])
def test_one_replica_or_none_is_merged_too(num_replicas: int) -> None:
    texts = [replica("r1", 1)] * num_replicas
    assert samples(merged(texts)) == samples("".join(texts))


def test_a_label_with_line_separators_and_quotes_stays_one_sample() -> None:
    name = 'a"b\\c\u2028d\x0be\x85f\ng'
    (family,) = [f for f in text_string_to_metric_families(merged([replica(name, 1)])) if f.name == "unlearn_requests"]
    assert [sample.labels["replica"] for sample in family.samples if sample.name.endswith("_total")] == [name]
