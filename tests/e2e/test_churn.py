"""Many pods made and deleted leave nothing: no process, link, address, cgroup, mount, file."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections import Counter
from pathlib import Path

import host_state
import pytest
from e2e_node import Node, pod

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

BATCH = 20
BATCHES = 10
API_PORT = f":{6443:04X}"


def disk(node: Node) -> set[str]:
    """Files of pods below the root: sandboxes, volumes, writable layers, reservations, logs."""
    folders = ("run/kubelet-py/sandboxes", "var/lib/kubelet-py/pods", "var/lib/kubelet-py/containers",
               "var/lib/kubelet-py/cni", "var/log/pods", "var/log/containers")  # fmt: skip
    found = set()
    for folder in folders:
        # Not by rglob: it fails where a folder goes while it looks (Python before 3.13).
        for parent, folders, files in os.walk(node.root / folder):
            for path in (Path(parent, name) for name in (*folders, *files)):
                if path.name not in ("lock", "last_reserved_ip.0") and not set_aside(path):
                    found.add(str(path.relative_to(node.root)))
    return found


def set_aside(path: Path) -> bool:
    """Whether it stands for an address that the agent keeps ready for a next pod (cni/address_store.py)."""
    if path.parent.parent.name != "networks" or not path.name[0].isdigit():
        return False
    try:
        return path.read_text()[:1] in ("-", "")
    except FileNotFoundError:
        return True  # by now it is not


def open_files(pid: int) -> Counter[str]:
    """How many descriptors of each kind; not the connections to the API server, of which a client keeps as
    many as it ever needed at once (kubeclient/transport.py)."""
    to_api = set()
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
        to_api |= {f"socket:[{row[9]}]" for row in rows if row[2].endswith(API_PORT)}
    found: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # closed meanwhile
        if target not in to_api:
            found[re.sub(r"\d+", "N", target)] += 1
    return found


def steady_state(seconds: float = 2.0) -> host_state.HostState:
    """The host once nothing changed for `seconds`: a new bridge's own IPv6 routes come late."""
    state, since = host_state.read(), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.2)
        now = host_state.read()
        if now != state:
            state, since = now, time.monotonic()
    return state


def without_spare(state: host_state.HostState) -> host_state.HostState:
    """The state without the fork that waits to be the next pod's shim: each pod takes one, and another comes.

    A shim that was left behind looks the same; so of two none is taken out.
    """
    forks = {fact for fact in state.processes if "runtime.forkserver" in fact and _is_fork(fact)}
    return dataclasses.replace(state, processes=state.processes - forks) if len(forks) == 1 else state


def _is_fork(fact: str) -> bool:
    """Whether the process has its parent's command line; the forkserver's parent is the agent."""
    try:
        pid = fact.partition(" ")[0]
        parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
        return Path(f"/proc/{pid}/cmdline").read_bytes() == Path(f"/proc/{parent}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def test_two_hundred_pods_created_and_deleted_in_a_row_leave_nothing(node: Node) -> None:
    node.apply(pod("first"))
    node.wait_running("first")
    node.kubectl("delete", "pod", "first")
    before, files = without_spare(steady_state()), disk(node)
    agent = node.pid("agent")
    fds, tasks = open_files(agent), threads(agent)
    for batch in range(BATCHES):
        names = [f"churn-{batch}-{i}" for i in range(BATCH)]
        node.apply(*(pod(name, "trap 'exit 0' TERM; sleep 600 & wait") for name in names))
        node.kubectl("wait", "--for=condition=Ready", *(f"pod/{name}" for name in names), "--timeout=60s")
        node.kubectl("delete", "pods", "--all", "--timeout=60s")
    assert node.kubectl("get", "pods", "-o", "name").out == ""
    node.until("nothing is left", lambda: not before.difference(without_spare(host_state.read())))
    node.until("files gone", lambda: disk(node) <= files)
    try:
        node.until("descriptors closed", lambda: (open_files(agent) - fds).total() <= 5)
    except AssertionError as error:
        error.add_note(f"more than before: {open_files(agent) - fds}")
        raise
    node.until("threads ended", lambda: threads(agent) <= tasks + 5, seconds=60)
    zombies = [p for p in Path("/proc").glob("[0-9]*/stat") if _is_zombie_of(p, agent)]
    assert zombies == []


def _is_zombie_of(stat: Path, parent: int) -> bool:
    try:
        state, ppid = stat.read_text().rsplit(")", 1)[1].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state == "Z" and int(ppid) == parent
