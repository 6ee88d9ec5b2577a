"""The package is replaced and the units are restarted under running containers by the scripts of vagrant/."""

from __future__ import annotations

import pytest
import vagrant_steps
from hosts import Hosts
from virtual_machine import VirtualMachine
from workloads import asking, containers, processes

pytestmark = pytest.mark.e2e

MARK = "# Another version."
INSTALLED = "/opt/kubelet-py/venv/lib/python3*/site-packages/kubelet_py/__init__.py"


def agent(machine: VirtualMachine) -> str:
    return machine.run("kubelet-py status --pid agent").out


def upgrade(machine: VirtualMachine, role: str) -> None:
    """Another version of the checkout on the machine, and its provisioners again."""
    machine.run(f"echo '{MARK}' >>/vagrant/kubelet_py/__init__.py")
    vagrant_steps.provision(machine, "install", role)
    vagrant_steps.provision(machine, role, env=vagrant_steps.environment(machine))


@pytest.mark.parametrize("number", [1, 0], ids=["worker", "control"])
def test_an_upgrade_keeps_all_containers_running(hosts: Hosts, number: int) -> None:
    machine = hosts.machines[number]
    role = "worker" if number else "control"
    assert MARK not in machine.run(f"cat {INSTALLED}").out
    before = processes(machine), containers(hosts, machine.name), agent(machine)
    assert before[0] and before[1]
    with asking(hosts, machine) as asked:
        upgrade(machine, role)
        hosts.until("another agent", lambda: agent(machine) not in ("", before[2]))
        hosts.until("Ready", lambda: hosts.ready(machine.name) == "True")
    assert MARK in machine.run(f"cat {INSTALLED}").out
    assert (processes(machine), containers(hosts, machine.name)) == before[:2]
    assert (asked.silent, asked.answers > 0) == ([], True)
    # The new agent has taken them over: it reaches into one, and starts others.
    name = hosts.kubectl("get", "pods", "-l", "app=hello", "--field-selector",
                         f"spec.nodeName={machine.name}", "-o", "name").out.split()[0]  # fmt: skip
    assert f"pod/{hosts.kubectl('exec', name, '--', 'hostname').out.strip()}" == name


@pytest.mark.parametrize("number", [1, 0], ids=["worker", "control"])
def test_a_restarted_unit_disturbs_nobody(hosts: Hosts, number: int) -> None:
    machine = hosts.machines[number]
    before = processes(machine), containers(hosts, machine.name)
    with asking(hosts, machine) as asked:
        machine.run("systemctl stop kubelet-py")
        assert processes(machine) == before[0]
        machine.run("systemctl start kubelet-py")
        hosts.until("an API server", lambda: hosts.kubectl("get", "nodes", check=False).code == 0)
        hosts.until("Ready", lambda: hosts.ready(machine.name) == "True")
    assert (processes(machine), containers(hosts, machine.name)) == before
    assert (asked.silent, asked.answers > 0) == ([], True)
