"""Machines that reboot, with and without a word: their pods come back, and meanwhile the others serve."""

from __future__ import annotations

import pytest
from hosts import Hosts
from workloads import all_anew, containers, processes

pytestmark = pytest.mark.e2e


def settled(hosts: Hosts) -> bool:
    """Whether each node is Ready and the example answers through each."""
    names = [machine.name for machine in hosts.machines]
    done = hosts.kubectl("get", "nodes", check=False)
    if done.code != 0 or any(hosts.ready(name) != "True" for name in names):
        return False
    return all(hosts.ask(machine.address, hosts.port) for machine in hosts.machines)


HOW = {"ordered": "systemctl reboot", "power cut": "echo b >/proc/sysrq-trigger"}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_a_worker_s_pods_come_back(hosts: Hosts, how: str) -> None:
    """The same pods in new containers. sysrq's b neither ends a process nor writes a page back."""
    worker, others = hosts.workers[0], [m for m in hosts.machines if m is not hosts.workers[0]]
    hosts.until("all settled", lambda: settled(hosts))
    before, undisturbed = containers(hosts, worker.name), {m.name: processes(m) for m in others}
    assert before
    worker.reboot(how)
    hosts.until("the same pods in new containers", lambda: all_anew(hosts, worker.name, before))
    hosts.until("all settled", lambda: settled(hosts))
    assert worker.run("systemctl is-system-running", check=False).out.strip() in ("running", "degraded")
    assert worker.run("systemctl is-active kubelet-py").out == "active\n"
    assert {m.name: processes(m) for m in others} == undisturbed


def test_the_control_plane_comes_back(hosts: Hosts) -> None:
    """While it is away the workers' pods run on; then it knows what it knew, and its own pods are back."""
    control = hosts.control
    hosts.until("all settled", lambda: settled(hosts))
    before, undisturbed = containers(hosts, control.name), {m.name: processes(m) for m in hosts.workers}
    objects = hosts.kubectl("get", "deployments,services,secrets,serviceaccounts", "-A", "-o", "name").out
    control.reboot()
    hosts.until("an API server", lambda: hosts.kubectl("get", "nodes", check=False).code == 0)
    hosts.until("the same pods in new containers", lambda: all_anew(hosts, control.name, before))
    hosts.until("all settled", lambda: settled(hosts))
    now = hosts.kubectl("get", "deployments,services,secrets,serviceaccounts", "-A", "-o", "name").out
    assert now == objects
    assert {m.name: processes(m) for m in hosts.workers} == undisturbed
