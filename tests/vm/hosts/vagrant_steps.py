"""What `vagrant up` does to the machines of vagrant/Vagrantfile once they have booted, without Vagrant: the
same scripts in the same order with the same words. tests/unit/test_vagrantfile.py holds both together.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from virtual_machine import Said, VirtualMachine

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPTS = REPOSITORY / "vagrant/provision"
NOT_SYNCED = (
    "./.git", "./.venv", "./.cache", "./.*_cache", "__pycache__", "*.egg-info", ".vagrant", "kubeconfig",
)  # fmt: skip
TOKEN = "kubelet-py token create --ttl 1h --print-join-command"
HANDED = "/tmp/kubelet-py-handed"


def sync(machine: VirtualMachine) -> None:
    machine.unpack(REPOSITORY, "/vagrant", NOT_SYNCED)


def provision(
    machine: VirtualMachine, script: str, *arguments: str, env: Mapping[str, str] | None = None
) -> Said:
    """The shell provisioner: the script is uploaded and started with its environment in front."""
    upload = "/tmp/vagrant-shell"
    machine.run(f"cat >{upload} && chmod +x {upload}", stdin=(SCRIPTS / script).read_bytes())
    words = [f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()]
    said = machine.run(" ".join([*words, upload, *arguments]), seconds=1800)
    print(f"--- {machine.name}: {script}\n{said.out}{said.err}", flush=True)
    return said


def environment(machine: VirtualMachine) -> Mapping[str, str]:
    # The emulated processors are 16 times slower than those that the scripts' patience was made for.
    return {"NODE_IP": machine.address, "READY_SECONDS": "900"}


def up_control(control: VirtualMachine, kubeconfig: Path) -> None:
    sync(control)
    provision(control, "install", "control")
    provision(control, "control", env=environment(control))
    kubeconfig.write_text(control.run("cat /etc/kubelet-py/admin.conf").out)


def install_worker(worker: VirtualMachine) -> None:
    sync(worker)
    provision(worker, "install", "worker")


def join_worker(worker: VirtualMachine, control: VirtualMachine) -> None:
    """With a token made for it before its provisioners run."""
    command = control.run(TOKEN).out
    worker.run(f"mkdir -p {HANDED} && cat >{HANDED}/join", stdin=command.encode())
    provision(worker, "worker", env=environment(worker))


def example(control: VirtualMachine, names: Sequence[str]) -> int:
    """Deploy it when all are Ready; its NodePort."""
    script = f"READY_SECONDS=900 /vagrant/vagrant/provision/example {' '.join(names)}"
    said = control.run(script, seconds=3600)
    print(f"--- the example\n{said.out}{said.err}", flush=True)
    return int(said.out.split()[-1])
