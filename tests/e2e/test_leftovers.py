"""What a SIGKILL at the wrong moment leaves behind is found again by the next look, and taken away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from chaos_truth import leases, run
from e2e_node import Node, pod

from kubelet_py.paths import NodePaths
from runtime import cgroups

pytestmark = pytest.mark.e2e

GONE = "0a000000-0000-4000-8000-00000000dead"


def chains() -> list[str]:
    return re.findall(r"^:(CNI-DN-\S+)", run("iptables-save", "-t", "nat"), re.M)


def kill_shim(node: Node, name: str) -> str:
    """The id of the sandbox that has lost it."""
    uid = node.get("pod", name)["metadata"]["uid"]
    for record in NodePaths(node.root).sandboxes.glob("*/sandbox.json"):
        if uid in record.read_text():
            shim = int(re.findall(r'"shim": ?{"pid": ?(\d+)', (record.parent / "state.json").read_text())[0])
            os.kill(shim, signal.SIGKILL)
            return record.parent.name
    raise AssertionError(f"no sandbox of {name}")


def container(node: Node, name: str) -> Any:
    """{} until the agent has said something of it."""
    return (node.get("pod", name)["status"].get("containerStatuses") or [{}])[0]


def test_a_pod_that_lost_its_shim_gives_its_address_and_ports_back_before_it_gets_others(node: Node) -> None:
    ports = {"ports": [{"containerPort": 8080, "hostPort": 23999}]}
    node.apply(pod("shimless", container=ports))
    node.wait_running("shimless")
    before = container(node, "shimless")["containerID"]
    lost = kill_shim(node, "shimless")

    def again() -> bool:
        now = container(node, "shimless")
        return "running" in now["state"] and now["containerID"] != before

    node.until("a new container", again, seconds=60)
    assert lost not in leases(NodePaths(node.root)).values()
    assert len(chains()) == 1
    node.kubectl("delete", "pod", "shimless")
    assert leases(NodePaths(node.root)) == {} and chains() == []


def test_what_an_agent_killed_in_the_middle_of_a_removal_left_is_cleared_away_by_the_next(node: Node) -> None:
    paths = NodePaths(node.root)
    node.apply(pod("borrowed", container={"ports": [{"containerPort": 8080, "hostPort": 23998}]}))
    node.wait_running("borrowed")
    (attachment,) = (paths.cni_state / "results").glob("*-eth0")
    (address,) = leases(paths)
    (lease,) = (paths.cni_state / "networks").glob(f"*/{address}")
    kept = {file: file.read_text() for file in (attachment, lease)}
    node.kubectl("delete", "pod", "borrowed")
    assert not attachment.exists() and leases(paths) == {}

    supervisor = node.pid("supervisor")
    os.kill(supervisor, signal.SIGSTOP)  # the next agent does not come before all is there
    try:
        os.kill(node.pid("agent"), signal.SIGKILL)
        left = leave_behind(paths, kept)
        assert len(left()) == 6
    finally:
        os.kill(supervisor, signal.SIGCONT)
    node.until("nothing left", lambda: not left(), seconds=60)


def leave_behind(paths: NodePaths, kept: Mapping[Path, str]) -> Callable[[], list[Path | str]]:
    """The files that were kept, and all that a pod may have besides; what says which of it is there."""
    for file, text in kept.items():
        file.write_text(text)
    log = paths.pod_logs / f"default_gone_{GONE}" / "main" / "0.log"
    link = paths.container_logs / f"gone_default_main-{'a' * 64}.log"
    volume = paths.pods / GONE / "volumes" / "kubernetes.io~secret" / "token"
    log.parent.mkdir(parents=True)
    log.write_text("")
    link.symlink_to(log)
    volume.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(volume)], check=True)
    driver = cgroups.choose(cgroups.native())
    group = driver.names.group(paths.cgroup_root, "kubepods", "besteffort", f"pod{GONE}")
    driver.create(group)

    def left() -> list[Path | str]:
        files = [file for file in (*kept, log.parent.parent, paths.pods / GONE) if file.exists()]
        return [*files, *([link] if link.is_symlink() else []), *([group] if driver.exists(group) else [])]

    return left


def test_of_a_container_that_crashes_again_and_again_the_last_two_logs_are_kept(node: Node) -> None:
    paths = NodePaths(node.root)
    node.apply(pod("crashing", "echo crashed; exit 1"))
    node.until("two restarts", lambda: container(node, "crashing").get("restartCount", 0) >= 2, seconds=120)
    [folder] = paths.pod_logs.glob("default_crashing_*/main")
    links = paths.container_logs

    def kept() -> tuple[int, int]:
        return len(list(folder.iterdir())), len(list(links.glob("crashing_default_main-*.log")))

    node.until("two logs and two links", lambda: kept() == (2, 2))
    assert not (folder / "0.log").exists()
    assert all(link.exists() for link in links.glob("crashing_default_main-*.log"))
    assert node.kubectl("logs", "crashing", "--previous").out == "crashed\n"
    node.kubectl("delete", "pod", "crashing")
