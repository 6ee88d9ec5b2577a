"""A node on a real Debian with systemd and pure cgroup v2, and so with the systemd cgroup driver: its limits
hold, it serves, and it goes without a trace. In this order: the last test stops the node."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import host_state
import pytest
from e2e_node import pod
from machine import Machine

pytestmark = pytest.mark.e2e

UNIFIED = Path("/sys/fs/cgroup")
QOS = UNIFIED / "kubelet_py.slice/kubelet_py-kubepods.slice/kubelet_py-kubepods-besteffort.slice"
SERVE = 'echo up; mkdir /www; hostname > /www/index.html; trap "exit 0" TERM; httpd -f -p 8080 -h /www & wait'


def limited(**limits: str) -> dict[str, Any]:
    return {"resources": {"limits": limits}}


@pytest.fixture(scope="module")
def pods(machine: Machine) -> Machine:
    machine.apply(
        pod("burner", "while :; do :; done", container=limited(cpu="200m", memory="32Mi")),
        pod("hungry", "echo eating; tail /dev/zero", container=limited(memory="32Mi"), restartPolicy="Never"),
        pod("web", SERVE, container=limited(memory="64Mi")),
    )
    ports = ("--port=80", "--target-port=8080", "--type=NodePort")
    machine.kubectl("expose", "pod", "web", *ports)
    machine.wait_running("burner", "web")
    return machine


def container_cgroup(machine: Machine, name: str) -> Path:
    """The folder of the pod's one container, in its pod's home, in its pod's slice."""
    found = machine.get("pod", name)
    uid = found["metadata"]["uid"].replace("-", "_")
    identifier = found["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
    folders = list(UNIFIED.glob(f"kubelet_py.slice/**/*-pod{uid}.slice/kubelet-py-*.scope/{identifier}"))
    assert len(folders) == 1, folders
    return folders[0]


def shown(unit: str, *names: str) -> dict[str, str]:
    """systemd's properties of a unit."""
    asked = ["systemctl", "show", unit, "--property", ",".join(names)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=120)
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


def cpu_seconds(folder: Path) -> float:
    return int((folder / "cpu.stat").read_text().split()[1]) / 1e6


def test_limits_are_written_for_container_and_pod(pods: Machine) -> None:
    folder = container_cgroup(pods, "burner")
    for place in (folder, folder.parents[1]):
        assert (place / "memory.max").read_text() == f"{32 << 20}\n"
        assert (place / "cpu.max").read_text() == "20000 100000\n"
    assert (folder / "memory.swap.max").read_text() == "0\n"
    assert (QOS / "cpu.weight").read_text() == "1\n"


def test_systemd_knows_the_pod_by_its_slice(pods: Machine) -> None:
    folder = container_cgroup(pods, "burner")
    scope, pod_slice = folder.parent, folder.parents[1]
    assert shown(scope.name, "ActiveState", "Delegate", "Slice", "TasksMax") == {
        "ActiveState": "active", "Delegate": "yes", "Slice": pod_slice.name, "TasksMax": "infinity",
    }  # fmt: skip
    assert shown(pod_slice.name, "MemoryMax", "CPUQuotaPerSecUSec") == {
        "MemoryMax": str(32 << 20), "CPUQuotaPerSecUSec": "200ms",
    }  # fmt: skip
    assert shown(QOS.name, "CPUWeight") == {"CPUWeight": "1"}
    assert not (scope / "holder").exists() and (scope / "cgroup.procs").read_text() == ""
    inspected = json.loads(pods.cli("inspect", "pod", "burner", "-o", "json").out)
    assert inspected["cgroups"] == [str(pod_slice)]
    assert inspected["limits"][folder.name[:12]]["memory.max"] == str(32 << 20)
    pids = [process["pid"] for process in inspected["processes"]]
    assert {int(line) for line in (folder / "cgroup.procs").read_text().split()} <= set(pids)


def test_a_cpu_limit_is_kept(pods: Machine) -> None:
    folder = container_cgroup(pods, "burner")
    begin, used = time.monotonic(), cpu_seconds(folder)
    time.sleep(5)
    share = (cpu_seconds(folder) - used) / (time.monotonic() - begin)
    assert 0.1 < share < 0.25


def test_memory_beyond_the_limit_is_oom_killed(pods: Machine) -> None:
    pods.until("an end", lambda: pods.phase("hungry") == "Failed")
    ended = pods.get("pod", "hungry")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")
    assert pods.kubectl("logs", "hungry").out == "eating\n"


def test_an_exec_lives_within_the_container_s_memory(pods: Machine) -> None:
    assert pods.kubectl("exec", "web", "--", "hostname").out == "web\n"
    done = pods.kubectl("exec", "web", "--", "tail", "/dev/zero", check=False)
    assert done.code == 137
    status = pods.get("pod", "web")["status"]["containerStatuses"][0]
    assert status["restartCount"] == 0 and "running" in status["state"]


def test_a_service_answers_from_the_machine_and_from_a_pod(pods: Machine) -> None:
    service = pods.get("service", "web")["spec"]
    node_ip = pods.get("node", "kubelet-py-vm")["status"]["addresses"][0]["address"]
    places = [f"{service['clusterIP']}:80", f"{node_ip}:{service['ports'][0]['nodePort']}"]
    for place in places:
        ask = ("curl", "-s", "-m", "20", f"http://{place}/")
        pods.until(f"an answer of {place}", lambda ask=ask: _output(*ask) == "web\n")
        inside = pods.kubectl("exec", "burner", "--", "wget", "-q", "-O", "-", f"http://{place}/")
        assert inside.out == "web\n"


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True).stdout


def test_systemd_leaves_the_limits_alone(pods: Machine) -> None:
    """It owns the tree's root, and sets its controllers anew whenever its own units change."""
    folder = container_cgroup(pods, "burner")
    unit = ("--unit=kubelet-py-probe", "-p", "MemoryMax=64M", "-p", "CPUQuota=50%", "-p", "AllowedCPUs=0")
    subprocess.run(["systemd-run", "--wait", *unit, "true"], check=True, timeout=120)
    subprocess.run(["systemctl", "daemon-reload"], check=True, timeout=120)
    subprocess.run(["systemd-run", "--wait", "--unit=kubelet-py-probe", "true"], check=True, timeout=120)
    assert (folder / "memory.max").read_text() == f"{32 << 20}\n"
    assert (folder / "cpu.max").read_text() == "20000 100000\n"
    controllers = (folder / "cgroup.controllers").read_text().split()
    assert {"cpu", "memory", "pids", "cpuset", "io"} <= set(controllers)


def test_down_leaves_the_machine_as_it_was(pods: Machine, untouched: host_state.HostState) -> None:
    """But for the kernel module that `up` loaded, and the setting that comes with it."""
    pods.cli("down")
    difference = host_state.settled_difference(untouched, seconds=20)
    left = [line for line in difference if line != "sysctls: +net/bridge/bridge-nf-call-iptables=1"]
    assert left == [], "\n".join(left)
    units = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "kubelet*"]
    assert subprocess.run(units, capture_output=True, text=True, timeout=120).stdout == ""
