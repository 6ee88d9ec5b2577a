"""The same machine with the cgroup driver that makes its cgroups by itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import host_state
import pytest
from e2e_node import pod
from machine import Machine

pytestmark = pytest.mark.e2e

KUBEPODS = Path("/sys/fs/cgroup/kubelet-py/kubepods")
CONFIGURATION = """kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
cgroupDriver: cgroupfs
"""


@pytest.fixture(scope="module")
def machine(untouched: host_state.HostState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    file = tmp_path_factory.mktemp("kubelet") / "config.yaml"
    file.write_text(CONFIGURATION)
    machine = Machine()
    machine.import_busybox()
    done = machine.cli("up", "--detach", "--timeout", "300", "--kubelet-config", str(file), check=False)
    assert done.code == 0, f"{done.out}{done.err}{machine.last_words()}"
    yield machine
    machine.cli("reset", "--yes")


def test_limits_are_kept_without_systemd(machine: Machine) -> None:
    limits: dict[str, Any] = {"resources": {"limits": {"cpu": "200m", "memory": "32Mi"}}}
    machine.apply(pod("burner", "while :; do :; done", container=limits))
    machine.wait_running("burner")
    found = machine.get("pod", "burner")
    identifier = found["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
    folder = KUBEPODS / f"pod{found['metadata']['uid']}" / identifier
    for _ in range(2):
        for place in (folder, folder.parent):
            assert (place / "memory.max").read_text() == f"{32 << 20}\n"
            assert (place / "cpu.max").read_text() == "20000 100000\n"
        subprocess.run(["systemctl", "daemon-reload"], check=True, timeout=120)


def test_down_leaves_no_cgroup(machine: Machine) -> None:
    machine.cli("down")
    assert not KUBEPODS.parent.exists()
