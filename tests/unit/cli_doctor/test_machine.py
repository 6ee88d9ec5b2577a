"""Clock, disks, ports, swap, other programs: what is found → what doctor says; and the printed forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from kubelet_py.cli.doctor import command, machine
from kubelet_py.cli.doctor.finding import Finding
from kubelet_py.cli.doctor.machine import Disk, MachineFacts, Port

Worst = Callable[[Sequence[Finding]], Finding]

ROOM, INODES = 10 << 30, 1_000_000
DISK = Disk("/var/lib", ROOM, INODES)
API, KUBELET = (
    Port(6443, "the API server", "--secure-port", "", False),
    Port(10250, "the kubelet", "", "", False),
)
GOOD = MachineFacts(True, (DISK,), (API, KUBELET), (), frozenset({"bash"}))


def held(port: Port, holder: str, ours: bool = False) -> Port:
    return replace(port, holder=holder, ours=ours)


@pytest.mark.parametrize(
    ("change", "name", "state", "found"),
    [
        ({}, "", "ok", "synchronised"),
        ({"synchronised": False}, "clock", "degraded", "not synchronised"),
        ({"synchronised": None}, "clock", "degraded", "does not say"),
        (
            {"disks": (Disk("/", 500 << 20, INODES),)},
            "disk",
            "degraded",
            "500 MiB and 1000000 inodes free at /",
        ),
        ({"disks": (Disk("/", 100 << 20, INODES),)}, "disk", "missing", "100 MiB"),
        ({"disks": (Disk("/", ROOM, 5000),)}, "disk", "degraded", "and 5000 inodes"),
        ({"disks": (Disk("/", ROOM, 10),)}, "disk", "missing", "and 10 inodes"),
        ({"disks": (Disk("/", ROOM, None),)}, "", "ok", "synchronised"),
        ({"disks": (Disk("/", ROOM, INODES, overlay=True),)}, "disk", "missing", "/ is an overlay"),
        ({"disks": (DISK, Disk("/var/log", 200 << 20, INODES))}, "disk /var/log", "degraded", "200 MiB"),
        # A machine of 1 GiB gives its /run a tenth of that, and nothing is wrong with it.
        ({"disks": (DISK, Disk("/run", 90 << 20, INODES, run=True))}, "", "ok", "synchronised"),
        ({"disks": (DISK, Disk("/run", 20 << 20, INODES, run=True))}, "disk /run", "degraded", "20 MiB"),
        ({"disks": (DISK, Disk("/run", 1 << 20, INODES, run=True))}, "disk /run", "missing", "1 MiB"),
        (
            {"ports": (held(API, "nginx (pid 7)"), KUBELET)},
            "ports",
            "missing",
            "6443 (the API server) is held by",
        ),
        ({"ports": (held(KUBELET, "kubelet (pid 7)"),)}, "ports", "missing", "held by kubelet (pid 7)"),
        ({"ports": (held(API, "python3 (pid 7)", True), KUBELET)}, "", "ok", "synchronised"),
        ({"swap": ("/dev/sda2",)}, "swap", "degraded", "on /dev/sda2"),
        ({"programs": frozenset({"kubelet", "containerd"})}, "other nodes", "degraded", "kubelet runs here"),
        ({"programs": frozenset({"k3s-server"})}, "other nodes", "degraded", "k3s runs here"),
        ({"programs": frozenset({"containerd", "dockerd"})}, "", "ok", "synchronised"),
    ],
)
def test_what_a_machine_has(worst: Worst, change: dict[str, Any], name: str, state: str, found: str) -> None:
    said = worst(machine.judge(replace(GOOD, **change)))
    assert said.state == state and found in said.found
    assert not name or said.name == name


def test_the_ports_own_options_mend_a_clash() -> None:
    assert "--secure-port" in machine.ports((held(API, "nginx"),)).mend
    assert machine.ports((held(KUBELET, "nginx"),)).mend == "stop it"
    assert machine.ports((held(API, "us", True),)).found == "6443: held by this node, or free"


def test_what_is_well_is_one_line_and_the_rest_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    command.show([Finding("a", "ok", "fine", "x"), Finding("b", "missing", "gone", "pods", "mend it")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=2) for line in lines[:2]] == [["ok", "a", "fine"], ["missing", "b", "gone"]]
    assert lines[2].strip() == "needed for pods; mend it"
