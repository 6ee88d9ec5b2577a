"""Vagrant itself, where it is installed, over the machines: the Vagrantfile's folders, provisioners and
triggers, all of which may be run again over a cluster that is up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import vagrant_steps
from hosts import Hosts
from workloads import containers, processes

pytestmark = pytest.mark.e2e

IGNORED = (".git", ".venv", ".cache", ".*_cache", "__pycache__", "*.egg-info", ".vagrant", "kubeconfig")


def test_vagrant_up_ends_with_the_example_answering(hosts: Hosts, tmp_path: Path) -> None:
    program = shutil.which("vagrant")
    if program is None:
        pytest.skip("vagrant is missing (apt-get install vagrant rsync)")
    shutil.copytree(vagrant_steps.REPOSITORY, tmp_path / "copy", ignore=shutil.ignore_patterns(*IGNORED))
    (tmp_path / "home").mkdir()
    shutil.copy(Path(__file__).with_name("running_machines.rb"), tmp_path / "home/Vagrantfile")
    environment = os.environ | {
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_DEFAULT_PROVIDER": "running",
        "RUNNING_MACHINES_KEY": str(hosts.control.key),
        "WORKERS": str(len(hosts.workers)),
        "READY_SECONDS": "900",
    }
    before = [(processes(machine), containers(hosts, machine.name)) for machine in hosts.machines]
    done = subprocess.run(
        [program, "up"], cwd=tmp_path / "copy/vagrant", env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5000,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    for machine in hosts.machines:
        line = rf"{machine.name}: http://{machine.address}:{hosts.port}/ says: Hello from hello-"
        assert re.search(line, done.stdout), line
    kubeconfig = tmp_path / "copy/vagrant/kubeconfig"
    assert kubeconfig.stat().st_mode & 0o777 == 0o600
    assert kubeconfig.read_text() == hosts.kubeconfig.read_text()
    assert [(processes(machine), containers(hosts, machine.name)) for machine in hosts.machines] == before
