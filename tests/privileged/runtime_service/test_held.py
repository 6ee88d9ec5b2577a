"""A container that is set up while its pod is being wired: it waits, it is let go, or it has never been."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runtime import held as held_module
from runtime.capabilities import DEFAULT
from runtime.errors import RuntimeFailure, StartError
from runtime.gate import Gate
from runtime.held import HeldContainer
from runtime.machine import this_machine
from runtime.sandbox_start import SandboxStart
from runtime.seccomp.profile import runtime_default
from runtime.shim_link import SHIM_LOST
from runtime.values import SandboxConfig
from tests.privileged.runtime_service.harness import ROOT_CGROUP, Node, cgroups_made, gone, shims, wait_for

pytestmark = pytest.mark.privileged

ALLOWED = runtime_default(DEFAULT, this_machine().name)
WITHOUT_READ = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["readv"], "action": "SCMP_ACT_ERRNO"}, {"names": ["read"], "action":
    "SCMP_ACT_ERRNO"}],
}


def begin(node: Node, **values: Any) -> SandboxStart:
    known = {"name": "pod", "namespace": "test", "uid": "u1", "hostname": "pod-name"}
    return node.service.begin_pod_sandbox(
        SandboxConfig(cgroup_parent=f"{ROOT_CGROUP}/pod", **{**known, **values})
    )


def held(node: Node, start: SandboxStart, argv: list[str], **values: Any) -> HeldContainer:
    found = node.service.hold_container(start, node.config(argv, **values))
    assert found is not None
    return found


def waiting(held: HeldContainer) -> int:
    """The pid of the process at the gate, once it is there: in its cgroup, and in read(2)."""

    def look() -> int:
        for tree in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
            procs = Path(f"{tree}/{ROOT_CGROUP}/pod/{held.id}/cgroup.procs")
            for pid in procs.read_text().split() if procs.exists() else ():
                with contextlib.suppress(OSError):  # it has ended
                    call = Path(f"/proc/{pid}/syscall").read_text().split()
                    if call[:1] == [str(this_machine().numbers["read"])]:
                        return int(pid)
        return 0

    return int(wait_for(look))


def files_of(pid: int) -> list[str]:
    """What it has open."""
    return [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]


@pytest.mark.parametrize("seccomp", [None, ALLOWED, WITHOUT_READ], ids=["none", "allowed", "without read"])
def test_it_is_ready_and_waits_until_it_is_let_go(node: Node, seccomp: dict[str, Any] | None) -> None:
    start = begin(node)
    values = {"seccomp": seccomp} if seccomp else {}
    one = held(node, start, ["sh", "-c", "hostname; echo $A"], env=["PATH=/bin", "A=b"], **values)
    sandbox = start.finish()
    pid = waiting(one)
    assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink(sandbox.netns)
    assert os.readlink(f"/proc/{pid}/exe") != "/bin/busybox", "its program has not begun"
    assert node.service.list_containers() == [], "nobody knows of it"
    identifier = node.service.release_container(one)
    assert identifier == one.id
    assert node.ended(identifier).exit_code == 0
    assert node.log(identifier) == b"pod-name\nb\n"
    wait_for(lambda: [event.type for event in node.events] == ["started", "exited"])


def test_its_program_has_no_descriptor_of_the_gate(node: Node) -> None:
    start = begin(node)
    one = held(node, start, ["sh", "-c", "ls /proc/self/fd; cat /proc/self/status"], seccomp=ALLOWED)
    start.finish()
    node.service.release_container(one)
    node.ended(one.id)
    lines = node.log(one.id).decode().split("\n")
    assert lines[:4] == ["0", "1", "2", "3"] and lines[4].startswith("Name:"), "3 is the folder that ls reads"
    assert "Seccomp:\t2" in lines


def test_one_that_is_dropped_has_never_been(node: Node) -> None:
    start = begin(node)
    one = held(node, start, ["echo", "never"])
    sandbox = start.finish()
    pid = waiting(one)
    node.service.drop_container(one)
    assert gone(pid) and node.service.list_containers() == [] and node.events == []
    assert not Path(one.container.config.log_path).exists(), "as if it had never been"
    assert node.service.wait_for_removals(60)
    assert os.listdir(node.folder / "containers") == []
    assert not [folder for folder in cgroups_made() if one.id in folder]
    wait_for(lambda: one.container.config.log_path not in files_of(min(shims(node.folder))))
    again = node.run(sandbox, ["echo", "now"])  # the shim is free for the next one
    assert node.ended(again).exit_code == 0


def test_the_pod_can_be_ended_after_it_was_dropped(node: Node) -> None:
    start = begin(node)
    one = held(node, start, ["sleep", "100"])
    start.finish()
    node.service.drop_container(one)
    began = time.monotonic()
    node.service.remove_pod_sandbox(start.id)
    assert time.monotonic() - began < 60 and node.service.list_sandboxes() == []


def test_what_cannot_be_prepared_is_not_held(node: Node) -> None:
    start = begin(node)
    for config in (node.config(["true"], tty=True), node.config(["no-such-program"])):
        assert node.service.hold_container(start, config) is None
    sandbox = start.finish()
    assert node.service.wait_for_removals(60)
    names = {Path(folder).name for folder in cgroups_made()}
    assert {name for name in names if len(name) == len(start.id)} == {start.id}
    assert os.listdir(node.folder / "containers") == []
    with pytest.raises(StartError, match='exec: "no-such-program"'):
        node.run(sandbox, ["no-such-program"])


def test_a_program_that_stops_on_its_way_is_started_as_any_other(node: Node) -> None:
    """What it had foreseen is not so any more."""
    start = begin(node)
    shim = wait_for(lambda: shims(node.folder)).pop()
    os.kill(shim, signal.SIGSTOP)
    try:
        one = held(node, start, ["sh", "-c", "echo done"])
        (node.folder / "containers" / one.id / "program").unlink()
    finally:
        os.kill(shim, signal.SIGCONT)
    start.finish()
    node.service.release_container(one)
    assert node.ended(one.id).exit_code == 0 and node.log(one.id) == b"done\n"


def test_what_is_wrong_with_it_is_told_when_it_is_let_go(node: Node) -> None:
    start = begin(node)
    one = held(node, start, ["true"], mounts=[{"destination": "/x", "type": "tmpfs", "options": ["uid=x"]}])
    sandbox = start.finish()
    with pytest.raises(StartError, match="mount tmpfs on /x"):
        node.service.release_container(one)
    found = node.service.container(one.id)
    assert (found.state, found.exit_code, found.reason) == ("EXITED", 128, "StartError")
    assert node.ended(node.run(sandbox, ["true"])).exit_code == 0


def test_a_pause_that_does_not_start_ends_it(node: Node) -> None:
    start = begin(node, sysctls={"net.ipv4.no_such_setting": "1"})
    one = node.service.hold_container(start, node.config(["true"]))
    with pytest.raises(StartError, match="no_such_setting"):
        start.finish()
    if one is not None:  # the shim had gone before, else
        node.service.drop_container(one)
    assert node.service.wait_for_removals(60)
    assert os.listdir(node.folder / "containers") == [] == os.listdir(node.folder / "run/sandboxes")


def test_a_process_that_loses_its_maker_is_not_let_go(node: Node) -> None:
    """Which waits for it, beside the shim: there is one container then, started as any other."""
    start = begin(node)
    one = held(node, start, ["sh", "-c", "echo once; sleep 100"])
    start.finish()
    pid = waiting(one)
    shim, maker = sorted(shims(node.folder))
    os.kill(maker, signal.SIGKILL)
    wait_for(lambda: gone(pid))
    node.service.release_container(one)
    assert node.service.container(one.id).state == "RUNNING" and not gone(shim)
    wait_for(lambda: node.log(one.id) == b"once\n")
    wait_for(lambda: [event.type for event in node.events] == ["started"])


def test_a_shim_that_is_killed_lets_nobody_through(node: Node) -> None:
    start = begin(node)
    one = held(node, start, ["sleep", "100"])
    start.finish()
    pid = waiting(one)
    os.kill(min(shims(node.folder)), signal.SIGKILL)
    wait_for(lambda: node.service.list_sandboxes()[0].state == "NOTREADY")
    with pytest.raises(RuntimeFailure):
        node.service.release_container(one)
    wait_for(lambda: gone(pid))
    node.service.remove_container(one.id)
    assert node.service.wait_for_removals(60)
    assert not [folder for folder in cgroups_made() if one.id in folder]


AGENT = """
import json, sys, time
from pathlib import Path
from runtime import cgroups
from runtime.service import RuntimeService
from runtime.values import ContainerConfig, SandboxConfig
given = json.loads(sys.argv[1])
places = {name: Path(given[name]) for name in ("run_dir", "state_dir")}
service = RuntimeService(**places, cgroups=cgroups.detect())
service.start()
start = service.begin_pod_sandbox(SandboxConfig(**given["sandbox"]))
given["container"]["layers"] = tuple(given["container"]["layers"])
one = service.hold_container(start, ContainerConfig(**given["container"]))
start.finish()
print(one.id, flush=True)
time.sleep(60)
"""


def test_an_agent_that_is_killed_takes_it_along(node: Node) -> None:
    """Its gate goes with it; the next agent finds a pod in which there was never a container."""
    config = node.config(["sh", "-c", "echo never; sleep 100"])
    given = {
        "run_dir": str(node.folder / "run"),
        "state_dir": str(node.folder / "containers"),
        "sandbox": {
            "name": "pod", "namespace": "test", "uid": "u1", "hostname": "p", "cgroup_parent":
            f"{ROOT_CGROUP}/pod"
        },
        "container": {
            "name": "main", "attempt": 0, "image": "b", "image_id": "i", "spec": config.spec,
            "layers": list(config.layers), "log_path": config.log_path,
        },
    }  # fmt: skip
    command = [sys.executable, "-c", AGENT, json.dumps(given)]
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert agent.stdout is not None
        with agent.stdout as output:
            identifier = output.readline().strip()
        assert identifier
    finally:
        agent.kill()
        agent.wait()
    folder = node.folder / "containers" / identifier
    second = node.fresh()
    second.start()
    try:
        assert second.list_containers() == []
        (sandbox,) = second.list_sandboxes()
        assert second.wait_for_removals(60) and not folder.exists()
        assert not [tree for tree in cgroups_made() if tree.endswith(identifier)]
        assert not Path(config.log_path).exists()
        again = second.create_container(sandbox.id, config)  # the shim is free for the next one
        second.start_container(again)
        assert second.container(again).state == "RUNNING"
        second.remove_pod_sandbox(sandbox.id)
    finally:
        second.close()


def test_nobody_waits_at_the_gate_of_another(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was dropped before the shim had found its gate, which another container has the number of now."""
    monkeypatch.setattr(held_module, "GATE_SECONDS", 3.0)
    start = begin(node)
    shim = wait_for(lambda: shims(node.folder)).pop()
    os.kill(shim, signal.SIGSTOP)
    one = held(node, start, ["echo", "never"])
    number = one._gate._reader
    one._gate.close()
    other = Gate()
    try:
        assert other._reader == number
        os.kill(shim, signal.SIGCONT)
        start.finish()
        assert one.wait()["started"] is False
        other.open()
        assert os.read(other._reader, 1) == b"1", "nobody was let go by it"
    finally:
        other.close()
    node.service.drop_container(one)
    assert not Path(one.container.config.log_path).exists()


