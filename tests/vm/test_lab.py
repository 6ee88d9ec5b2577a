"""A lab on a real Debian with systemd and pure cgroup v2: machines beside systemd's own groups, each with all
controllers; pods reach each other, a memory limit kills, nothing is left. The last test takes it away."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import host_state
import pytest
from e2e_node import Done, pod
from lab_cluster import LabCluster

pytestmark = pytest.mark.e2e

ROOT = Path("/var/lib/kpy-lab-test")
UNIFIED = Path("/sys/fs/cgroup")
SERVE = "echo {node} > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"


class SlowLab(LabCluster):
    """Everything takes about 16 times longer in an emulated machine."""

    def cli(self, *argv: str, check: bool = True, timeout: float = 800, **options: Any) -> Done:
        return super().cli(*argv, check=check, timeout=timeout, **options)

    def kubectl(self, *argv: str, check: bool = True, timeout: float = 200, **options: Any) -> Done:
        return super().kubectl(*argv, check=check, timeout=timeout, **options)

    def until(self, what: str, condition: Any, seconds: float = 200) -> Any:
        return super().until(what, condition, seconds)


@pytest.fixture(scope="module")
def cluster(untouched: host_state.HostState) -> Iterator[SlowLab]:
    del untouched  # it skips where this is not the VM
    ROOT.mkdir()
    made = SlowLab(ROOT)
    try:
        done = made.cli("up", "--nodes", "2", "--timeout", "700", check=False)
        assert done.code == 0, f"{done.out}{done.err}{made.last_words()}"
        print(done.out)
        made.give_busybox()
        made.apply(*(pod(f"web-{n}", SERVE.format(node=n), nodeName=n) for n in ("node1", "node2")))
        made.wait_running("web-node1", "web-node2")
        yield made
    finally:
        made.cli("down", check=False)
        shutil.rmtree(ROOT)


def test_each_machine_has_all_controllers_of_its_own_group(cluster: SlowLab) -> None:
    top = set((UNIFIED / "cgroup.controllers").read_text().split())
    for name in ("control", "node1", "node2"):
        machine = next(UNIFIED.glob(f"kubelet-py-lab-*/{name}"))
        own = set((machine / "cgroup.controllers").read_text().split())
        assert {"cpu", "memory", "pids", "io"} <= own & top
        assert (machine / "cgroup.procs").read_text() == "", "processes are in its leaves only"
    status = cluster.machines()
    assert {(m["power"], m["ready"]) for name, m in status.items() if name != "control"} == {("on", "True")}


def test_pods_reach_each_other_over_the_switch(cluster: SlowLab) -> None:
    addresses = {n: cluster.get("pod", f"web-{n}")["status"]["podIP"] for n in ("node1", "node2")}
    for here, there in (("node1", "node2"), ("node2", "node1")):
        url = f"http://{addresses[there]}:8080/"  # Debian's static busybox crashes at wget -T
        ask = ("exec", f"web-{here}", "--", "timeout", "20", "wget", "-q", "-O", "-", url)
        cluster.until(
            f"{here} reaches {there}", lambda ask=ask, there=there: _words(cluster, *ask) == f"{there}\n"
        )


def test_a_memory_limit_holds_in_a_machine(cluster: SlowLab) -> None:
    limited = {"resources": {"limits": {"memory": "32Mi"}}}
    cluster.apply(pod("hungry", "tail /dev/zero", container=limited, restartPolicy="Never", nodeName="node1"))
    cluster.until("an end", lambda: cluster.phase("hungry") == "Failed")
    ended = cluster.get("pod", "hungry")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_a_paused_machine_and_one_without_power_are_told_apart(cluster: SlowLab) -> None:
    cluster.node("node2", "pause")
    assert cluster.machines()["node2"]["power"] == "paused"
    cluster.node("node2", "start", "--wait", "--timeout", "400")
    cluster.node("node2", "kill")
    assert cluster.machines()["node2"]["power"] == "off"


def test_down_leaves_the_host_as_before(cluster: SlowLab, untouched: host_state.HostState) -> None:
    assert cluster.cli("down").code == 0
    difference = host_state.settled_difference(untouched)  # a module that its nodes needed stays loaded
    assert [line for line in difference if line != "sysctls: +net/bridge/bridge-nf-call-iptables=1"] == []
    assert not list(UNIFIED.glob("kubelet-py-lab*"))


def _words(cluster: SlowLab, *argv: str) -> str:
    return cluster.kubectl(*argv, check=False).out
