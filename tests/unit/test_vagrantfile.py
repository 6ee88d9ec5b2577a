"""vagrant/: Vagrant itself accepts the file, and what hack/vm/hosts does in its place are the same steps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VAGRANT = ROOT / "vagrant"
TEXT = (VAGRANT / "Vagrantfile").read_text()
SCRIPTS = sorted((VAGRANT / "provision").iterdir())

sys.path.insert(0, str(ROOT / "tests/vm/hosts"))
import vagrant_steps  # noqa: E402  (lies beside the tests that need virtual machines)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing (apt-get install vagrant vagrant-libvirt)")
    return found


def test_vagrant_accepts_the_file(tmp_path: Path) -> None:
    copy = tmp_path / "vagrant"
    shutil.copytree(VAGRANT, copy, ignore=shutil.ignore_patterns(".vagrant", "kubeconfig"))
    own = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DEFAULT_PROVIDER": "libvirt"}
    chosen = {"BOX": "ubuntu2404", "WORKERS": "3", "LIBVIRT_DRIVER": "qemu"}
    argv, environment = [program("vagrant"), "validate"], os.environ | own | chosen
    done = subprocess.run(argv, cwd=copy, capture_output=True, text=True, timeout=250, env=environment)
    assert (done.returncode, "validated successfully" in done.stdout) == (0, True), done


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WORKERS", "many", "WORKERS=many must be a number from 0 to 9"),
        ("MEMORY", "64", "MEMORY=64 must be a number from 512 to 262144"),
        ("NETWORK", "10.0.2.0/24", "NETWORK=10.0.2.0/24 must be three numbers with dots"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, message: str) -> None:
    argv = [program("ruby"), VAGRANT / "Vagrantfile"]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {name: value}, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"Vagrantfile: {message}\n")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_can_be_run(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def test_hack_vm_hosts_does_what_vagrant_does() -> None:
    """The same scripts with the same arguments, variables, token and folder. Regular expressions read Ruby
    here: who rewrites the Vagrantfile has to look at vagrant_steps.py, too."""
    steps = re.findall(r'vm\.provision (\S+), type: "(\w+)", (.*)', TEXT)
    assert steps == [
        ('"install"', "shell", 'path: "provision/install", args: [role]'),
        ('"handed"', "file", f'source: handed, destination: "{vagrant_steps.HANDED}"'),
        ("role", "shell", 'path: "provision/#{role}", env: environment'),
    ]
    assert 'environment = { "NODE_IP" => node[:address], "READY_SECONDS" => patience }' in TEXT
    assert f'ask(control, "{vagrant_steps.TOKEN}")' in TEXT
    assert 'script = "READY_SECONDS=#{patience} /vagrant/vagrant/provision/example"' in TEXT
    assert 'ask(control, "#{script} #{nodes.keys.join(\' \')}")' in TEXT
    assert 'ask(this, "cat /etc/kubelet-py/admin.conf")' in TEXT
    used = {"install", "control", "worker", "example"}
    assert used == {script.name for script in SCRIPTS}
