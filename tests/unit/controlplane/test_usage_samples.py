"""From two pages of /metrics/resource to what nodes and containers use."""

from __future__ import annotations

import pytest

from controlplane.apiserver.usage_samples import Point, Samples, Scrape, Usage, between, parse

LABELS = 'container="main",pod="web",namespace="default"'


def page(at: float, cpu: float, memory: int = 4096, started: float = 1.0) -> str:
    ms = int(at * 1000)
    return f"""# TYPE node_cpu_usage_seconds_total counter
node_cpu_usage_seconds_total {cpu * 2} {ms}
node_memory_working_set_bytes 9000 {ms}
container_cpu_usage_seconds_total{{{LABELS}}} {cpu} {ms}
container_memory_working_set_bytes{{{LABELS}}} {memory} {ms}
container_start_time_seconds{{{LABELS}}} {started}
container_cpu_usage_seconds_total{{container="half",pod="odd",namespace="default"}} 1 {ms}
pod_cpu_usage_seconds_total{{pod="web",namespace="default"}} 7 {ms}
resource_scrape_error 0
"""


def test_a_page_gives_the_node_and_every_container_with_both_numbers() -> None:
    scrape = parse(page(100.0, 5.0))
    assert scrape.node == Point(100.0, 10.0, 9000)
    assert scrape.pods == {("default", "web"): {"main": Point(100.0, 5.0, 4096, 1.0)}}


def test_a_node_without_any_use_was_not_measured() -> None:
    assert parse("node_cpu_usage_seconds_total 0 1\nnode_memory_working_set_bytes 5 1\n").node is None
    assert parse("").node is None


@pytest.mark.parametrize(
    ("before", "last", "usage"),
    [
        (Point(10, 1.0, 1), Point(12, 2.0, 7), Usage(12, 2, 500_000_000, 7)),
        (None, Point(12, 2.0, 7), None),
        (None, Point(12, 1.0, 7, started=10), Usage(12, 2, 500_000_000, 7)),
        # It was started anew between the two readings: what it used before is another's.
        (Point(10, 9.0, 1, started=5), Point(14, 1.0, 7, started=12), Usage(14, 2, 500_000_000, 7)),
        (Point(10, 3.0, 1), Point(12, 2.0, 7), None),
        (Point(10, 1.0, 1), Point(10.2, 2.0, 7), None),
    ],
    ids=["pair", "alone", "fresh", "restarted", "went back", "too near"],
)
def test_usage_lies_between_two_readings(before: Point | None, last: Point, usage: Usage | None) -> None:
    assert between(before, last) == usage


def test_the_last_two_scrapes_of_a_node_count() -> None:
    samples = Samples()
    samples.add("n", parse(page(100.0, 5.0, started=100.0)))
    assert samples.node("n") is None and not samples.complete("n")
    samples.add("n", parse(page(110.0, 6.0)))
    samples.add("n", parse(page(120.0, 8.0)))
    assert samples.node("n") == Usage(120.0, 10.0, 400_000_000, 9000)
    assert samples.pod("default", "web") == {"main": Usage(120.0, 10.0, 200_000_000, 4096)}
    samples.add("n", parse(page(120.1, 8.1)))
    assert samples.node("n") is not None, "a scrape right after another takes its place"
    assert samples.pod("default", "other") is None
    samples.drop("n")
    assert (samples.node("n"), samples.pod("default", "web")) == (None, None)


def test_nothing_is_said_of_half_a_pod() -> None:
    samples, key = Samples(), ("default", "web")
    samples.add("n", Scrape(Point(10, 1, 1), {key: {"a": Point(10, 1, 1)}}))
    samples.add("n", Scrape(Point(20, 2, 1), {key: {"a": Point(20, 2, 1), "b": Point(20, 2, 1)}}))
    assert samples.pod(*key) is None
