"""A node on a machine that has more than it needs: AppArmor in the kernel, runc and crun beside our own
runtime, all of them with systemd's cgroups. In this order: the last test stops the node."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import host_state
import pytest
from e2e_node import pod
from machine import Machine

from kubeclient.app_armor import ANNOTATION
from kubelet_py.pods.app_armor import DEFAULT

pytestmark = pytest.mark.e2e

UNIFIED = Path("/sys/fs/cgroup")
LISTED = Path("/sys/kernel/security/apparmor/profiles")
PROFILE = "kubelet-py-test-profile"
TEXT = f"""
profile {PROFILE} flags=(attach_disconnected, mediate_deleted) {{
  capability,
  file,
  network,
  signal,
  deny /denied w,
}}
"""
CURRENT = "cat /proc/self/attr/current"
CONFINED = f"""
{CURRENT}
echo a >/denied && echo written
mkdir /m; mount -t tmpfs m /m && echo mounted
echo done; sleep 3600
"""
LOCAL = {"appArmorProfile": {"type": "Localhost", "localhostProfile": PROFILE}}
MISSING = {"appArmorProfile": {"type": "Localhost", "localhostProfile": "nowhere"}}
RUNTIME = {"appArmorProfile": {"type": "RuntimeDefault"}}
UNCONFINED = {"appArmorProfile": {"type": "Unconfined"}}
ADMIN = {"capabilities": {"add": ["SYS_ADMIN"]}}
HANDLERS = ("runc", "crun")


def confined(name: str, *, whole: Any = None, own: Any = None, annotation: str = "") -> dict[str, Any]:
    container = {"securityContext": ADMIN | (own or {})}
    made = pod(name, CONFINED, container=container, securityContext=whole or {})
    if annotation:
        made["metadata"]["annotations"] = {ANNOTATION + "main": annotation}
    return made


# name → pod, the label its processes have, what they can do
CASES = {
    "nothing-said": (confined("nothing-said"), f"{DEFAULT} (enforce)", ["written"]),
    "runtime-default": (confined("runtime-default", whole=RUNTIME), f"{DEFAULT} (enforce)", ["written"]),
    "localhost": (confined("localhost", own=LOCAL), f"{PROFILE} (enforce)", []),
    "container-first": (confined("container-first", whole=RUNTIME, own=LOCAL), f"{PROFILE} (enforce)", []),
    "unconfined": (confined("unconfined", whole=UNCONFINED), "unconfined", ["written", "mounted"]),
    "privileged": (
        confined("privileged", own={"privileged": True}), "unconfined", ["written", "mounted"],
    ),
    "annotated": (confined("annotated", annotation=f"localhost/{PROFILE}"), f"{PROFILE} (enforce)", []),
}  # fmt: skip


def parser(*options: str, profile: str = PROFILE) -> None:
    text = TEXT.replace(PROFILE, profile)
    subprocess.run(["apparmor_parser", *options], input=text, text=True, check=True, timeout=120)


@pytest.fixture(scope="module")
def machine(untouched: host_state.HostState) -> Iterator[Machine]:
    assert LISTED.exists(), "Debian's kernel has AppArmor on by default"
    parser("--replace", "--skip-cache")
    tables = "".join(f'[runtimes.{name}]\nruntime_path = "/usr/bin/{name}"\n' for name in HANDLERS)
    Path("/etc/kubelet-py").mkdir(exist_ok=True)
    Path("/etc/kubelet-py/runtimes.toml").write_text(tables.replace("/usr/bin/runc", "/usr/sbin/runc"))
    machine = Machine()
    machine.import_busybox()
    done = machine.cli("up", "--detach", "--timeout", "300", check=False)
    assert done.code == 0, f"{done.out}{done.err}{machine.last_words()}"
    yield machine
    machine.cli("reset", "--yes")
    parser("--remove")


@pytest.fixture(scope="module")
def armoured(machine: Machine) -> Machine:
    machine.apply(confined("missing", own=MISSING), *(made for made, _, _ in CASES.values()))
    machine.wait_running(*CASES)
    return machine


@pytest.mark.parametrize("name", CASES)
def test_a_pod_is_confined_as_upstream_would(armoured: Machine, name: str) -> None:
    _, label, allowed = CASES[name]
    armoured.until("its output", lambda: "done" in armoured.kubectl("logs", name).out)
    said = armoured.kubectl("logs", name).out.splitlines()
    assert said[0] == label
    assert [word for word in ("written", "mounted") if word in said] == allowed
    assert armoured.kubectl("exec", name, "--", "sh", "-c", CURRENT).out == f"{label}\n"


def test_an_exec_is_refused_what_its_container_is(armoured: Machine) -> None:
    done = armoured.kubectl("exec", "localhost", "--", "touch", "/denied", check=False)
    assert done.code == 1 and "Permission denied" in done.err


def test_the_annotation_became_a_field(armoured: Machine) -> None:
    [container] = armoured.get("pod", "annotated")["spec"]["containers"]
    assert container["securityContext"]["appArmorProfile"] == LOCAL["appArmorProfile"]


def test_a_profile_that_is_not_loaded_keeps_its_container_waiting(armoured: Machine) -> None:
    def waiting() -> Any:
        statuses = armoured.get("pod", "missing")["status"].get("containerStatuses") or [{}]
        return statuses[0].get("state", {}).get("waiting", {}).get("reason") == "CreateContainerError"

    armoured.until("a refusal", waiting)
    text = (
        "failed to get container spec opts: failed to generate apparmor spec opts: "
        "apparmor profile not found nowhere"
    )
    status = armoured.get("pod", "missing")["status"]["containerStatuses"][0]
    assert status["state"]["waiting"]["message"] == text
    chosen = ("--field-selector", "involvedObject.name=missing,reason=Failed")
    events = ("get", "events", *chosen, "-o", "jsonpath={.items[*].message}")
    armoured.until("its event", lambda: f"Error: {text}" in armoured.kubectl(*events).out)
    parser("--replace", "--skip-cache", profile="nowhere")
    armoured.wait_running("missing")
    armoured.kubectl("delete", "pod", "missing")
    parser("--remove", profile="nowhere")


def test_pods_of_app_armor_go(armoured: Machine) -> None:
    armoured.kubectl("delete", "pod", *CASES)


def under(handler: str, name: str, command: str, **spec: Any) -> dict[str, Any]:
    return pod(f"{handler}-{name}", command, runtimeClassName=f"with-{handler}", **spec)


@pytest.fixture(scope="module")
def foreign(machine: Machine) -> Machine:
    limits = {"resources": {"limits": {"cpu": "200m", "memory": "32Mi"}}}
    for handler in HANDLERS:
        kind: dict[str, Any] = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": handler}
        machine.apply(
            {**kind, "metadata": {"name": f"with-{handler}"}},
            under(handler, "life", "echo started; sleep 3600", container=limits),
            under(handler, "hungry", "echo eating; tail /dev/zero", container=limits, restartPolicy="Never"),
            under(handler, "armoured", CONFINED, container={"securityContext": LOCAL}),
        )
    machine.wait_running(*(f"{handler}-{name}" for handler in HANDLERS for name in ("life", "armoured")))
    return machine


def cgroup(machine: Machine, name: str) -> Path:
    """The folder of the pod's one container, in its pod's scope, in its pod's slice."""
    found = machine.get("pod", name)
    uid = found["metadata"]["uid"].replace("-", "_")
    identifier = found["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
    [folder] = UNIFIED.glob(f"kubelet_py.slice/**/*-pod{uid}.slice/kubelet-py-*.scope/{identifier}")
    return folder


@pytest.mark.parametrize("handler", HANDLERS)
def test_another_runtime_s_container_is_in_systemd_s_scope(foreign: Machine, handler: str) -> None:
    name = f"{handler}-life"
    folder = cgroup(foreign, name)
    assert folder.name in os.listdir(f"/run/kubelet-py/oci/{handler}"), "the container is not the runtime's"
    for place in (folder, folder.parents[1]):
        assert (place / "memory.max").read_text() == f"{32 << 20}\n"
        assert (place / "cpu.max").read_text() == "20000 100000\n"
    foreign.until("its log", lambda: foreign.kubectl("logs", name).out == "started\n")
    done = foreign.kubectl("exec", name, "--", "sh", "-c", "echo in; exit 7", check=False)
    assert (done.code, done.out) == (7, "in\n")
    subprocess.run(["systemctl", "daemon-reload"], check=True, timeout=120)
    assert (folder / "memory.max").read_text() == f"{32 << 20}\n"
    assert (folder / "cpu.max").read_text() == "20000 100000\n"


@pytest.mark.parametrize("handler", HANDLERS)
def test_its_oom_kill_is_told(foreign: Machine, handler: str) -> None:
    name = f"{handler}-hungry"
    foreign.until("an end", lambda: foreign.phase(name) == "Failed")
    ended = foreign.get("pod", name)["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


@pytest.mark.parametrize("handler", HANDLERS)
def test_its_profile_holds(foreign: Machine, handler: str) -> None:
    name = f"{handler}-armoured"
    foreign.until("its output", lambda: "done" in foreign.kubectl("logs", name).out)
    said = foreign.kubectl("logs", name).out.splitlines()
    assert said[0] == f"{PROFILE} (enforce)" and "written" not in said
    done = foreign.kubectl("exec", name, "--", "sh", "-c", CURRENT)
    assert done.out == f"{PROFILE} (enforce)\n"


@pytest.mark.parametrize("handler", HANDLERS)
def test_its_end_leaves_no_scope(foreign: Machine, handler: str) -> None:
    name = f"{handler}-life"
    folder = cgroup(foreign, name)
    foreign.kubectl("delete", "pod", name)
    foreign.until("its slice gone", lambda: not folder.parents[1].exists())
    foreign.until("its record gone", lambda: folder.name not in os.listdir(f"/run/kubelet-py/oci/{handler}"))


def test_down_leaves_neither_unit_nor_profile(foreign: Machine, untouched: host_state.HostState) -> None:
    foreign.cli("down")
    difference = host_state.settled_difference(untouched, seconds=20)
    left = [line for line in difference if line != "sysctls: +net/bridge/bridge-nf-call-iptables=1"]
    assert left == [], "\n".join(left)
    assert DEFAULT not in LISTED.read_text()
    units = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "kubelet*"]
    assert subprocess.run(units, capture_output=True, text=True, timeout=120).stdout == ""
