"""The steps of a pod's start, with an injected clock."""

from __future__ import annotations

import pytest

from kubelet_py.cli import inspect_start
from kubelet_py.pods import timeline
from kubelet_py.pods.timeline import Step, Timelines

POD = {"metadata": {"name": "web", "namespace": "default", "uid": "u1", "labels": {}}}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timelines(clock: Clock) -> Timelines:
    return Timelines(clock=clock, wall=lambda: 1000.0 + clock.now)


def test_a_step_lasts_as_long_as_its_body(timelines: Timelines, clock: Clock) -> None:
    with timelines.step("u1", timeline.SANDBOX):
        clock.now += 0.5
    assert timelines.of("u1") == (Step("sandbox", "", 1100.0, 0.5),)
    timelines.forget("u1")
    assert timelines.of("u1") == ()


def test_a_step_that_fails_is_told_and_its_next_attempt_is_a_new_one(
    timelines: Timelines, clock: Clock
) -> None:
    with pytest.raises(OSError), timelines.step("u1", timeline.NETWORK):
        clock.now += 1
        raise OSError
    with timelines.step("u1", timeline.NETWORK):
        clock.now += 2
    assert [(s.seconds, s.failed) for s in timelines.of("u1")] == [(1, True), (2, False)]


def test_a_pull_that_is_waited_for_counts_from_its_first_attempt(timelines: Timelines, clock: Clock) -> None:
    with pytest.raises(LookupError), timelines.step("u1", timeline.IMAGE, "main", goes_on=True):
        raise LookupError
    clock.now += 3
    with timelines.step("u1", timeline.IMAGE, "main", goes_on=True):
        clock.now += 1
    assert timelines.of("u1") == (Step("image", "main", 1100.0, 4.0),)


def test_the_first_running_status_of_a_pod_that_was_started_here_counts(
    timelines: Timelines, clock: Clock
) -> None:
    timelines.told("u1", 0.25, 1099.0)
    assert timelines.of("u1") == (), "an earlier agent started it"
    with timelines.step("u1", timeline.START, "main"):
        pass
    timelines.told("u1", 0.25, 1099.0)
    clock.now += 60
    timelines.told("u1", 0.5, 1099.0)
    assert timelines.of("u1")[1:] == (Step("status", "", 1099.75, 0.25),)
    starts = timelines.starts()
    assert (starts.count, starts.total, starts.counts[1]) == (1, 1.0, 1)


def test_the_time_to_pull_is_no_part_of_how_well_a_start_went(timelines: Timelines, clock: Clock) -> None:
    with timelines.step("u1", timeline.IMAGE, "main"):
        clock.now += 20
    with timelines.step("u1", timeline.START, "main"):
        clock.now += 1
    timelines.told("u1", 0.25, 1101.0, created_at=1099.0)
    with timelines.step("static", timeline.START, "main"):
        pass
    timelines.told("static", 0.25, 1101.0)
    found = {each.name: each.rows()[0][1] for each in timelines.instruments}
    whole, sli = (found[f"kubelet_pod_start_{name}_duration_seconds"] for name in ("total", "sli"))
    assert (whole.count, whole.total, sli.count, sli.total) == (1, 22.0, 1, 2.0)


def test_calls_of_the_runtime_are_counted_by_their_name(timelines: Timelines, clock: Clock) -> None:
    with timelines.step("u1", timeline.SANDBOX):
        clock.now += 0.25
    with pytest.raises(OSError), timelines.step("u2", timeline.SANDBOX):
        raise OSError
    with timelines.step("u1", timeline.NETWORK):
        pass
    counted = timelines.operations()
    assert (counted["run_podsandbox"].count, counted["run_podsandbox"].failures) == (2, 1)
    assert counted["run_podsandbox"].total == 0.25 and counted["create_container"].count == 0
    timelines.forget("u1")
    assert timelines.operations()["run_podsandbox"].count == 2, "a counter never goes back"


def test_a_container_that_crashes_for_ever_does_not_fill_the_memory(timelines: Timelines) -> None:
    for _ in range(timeline.MOST_STEPS + 5):
        with timelines.step("u1", timeline.START, "main"):
            pass
    assert len(timelines.of("u1")) == timeline.MOST_STEPS


def test_the_document_counts_from_when_the_node_heard_of_the_pod() -> None:
    steps = (Step("start", "main", 1010.2, 0.01, failed=True), Step("sandbox", "", 1010.1, 0.0255))
    shown = timeline.document(POD, 1010.0, 1010.05, (*steps, Step("status", "", 1010.3, 0.05)))
    assert shown["pod"] == {"name": "web", "namespace": "default", "uid": "u1"}
    assert shown["createdToSeenMilliseconds"] == pytest.approx(50)
    assert shown["totalMilliseconds"] == pytest.approx(300)
    assert shown["steps"][0] == {"step": "sandbox", "atMilliseconds": 50.0, "milliseconds": 25.5}
    assert shown["steps"][1]["failed"] is True and shown["steps"][1]["container"] == "main"
    text = inspect_start.lines(shown)
    assert text[0] == "+50.0 ms: sandbox took 25.5 ms"
    assert text[1].endswith("start main took 10.0 ms and failed")
    assert text[-1] == "told the API that it runs after 300.0 ms"
    assert "totalMilliseconds" not in timeline.document(POD, 0.0, 1.0, steps)


def test_an_agent_that_did_not_start_the_pod_says_so() -> None:
    assert inspect_start.lines({"steps": []}) == ["(the agent was started after the pod)"]
