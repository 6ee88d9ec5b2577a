"""Counting: instruments, and what each part of the agent counts about its own work."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pods_in_words import pod

from kubelet_py.errors import SandboxError
from kubelet_py.instruments import Histogram, Number
from kubelet_py.node.api_counts import ApiCounts
from kubelet_py.node.startup import StartupTimes
from kubelet_py.pods.pleg import Pleg
from kubelet_py.pods.pod_manager import PodManager
from kubelet_py.pods.pull_counts import PullCounts, size_name
from kubelet_py.pods.record import PodRecord
from kubelet_py.pods.sandboxes import SandboxCounts
from kubelet_py.pods.sync_counts import SyncCounts, container_type, working_pods
from kubelet_py.pods.workers import PodWorkers
from kubelet_py.server.http_counts import HttpCounts, labels_of
from runtime.values import Sandbox, SandboxConfig

LONG = 5.0


def counted(part: Any, name: str, /, **labels: str) -> float:
    """A number, or how often a duration was observed; 0 where there is no such series."""
    (found,) = [instrument for instrument in part.instruments if instrument.name == name]
    values = [value for row, value in found.rows() if labels.items() <= row.items()]
    return sum(getattr(value, "count", value) for value in values)


def test_a_number_is_kept_for_each_set_of_labels() -> None:
    number = Number("n", "help", "color", kind="gauge")
    number.add("red")
    number.add("red", by=2)
    number.set(7.5, "blue")
    assert number.rows() == [({"color": "red"}, 3), ({"color": "blue"}, 7.5)]


def test_a_histogram_counts_what_raised_too_and_from_many_threads() -> None:
    histogram = Histogram("h", "help", "kind", bounds=(1.0,))
    with pytest.raises(OSError), histogram.timed("a"):
        raise OSError

    def work() -> None:
        for _ in range(500):
            histogram.observe(2.0, "b")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first, second) = histogram.rows()
    assert (first[0], first[1].count) == ({"kind": "a"}, 1)
    assert (second[1].counts, second[1].total) == ((0, 2000), 4000.0)


def test_a_relist_is_timed_and_leaves_its_moment() -> None:
    woken: list[str] = []
    boxes = [SimpleNamespace(config=SimpleNamespace(uid=uid)) for uid in ("a", "b")]
    runtime = SimpleNamespace(list_sandboxes=lambda: boxes)
    pleg = Pleg(runtime, lambda sandbox: (), woken.append, lambda uid, _: woken.append(uid))  # type: ignore[arg-type]
    assert counted(pleg, "kubelet_pleg_last_seen_seconds") == 0
    pleg.relist()
    pleg.relist()
    assert sorted(woken) == ["a", "a", "b", "b"]
    assert counted(pleg, "kubelet_pleg_relist_duration_seconds") == 2
    assert counted(pleg, "kubelet_pleg_last_seen_seconds") > 1_700_000_000


@pytest.mark.parametrize(
    ("size", "name"),
    [(0, "N/A"), (1, "0-10MB"), (10 << 20, "0-10MB"), ((10 << 20) + 1, "10MB-100MB"), (3 << 30, "1GB-5GB"),
     (101 << 30, "GT100GB")],
)  # fmt: skip
def test_images_are_told_apart_by_size(size: int, name: str) -> None:
    assert size_name(size) == name


def test_pulls_are_timed_and_failed_ones_counted_apart() -> None:
    now = iter([0.0, 4.0, 4.0, 10.0, 11.0])
    counts = PullCounts(lambda: next(now))
    image = SimpleNamespace(size=20 << 20)
    assert counts.pulled(lambda: image) is image

    def fails() -> SimpleNamespace:
        raise OSError

    with pytest.raises(OSError):
        counts.pulled(fails)
    calls = counts.operations()["pull_image"]
    assert (calls.count, calls.failures, calls.total) == (2, 1, 5.0)
    assert counted(counts, "kubelet_image_pull_duration_seconds", image_size_in_bytes="10MB-100MB") == 1
    assert counted(counts, "kubelet_image_pull_duration_seconds") == 1


def test_a_look_is_counted_by_what_it_is_for() -> None:
    counts = SyncCounts()
    record = PodRecord(pod(), seen_at=100.0)
    for change in ("", "", "new", "gone"):
        if change == "new":
            record.take(pod())
        record.gone = change == "gone"
        with counts.sync(record, 100.5):
            pass
    kinds = ("create", "sync", "update", "kill")
    name = "kubelet_pod_worker_duration_seconds"
    assert counted(counts, "kubelet_containers_per_pod_count") == 1
    assert [counted(counts, name, operation_type=kind) for kind in kinds] == [1, 1, 1, 1]
    assert counted(counts, "kubelet_pod_worker_start_duration_seconds") == 1


def test_starts_are_counted_by_the_kind_of_container_and_the_reason_of_a_failure() -> None:
    body = pod("main", init=["before"], ephemeralContainers=[{"name": "debug"}])
    assert [container_type(body, name) for name in ("main", "before", "debug")] == [
        "container",
        "init_container",
        "ephemeral_container",
    ]
    counts = SyncCounts()
    counts.sandbox(failed=True)
    counts.sandbox(failed=False)
    counts.container(body, "before")
    counts.container(body, "main", "ErrImagePull")
    assert counted(counts, "kubelet_started_pods_total") == 2
    assert counted(counts, "kubelet_started_pods_errors_total") == 1
    assert counted(counts, "kubelet_started_containers_total", container_type="init_container") == 1
    failed = {"container_type": "container", "code": "ErrImagePull"}
    assert counted(counts, "kubelet_started_containers_errors_total", **failed) == 1


def test_pods_that_work_is_done_for_are_told_by_where_they_are_in_life() -> None:
    static, gone, ending, over, cleaned, plain = (PodRecord(pod(), seen_at=1.0) for _ in range(6))
    static.pod["metadata"]["annotations"] = {"kubernetes.io/config.source": "file"}
    ending.pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    gone.gone = over.finished = cleaned.finished = cleaned.cleaned = True
    part = SimpleNamespace(instruments=[working_pods([static, gone, ending, over, cleaned, plain])])
    name = "kubelet_working_pods"
    rows = part.instruments[0].rows()
    assert len(rows) == 15, "every combination is told from the beginning"
    assert counted(part, name) == 6
    assert counted(part, name, lifecycle="sync", config="desired", static="true") == 1
    assert counted(part, name, lifecycle="sync", config="desired", static="") == 1
    assert counted(part, name, lifecycle="terminating", config="orphan", static="") == 1
    assert counted(part, name, lifecycle="terminating", config="desired") == 2
    assert counted(part, name, lifecycle="terminated", config="desired") == 1


def test_sandboxes_are_timed_and_failures_counted_by_handler() -> None:
    now = iter([0.0, 0.5, 1.0, 4.0])
    counts = SandboxCounts(lambda: next(now))
    with counts.run(""):
        pass
    with pytest.raises(SandboxError), counts.run("other"):
        raise SandboxError("no")
    durations, errors = counts.instruments
    assert [(labels["runtime_handler"], found.total) for labels, found in durations.rows()] == [  # type: ignore[union-attr]
        ("", 0.5),
        ("other", 3.0),
    ]
    assert errors.rows() == [({"runtime_handler": "other"}, 1)]


def test_a_machines_way_to_a_node_is_told_once_and_only_by_who_registered_it() -> None:
    def told(times: StartupTimes) -> list[float]:
        return [rows[0][1] for rows in (each.rows() for each in times.instruments)]  # type: ignore[misc]

    moments = iter([20.0, 21.0, 24.0, 30.0])
    times = StartupTimes(lambda: next(moments))
    times.registered()  # nobody has tried
    for _ in range(2):
        times.attempted()
    times.registered()
    assert told(times) == [20, 1, 3, 0, 0]
    for _ in range(2):
        times.ready()
    assert told(times) == [20, 1, 3, 6, 30]
    again = StartupTimes(lambda: 50.0)
    again.attempted()
    again.ready()
    assert told(again) == [0, 0, 0, 0, 0], "its Node was there before"


def test_orphans_and_pods_that_came_back_are_counted(tmp_path: Path) -> None:
    manager = PodManager(None, lambda uid: None, lambda: "")
    assert counted(manager, "kubelet_orphaned_runtime_pods_total") == 0
    manager.has_told("api")
    config = SandboxConfig(name="a", namespace="default", uid="orphan", annotations={})
    for _ in range(2):
        manager.end_orphans([Sandbox("s", "READY", 1, "", 0.0, config)], tmp_path, lambda uid: None)
    assert counted(manager, "kubelet_orphaned_runtime_pods_total") == 1
    static = pod()
    static["metadata"]["annotations"] = {"kubernetes.io/config.source": "file"}
    uid, name = static["metadata"]["uid"], "kubelet_restarted_pods_total"
    for step, restarts in (({uid: static}, 0), ({}, 0), ({uid: static}, 1), ({uid: static}, 1), ({}, 1)):
        manager.on_static_pods("file", step)
        assert counted(manager, name, static="true") == restarts
    manager.forget(uid)
    manager.on_static_pods("file", {uid: static})
    assert (counted(manager, name, static="true"), counted(manager, name, static="")) == (2, 0)


def test_refused_pods_are_counted_by_reason() -> None:
    counts = SyncCounts()
    for reason in ("OutOfcpu", "OutOfpods", "OutOfexample.com/a", "OutOfexample.com/b", "OutOfhugepages-2Mi"):
        counts.refused(reason)
    name = "kubelet_admission_rejections_total"
    assert counted(counts, name, reason="OutOfcpu") == counted(counts, name, reason="OutOfpods") == 1
    assert counted(counts, name, reason="OutOfExtendedResources") == 3


def test_the_pods_queue_counts_what_waits_and_what_is_done() -> None:
    entered, go, done = threading.Event(), threading.Event(), threading.Event()

    def sync(uid: str) -> float | None:
        entered.set()
        go.wait(LONG)
        if uid == "broken":
            done.set()
            raise ValueError("a mistake")
        return None

    workers = PodWorkers(sync)
    workers.wake("a")
    assert entered.wait(LONG)
    workers.wake("a")
    assert counted(workers, "workqueue_adds_total", name="pods") == 1, "it is looked at again afterwards"
    go.set()
    workers.wake("broken")
    assert done.wait(LONG)
    retried = threading.Event()
    for _ in range(500):
        if counted(workers, "workqueue_retries_total") == 1 and counted(workers, "workqueue_adds_total") == 3:
            break
        retried.wait(0.01)
    workers.stop()
    assert counted(workers, "workqueue_adds_total") == 3
    assert counted(workers, "workqueue_queue_duration_seconds") == 3
    assert counted(workers, "workqueue_retries_total") == 1
    assert counted(workers, "workqueue_depth") == 0


def test_requests_to_the_api_server_count_by_code_and_an_unanswered_one_too() -> None:
    counts = ApiCounts("api:6443")
    counts.observe("GET", 200, 0.01)
    counts.observe("GET", 0, 30.0)
    place = {"method": "GET", "host": "api:6443"}
    assert counted(counts, "rest_client_requests_total", code="200", **place) == 1
    assert counted(counts, "rest_client_requests_total", code="<error>", **place) == 1
    assert counted(counts, "rest_client_request_duration_seconds", verb="GET", host="api:6443") == 2


def test_requests_to_the_agent_count_by_page_and_strange_ones_together() -> None:
    assert labels_of("GET", ["metrics", "cadvisor"], known=True)[1] == "metrics/cadvisor"
    assert labels_of("GET", ["metrics", "a1"], known=True)[1] == "metrics", "anyone may ask for a2, too"
    assert labels_of("POST", ["exec", "default", "web", "main"], known=True) == (
        "POST", "exec", "readwrite", "true"
    )  # fmt: skip
    assert labels_of("BREW", ["a1"], known=False) == labels_of("BREW", ["a2"], known=False)
    counts = HttpCounts()
    with counts.request("GET", ["pods"], known=True):
        assert counted(counts, "kubelet_http_inflight_requests", path="pods") == 1
        assert counted(counts, "kubelet_http_requests_duration_seconds", path="pods") == 0
    assert counted(counts, "kubelet_http_inflight_requests", path="pods") == 0
    assert counted(counts, "kubelet_http_requests_total", path="pods", method="GET") == 1
    assert counted(counts, "kubelet_http_requests_duration_seconds", path="pods") == 1
