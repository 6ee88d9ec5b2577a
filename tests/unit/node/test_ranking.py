"""Who is evicted first, what is said of it, and which pods exceed a limit of their own."""

from __future__ import annotations

from typing import Any

import pytest

from kubelet_py.node.pressure import Observation
from kubelet_py.node.ranking import Candidate, ContainerUsage, Usage, bounded, message, overused, rank
from kubelet_py.node.thresholds import MEMORY, PIDS, Amount, Threshold
from kubelet_py.pods.model import Object

MI = 1 << 20


def pod(name: str, *, request: str = "", limit: str = "", priority: int = 0, **more: Any) -> Object:
    tables: dict[str, Any] = {}
    if request:
        tables["requests"] = {"memory": request, "ephemeral-storage": request}
    if limit:
        tables["limits"] = {"memory": limit, "ephemeral-storage": limit}
    spec = {"priority": priority, "containers": [{"name": "c", "resources": tables}], **more}
    return {"metadata": {"name": name, "namespace": "d", "uid": name}, "spec": spec}


def candidate(name: str, usage: int | None, **about: Any) -> Candidate:
    return Candidate(name, pod(name, **about), Usage(memory=usage, disk=usage, inodes=usage, pids=usage))


# Each in the order in which they have to go.
ORDERS: list[tuple[str, list[Candidate]]] = [
    ("BestEffort before a Burstable pod within its request",
     [candidate("a", 1 * MI), candidate("b", 90 * MI, request="100Mi")]),
    ("over its request before within it, however small",
     [candidate("a", 11 * MI, request="10Mi"), candidate("b", 900 * MI, request="1Gi")]),
    ("of two over their requests the one that exceeds it by more",
     [candidate("a", 50 * MI, request="10Mi"), candidate("b", 120 * MI, request="100Mi")]),
    ("a lower priority before a greater excess",
     [candidate("a", 11 * MI, request="10Mi", priority=-5), candidate("b", 500 * MI, request="10Mi")]),
    ("over its request before a lower priority",
     [candidate("a", 11 * MI, request="10Mi", priority=9), candidate("b", 5 * MI, request="10Mi")]),
    ("of two within theirs the one that is closer to it",
     [candidate("a", 99 * MI, request="100Mi"), candidate("b", 10 * MI, request="100Mi")]),
    ("unknown usage before everything", [candidate("a", None, priority=9), candidate("b", 10 * MI)]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "order"), ORDERS, ids=[order[0] for order in ORDERS])
@pytest.mark.parametrize("resource", ["memory", "ephemeral-storage"])
def test_order(resource: str, name: str, order: list[Candidate]) -> None:
    assert rank(resource, order) == order
    assert rank(resource, order[::-1]) == order


def test_inodes_cannot_be_requested_and_count_as_they_are() -> None:
    order = [candidate("a", 9, request="1Gi"), candidate("b", 5)]
    assert rank("inodes", order[::-1]) == order


def test_processes_go_by_priority_and_number() -> None:
    order = [candidate("a", 3, priority=-1), candidate("b", 9, request="1Gi"), candidate("c", 5)]
    assert rank("pids", order[::-1]) == order


def test_the_overhead_is_part_of_the_request() -> None:
    lean, fat = pod("a", request="10Mi"), pod("b", request="10Mi", overhead={"memory": "50Mi"})
    order = [Candidate(p["metadata"]["uid"], p, Usage(memory=30 * MI)) for p in (lean, fat)]
    assert rank("memory", order[::-1]) == order


def test_the_message_names_threshold_and_guilty_containers_as_upstream() -> None:
    seen = {MEMORY: Observation(50 * MI, 1000 * MI)}
    usage = Usage(memory=200 * MI, containers={"c": ContainerUsage(memory=150 * MI)})
    text = message(Threshold(MEMORY, Amount(100 * MI)), seen, pod("a", request="64Mi"), usage)
    assert text == (
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. "
        "Container c was using 150Mi, request is 64Mi, has larger consumption of memory. "
    )
    text = message(Threshold(MEMORY, Amount(100 * MI)), seen, pod("a"), usage)
    assert "Container c was using 150Mi, request is 0, has larger" in text
    within = Usage(containers={"c": ContainerUsage(memory=64 * MI)})
    text = message(Threshold(MEMORY, Amount(100 * MI)), seen, pod("a", request="64Mi"), within)
    assert text.endswith("available: 50Mi. ")


def test_counts_are_not_written_as_bytes() -> None:
    text = message(Threshold(PIDS, Amount(2048)), {PIDS: Observation(1024, 4096)}, pod("a"), Usage())
    assert text == "The node was low on resource: pids. Threshold quantity: 2048, available: 1024. "


LOCAL: list[tuple[str, Object, Usage, dict[str, int], str]] = [
    ("an emptyDir over its limit", pod("p", volumes=[{"name": "v", "emptyDir": {"sizeLimit": "1024Ki"}}]),
     Usage(), {"v": MI + 1}, 'Usage of EmptyDir volume "v" exceeds the limit "1Mi". '),
    ("an emptyDir at its limit", pod("p", volumes=[{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]),
     Usage(), {"v": MI}, ""),
    ("an emptyDir without one", pod("p", volumes=[{"name": "v", "emptyDir": {}}]), Usage(), {"v": MI}, ""),
    ("the pod over all limits together", pod("p", limit="1Mi"), Usage(disk=2 * MI), {},
     "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "),
    ("a container over its own", pod("p", limit="1Mi"),
     Usage(disk=MI, containers={"c": ContainerUsage(disk=MI + 1)}), {},
     'Container c exceeded its local ephemeral storage limit "1Mi". '),
    ("within both", pod("p", limit="1Mi"), Usage(disk=MI, containers={"c": ContainerUsage(disk=MI)}), {}, ""),
    ("no limit at all", pod("p"), Usage(disk=1 << 40), {}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "usage", "volumes", "wanted"), LOCAL, ids=[c[0] for c in LOCAL])
def test_limits_on_local_storage(
    name: str, body: Object, usage: Usage, volumes: dict[str, int], wanted: str
) -> None:
    found = overused(body, usage, volumes)
    assert (found.message if found is not None else "") == wanted
    assert bounded(body) or not wanted


def test_only_pods_with_such_a_limit_are_measured() -> None:
    assert not bounded(pod("p", request="1Mi", volumes=[{"name": "v", "emptyDir": {}}]))
    assert bounded(pod("p", limit="1Mi"))