def test_one_that_is_killed_at_the_gate_has_ended(node: Node) -> None:
    """Though its end is told before it is anybody's."""
    start = begin(node)
    one = held(node, start, ["echo", "never"])
    start.finish()
    os.kill(waiting(one), signal.SIGKILL)
    wait_for(lambda: [event.type for event in node.events] == ["started", "exited"])
    node.service.release_container(one)
    found = node.service.container(one.id)
    assert (found.state, found.exit_code) == ("EXITED", 137)
    assert not Path(found.config.log_path).exists() or b"never" not in node.log(one.id)


def test_an_answer_that_is_lost_with_the_shim_ends_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs by then, which its record says."""
    start = begin(node)
    one = held(node, start, ["sleep", "100"])
    start.finish()
    pid = waiting(one)
    answered = one.wait

    def lost() -> dict[str, Any]:
        assert answered()["started"]
        shim = min(shims(node.folder))
        os.kill(shim, signal.SIGKILL)
        wait_for(lambda: gone(shim))
        return {"error": "the pod's shim has gone", "kind": SHIM_LOST}

    monkeypatch.setattr(one, "wait", lost)
    monkeypatch.setattr(node.service._endings, "end_lost", lambda sandbox: None)  # it comes later
    with pytest.raises(StartError, match="shim has gone"):
        node.service.release_container(one)
    found = node.service.container(one.id)
    assert (found.state, found.exit_code) == ("EXITED", 137) and gone(pid)
    wait_for(lambda: node.events and node.events[-1].type == "exited")
