"""Rights, kernel features and cgroups: what is found → what doctor says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from kubelet_py.cli.doctor import cgroups, kernel
from kubelet_py.cli.doctor.cgroups import CgroupFacts
from kubelet_py.cli.doctor.finding import OK, Finding
from kubelet_py.cli.doctor.kernel import NAMESPACES, NEEDED, KernelFacts, encryption

Worst = Callable[[Sequence[Finding]], Finding]

GOOD = KernelFacts(
    uid=0,
    capabilities=frozenset({*NEEDED, "CAP_SYS_RESOURCE"}),
    python=(3, 11, 2),
    release="6.1.0-56-cloud-amd64",
    namespaces=frozenset(NAMESPACES),
    overlay="known",
    seccomp=True,
    apparmor="loads",
    links={"veth": "", "bridge": "", "vxlan": ""},
    wireguard="",
    pressure=frozenset({"cpu", "io", "memory"}),
)
TREE = CgroupFacts("v2", frozenset({"cpu", "cpuset", "io", "memory", "pids"}), True, True, "systemd")
HYBRID = frozenset({"cpu", "memory", "pids", "devices", "systemd"})


def test_a_good_machine_is_fit(worst: Worst) -> None:
    assert worst(kernel.judge(GOOD)).state == worst(cgroups.judge(TREE)).state == "ok"


@pytest.mark.parametrize(
    ("change", "name", "state", "found"),
    [
        ({"uid": 1000}, "rights", "missing", "uid 1000"),
        ({"capabilities": frozenset(NEEDED)}, "capabilities", "degraded", "without CAP_SYS_RESOURCE"),
        ({"capabilities": frozenset(NEEDED[1:])}, "capabilities", "missing", f"without {NEEDED[0]}"),
        ({"python": (3, 10, 12)}, "python", "missing", "3.10.12"),
        ({"release": "5.10.0-30-amd64"}, "kernel", "missing", "5.10.0-30-amd64"),
        ({"release": "4.19"}, "kernel", "missing", "4.19"),
        ({"namespaces": frozenset(NAMESPACES) - {"user"}}, "namespaces", "degraded", "without user"),
        ({"namespaces": frozenset(NAMESPACES) - {"net"}}, "namespaces", "missing", "without net"),
        ({"overlay": ""}, "overlayfs", "missing", "neither in"),
        ({"seccomp": False}, "seccomp", "missing", "no /proc/sys/kernel/seccomp"),
        ({"apparmor": "apparmor_parser"}, "apparmor", "degraded", "without apparmor_parser: containers run"),
        ({"apparmor": "/sys/kernel/security"}, "apparmor", "degraded", "without /sys/kernel/security"),
        ({"links": {**GOOD.links, "veth": "Unknown device type"}}, "veth", "missing", "Unknown device type"),
        ({"links": {**GOOD.links, "bridge": "Not supported"}}, "bridge", "missing", "Not supported"),
        ({"links": {**GOOD.links, "vxlan": "Not supported"}}, "vxlan", "degraded", "Not supported"),
        ({"pressure": frozenset({"cpu"})}, "pressure", "degraded", "without io memory"),
    ],
)
def test_what_the_kernel_lacks(
    worst: Worst, change: dict[str, Any], name: str, state: str, found: str
) -> None:
    said = worst(kernel.judge(replace(GOOD, **change)))
    assert (said.name, said.state) == (name, state) and found in said.found


@pytest.mark.parametrize("release", ["5.14.0", "5.14-rc1", "6.18.44-fc-v595", "7.0"])
def test_versions_that_will_do(release: str) -> None:
    assert kernel.version(release).state == "ok"


def test_a_kernel_without_apparmor_is_no_fault() -> None:
    assert kernel.apparmor("off").state == "ok"


def test_a_module_that_up_loads_is_no_fault() -> None:
    assert kernel.overlay("module").state == "ok"


@pytest.mark.parametrize(
    ("change", "name", "state", "found"),
    [
        ({"layout": "v1", "controllers": HYBRID}, "cgroups", "missing", "v1 alone"),
        ({"layout": "hybrid", "controllers": HYBRID}, "", "ok", "hybrid, v1 with cpu devices"),
        ({"layout": "hybrid", "controllers": HYBRID - {"devices"}}, "cgroups", "degraded", "hybrid"),
        ({"controllers": frozenset({"cpu", "pids"})}, "cgroups", "degraded", "v2 with cpu pids"),
        ({"controllers": frozenset({"cpu", "memory", "pids"})}, "cgroups", "degraded", "without cpuset io"),
        ({"kill": False}, "cgroup.kill", "missing", "not there"),
        ({"writable": False}, "delegation", "missing", "read-only"),
        ({"manager": "cgroupfs"}, "", "ok", "v2 with"),
    ],
)
def test_layouts_of_cgroups(worst: Worst, change: dict[str, Any], name: str, state: str, found: str) -> None:
    said = worst(cgroups.judge(replace(TREE, **change)))
    assert said.state == state and found in said.found
    assert not name or said.name == name


def test_nobody_believes_that_packets_between_nodes_are_encrypted() -> None:
    assert encryption("", False).found == "can be made"
    lacking = encryption("Error: Unknown device type.", False)
    assert lacking.found.startswith("none in this kernel (Error: Unknown device type.): packets between")
    assert lacking.state == OK, "it keeps nothing from working"


def test_a_node_that_is_to_encrypt_lacks_the_kernel_s_part() -> None:
    lacking = encryption("Error: Unknown device type.", True)
    assert (lacking.state, lacking.found) == ("missing", "Error: Unknown device type.")
    assert encryption("", True).state == OK
