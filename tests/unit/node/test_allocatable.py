"""What a node has, keeps back and gives; its conditions, and the events of their changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.config import Config, from_document
from kubelet_py.errors import ConfigError
from kubelet_py.flags import parse_arguments
from kubelet_py.node import allocatable, status
from kubelet_py.node.status import Health, Machine

GI, MI = 1 << 30, 1 << 20
MACHINE = Machine(
    cpus=4, memory=8 * GI, disk=100 * GI, hostname="h", machine_id="m", system_uuid="u", boot_id="b",
    kernel="6", os_image="o", architecture="amd64", max_pids=32768,
)  # fmt: skip


def given(document: dict[str, Any], machine: Machine = MACHINE) -> dict[str, str]:
    return allocatable.allocatable(machine, from_document(document))


def test_the_hard_thresholds_are_kept_back() -> None:
    assert given({}) == {
        "cpu": "4",
        "memory": f"{(8 * GI - 100 * MI) // 1024}Ki",
        "ephemeral-storage": str(90 * GI),
        "pods": "110",
    }
    hard = {"evictionHard": {"memory.available": "50%"}, "evictionSoft": {"nodefs.available": "50%"},
            "evictionSoftGracePeriod": {"nodefs.available": "1m"}}  # fmt: skip
    assert (given(hard)["memory"], given(hard)["ephemeral-storage"]) == ("4194304Ki", str(100 * GI))


def test_reservations_add_up() -> None:
    document = {
        "evictionHard": {"pid.available": "10%"},
        "kubeReserved": {"cpu": "100m", "memory": "1Gi", "ephemeral-storage": "1Gi"},
        "systemReserved": {"cpu": "400m", "memory": "1Gi", "ephemeral-storage": "9Gi", "pid": "1000"},
        "podsPerCore": 5,
    }
    assert given(document) == {
        "cpu": "3500m", "memory": f"{6 * MI}Ki", "ephemeral-storage": str(90 * GI), "pods": "20",
    }  # fmt: skip
    config = from_document(document)
    limits = allocatable.pods_limits(MACHINE, config)
    assert limits == {
        "cpu": {"shares": 3584}, "memory": {"limit": 6 * GI}, "pids": {"limit": 31768}
    }, "without the thresholds: the kubelet is to evict before the kernel kills"  # fmt: skip
    assert allocatable.reserved_limits(dict(config.system_reserved)) == {
        "cpu": {"shares": 409}, "memory": {"limit": GI}, "pids": {"limit": 1000}
    }  # fmt: skip


def test_reserved_processors_take_the_place_of_reserved_cpu() -> None:
    document = {"reservedSystemCPUs": "0,2-3", "systemReserved": {"cpu": "2"}, "kubeReserved": {"cpu": "1"}}
    assert given(document)["cpu"] == "1"


def test_huge_pages_are_a_resource_and_no_memory() -> None:
    machine = replace(MACHINE, huge_pages=((2 * MI, 64 * MI), (GI, 0)))
    shown = given({"evictionHard": {"pid.available": "1"}, "kubeReserved": {"hugepages-2Mi": "4Mi"}}, machine)
    assert (shown["hugepages-2Mi"], shown["hugepages-1Gi"]) == ("60Mi", "0")
    assert shown["memory"] == f"{(8 * GI - 64 * MI) // 1024}Ki"
    assert allocatable.capacity(machine, Config())["hugepages-2Mi"] == "64Mi"


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"kubeReserved": {"memory": "-1Gi"}}, "kubeReserved.memory '-1Gi' must not be negative"),
        ({"reservedSystemCPUs": "a-b"}, "reservedSystemCPUs 'a-b'"),
        ({"enforceNodeAllocatable": ["all"]}, "enforceNodeAllocatable of 'all'"),
        ({"enforceNodeAllocatable": ["none", "pods"]}, "'none' must stand alone"),
        ({"enforceNodeAllocatable": ["kube-reserved"]}, "'kube-reserved' needs kubeReservedCgroup"),
        ({"enforceNodeAllocatable": ["system-reserved"]}, "needs systemReservedCgroup"),
        ({"featureGates": {"Dreams": True}}, "featureGates: unknown Dreams"),
        ({"memoryThrottlingFactor": 0}, "memoryThrottlingFactor must be greater than 0"),
        ({"memoryThrottlingFactor": "0.5"}, "memoryThrottlingFactor must be of type float"),
        ({"podsPerCore": -1}, "podsPerCore must not be negative"),
    ],
)
def test_senseless_reservations_are_refused_by_name(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        from_document(document)


def statuses(conditions: list[Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in conditions}


def test_conditions_of_a_healthy_node() -> None:
    assert statuses(status.conditions((), Health(routed=True), 0.0)) == {
        "NetworkUnavailable": ("False", "RouteCreated"),
        "MemoryPressure": ("False", "KubeletHasSufficientMemory"),
        "DiskPressure": ("False", "KubeletHasNoDiskPressure"),
        "PIDPressure": ("False", "KubeletHasSufficientPID"),
        "Ready": ("True", "KubeletReady"),
    }


def test_conditions_of_a_node_in_trouble() -> None:
    pressures = ("MemoryPressure", "DiskPressure", "PIDPressure")
    health = Health(network="no bridge", routed=True, pressures=pressures, shutting_down=True)
    found = status.conditions((), health, 0.0)
    assert statuses(found) == {
        "NetworkUnavailable": ("True", "NoRouteCreated"),
        "MemoryPressure": ("True", "KubeletHasInsufficientMemory"),
        "DiskPressure": ("True", "KubeletHasDiskPressure"),
        "PIDPressure": ("True", "KubeletHasInsufficientPID"),
        "Ready": ("False", "KubeletNotReady"),
    }
    assert found[-1]["message"].endswith("no bridge, node is shutting down]")
    alone = status.conditions((), Health(shutting_down=True), 0.0)
    assert alone[-1]["message"] == "node is shutting down"


def test_a_foreign_network_speaks_for_itself() -> None:
    assert "NetworkUnavailable" not in statuses(status.conditions((), Health(), 0.0))


def test_times_of_change_and_events_follow_the_status() -> None:
    before = status.conditions((), Health(), 0.0)
    assert status.condition_events((), before) == [
        "NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"
    ]  # fmt: skip
    after = status.conditions(before, Health(pressures=("MemoryPressure",), shutting_down=True), 60.0)
    assert status.condition_events(before, after) == ["NodeHasInsufficientMemory", "NodeNotReady"]
    times = {c["type"]: c["lastTransitionTime"] for c in after}
    assert times["DiskPressure"] == before[1]["lastTransitionTime"] != times["MemoryPressure"]
    assert status.condition_events(after, after) == []


def test_the_lower_bound_of_processes_counts(tmp_path: Path) -> None:
    for name, text in (("pid_max", "4194304\n"), ("threads-max", "31000\n")):
        (tmp_path / name).write_text(text)
    assert status.max_pids(tmp_path) == 31000


def test_the_flag_for_the_number_of_pods_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kubelet.json"
    file.write_text('{"maxPods": 50}')
    assert parse_arguments(["--config", str(file)]).config.max_pods == 50
    assert parse_arguments(["--config", str(file), "--max-pods", "500"]).config.max_pods == 500
    with pytest.raises(ConfigError, match="maxPods must be greater than 0"):
        parse_arguments(["--max-pods", "0"])
