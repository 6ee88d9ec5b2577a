"""docs/lab.md as somebody types it: its first commands, its Deployment, and its exercises in their order.

`sudo` and `kubelet-py` on PATH are this checkout's, and the lab is below a folder of this test. What takes
minutes to be seen (eviction) is in test_scenarios.py; here every command has to be right, and to do what the
page says at once.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import host_state
import pytest
from e2e_node import KUBECTLS, REPOSITORY
from lab_cluster import LabCluster

pytestmark = pytest.mark.e2e

PAGE = (REPOSITORY / "docs/lab.md").read_text()
BLOCKS = [
    re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.S)
]
EXERCISES = re.findall(r"^(\d)\. (.*?)(?=^\d\. |^## )", PAGE, re.M | re.S)
SPREAD = "lab kubectl rollout restart deployment web"
SEEN = {  # what the page says of a command, as the command itself shows it
    "lab node node2 kill": "node2 is off: its power was cut",
    "lab node node2 stop": "node2 is off, after an orderly shutdown",
    "lab node node2 start --wait": "node2 is on, and Ready",
    "lab node node2 partition": "node2 is cut off from all others",
    "lab exec node2 -- kubelet-py status": "running here  default/web-",
    "lab node control start --wait": "control is on, and answers",
    "lab logs node3 agent": " kubelet_py.",
    "lab node node2 pause": "node2 is paused",
    "lab node node2 start": "node2 goes on",
    "lab exec node1 -- ip route": "10.244.0.0/16",
}
NOT_READY = "lab exec node2 -- kubelet-py status"  # its exit code says that the node is cut off


class Typist:
    """A shell in which `sudo kubelet-py lab …` is the lab below `cluster`'s folder."""

    def __init__(self, cluster: LabCluster) -> None:
        self.cluster = cluster
        self.folder = cluster.root / "bin"
        self.folder.mkdir()
        lab = shlex.join([sys.executable, "-m", "kubelet_py", "lab", "--root", str(cluster.lab_root)])
        self._write("kubelet-py", f'[ "$1" = lab ] || exit 2\nshift\nexec {lab} "$@"')
        self._write("sudo", 'exec "$@"')
        self._write("kubectl", f'exec {shlex.quote(str(next(iter(KUBECTLS.values()))))} "$@"')

    def _write(self, name: str, lines: str) -> None:
        file = self.folder / name
        file.write_text(f"#!/bin/sh\n{lines}\n")
        file.chmod(0o755)

    def type(self, command: str, *codes: int) -> str:
        """What it prints; its exit code must be one of `codes` (0 where none is given)."""
        if command.startswith("lab "):
            command = f"sudo kubelet-py {command}"
        environment = self.cluster.environment() | {"PATH": f"{self.folder}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            timeout=600,
            env=environment,
            cwd=REPOSITORY,
        )
        assert done.returncode in (codes or (0,)), (command, done)
        return done.stdout


@pytest.fixture(scope="module")
def typist() -> Iterator[Typist]:
    if not KUBECTLS:
        pytest.skip("no kubectl was found, neither Debian's 1.20 in .cache nor one on PATH")
    before = host_state.read()
    root = Path(tempfile.mkdtemp(prefix="kpy-page-", dir="/tmp"))
    cluster = LabCluster(root)
    found = Typist(cluster)
    try:
        yield found
    finally:
        cluster.cli("down")
        shutil.rmtree(root)
    assert host_state.settled_difference(before) == []


def test_the_first_commands_make_a_cluster_of_three(typist: Typist) -> None:
    first, deployment = BLOCKS
    assert first[0].startswith("sudo kubelet-py lab up --nodes 3") and first[-1].startswith(
        "sudo kubelet-py lab down"
    )
    said = [typist.type(command) for command in first[:-1]]
    assert "node3 is Ready" in said[0] and said[1].count("busybox:latest") == 3
    assert all(said[2].count(name) == 1 for name in ("node1", "node2", "node3"))
    assert re.search(r"^node3 .* on .* True ", said[3], re.MULTILINE)
    assert "service/web created" in typist.type(deployment[0])
    typist.type("lab kubectl rollout status deployment web --timeout=120s")
    assert deployment[1].startswith("while sleep") and "http://198.18.44.11:30080/" in deployment[1]
    typist.cluster.until(
        "a pod answers",
        lambda: typist.type("curl -s -m 1 http://198.18.44.11:30080/ || true").startswith("web-"),
    )


@pytest.mark.parametrize(("number", "text"), EXERCISES, ids=[number for number, _ in EXERCISES])
def test_an_exercise_can_be_typed_as_it_stands(number: str, text: str, typist: Typist) -> None:
    commands = re.findall(r"`(lab [^`]*)`", text)
    assert commands
    if number == "3":  # the page: do that between two exercises; the others need no pod on node2
        typist.type(SPREAD)
        typist.type("lab kubectl rollout status deployment web --timeout=120s")
        assert "node2" in typist.type("lab kubectl get pods -o wide")
    for command in commands:
        if command.endswith(" -w"):
            said = typist.type(f"sudo timeout 2 kubelet-py {command}", 124)
        else:
            said = typist.type(command, *((1,) if command == NOT_READY else ()))
        assert SEEN.get(command, "") in said, (command, said)
    if number == "4":
        typist.type("lab kubectl rollout status deployment web --timeout=120s")
    machines = typist.cluster.machines()
    assert {(machine["power"], machine["cable"]) for machine in machines.values()} == {("on", "ok")}


def test_every_expectation_is_of_a_command_that_the_page_has() -> None:
    assert [number for number, _ in EXERCISES] == [str(i) for i in range(1, 8)]
    assert set(SEEN) <= {command for _, text in EXERCISES for command in re.findall(r"`(lab [^`]*)`", text)}
