"""cgroupDriver: what the host does not have is refused when the agent starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime import cgroups

pytestmark = pytest.mark.privileged

REPOSITORY = Path(__file__).parents[3]


def test_the_systemd_driver_is_refused_where_systemd_makes_no_cgroups(tmp_path: Path) -> None:
    if cgroups.native() == cgroups.SYSTEMD:
        pytest.skip("a host without systemd is missing")
    file = tmp_path / "kubelet.yaml"
    file.write_text("kind: KubeletConfiguration\ncgroupDriver: systemd\n")
    command = [sys.executable, "-m", "kubelet_py.agent", "--root", str(tmp_path / "node")]
    command += ["--config", str(file)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "kubelet_py.agent: Could not use the systemd cgroup driver" in done.stderr
    assert "use cgroupfs" in done.stderr
    assert not (tmp_path / "node").exists()
