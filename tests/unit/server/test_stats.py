"""/stats/summary from plain values."""

from __future__ import annotations

from kubelet_py.server.stats import summary
from tests.unit.server import usage_sample

TIME = "2027-01-15T08:00:00Z"


def test_a_node_tells_its_cpu_memory_disks_network_and_processes() -> None:
    node = summary(usage_sample.node())["node"]
    assert node["nodeName"] == "n1"
    assert node["cpu"] == {"time": TIME, "usageCoreNanoSeconds": 2_500_000_000, "usageNanoCores": 5_000_000}
    assert node["memory"]["availableBytes"] == 4000 - 600
    assert node["memory"]["workingSetBytes"] == 600
    assert node["fs"]["usedBytes"] == 400 and node["fs"]["inodesUsed"] == 20
    assert node["runtime"]["imageFs"] == node["runtime"]["containerFs"] == node["fs"]
    assert node["rlimit"] == {"time": TIME, "maxpid": 1000, "curproc": 99}
    assert node["swap"] == {"time": TIME, "swapAvailableBytes": 200, "swapUsageBytes": 100}
    assert node["network"]["name"] == "eth0" and node["network"]["txBytes"] == 21
    assert [entry["name"] for entry in node["systemContainers"]] == ["kubelet"]


def test_a_pod_tells_its_containers_volumes_and_share_of_the_disk() -> None:
    (pod,) = summary(usage_sample.node())["pods"]
    assert pod["podRef"] == {"name": "web", "namespace": "default", "uid": "u1"}
    (container,) = pod["containers"]
    assert container["memory"]["availableBytes"] == 400
    assert container["rootfs"]["usedBytes"] == 100 and container["rootfs"]["capacityBytes"] == 1000
    assert container["logs"]["usedBytes"] == 20 and container["logs"]["inodesUsed"] == 1
    assert pod["process_stats"] == {"process_count": 5}
    scratch, data = pod["volume"]
    assert "pvcRef" not in scratch
    assert data["pvcRef"] == {"name": "claim", "namespace": "default"}
    # The claim's bytes are on a disk of its own.
    assert pod["ephemeral-storage"]["usedBytes"] == 100 + 20 + 5
    assert pod["ephemeral-storage"]["inodesUsed"] == 3 + 1 + 2
    assert pod["network"]["interfaces"][0]["rxErrors"] == 13


def test_what_was_not_measured_is_left_out() -> None:
    document = summary(usage_sample.node(disks=False, network=False))
    assert {"fs", "runtime", "network"}.isdisjoint(document["node"])
    (pod,) = document["pods"]
    assert {"volume", "ephemeral-storage", "network"}.isdisjoint(pod)
    assert {"rootfs", "logs"}.isdisjoint(pod["containers"][0])
    assert "usageNanoCores" not in pod["cpu"], "a first reading tells no rate"
    assert "availableBytes" not in pod["memory"], "a pod without a limit has no rest of it"
