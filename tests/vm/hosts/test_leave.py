"""A worker leaves: its pods run elsewhere, and the machine is as before it joined."""

from __future__ import annotations

import time

import pytest
from hosts import Hosts, state
from virtual_machine import VirtualMachine

pytestmark = pytest.mark.e2e

MODULE_S = "sysctls: net/bridge/bridge-nf-call-iptables=1"  # comes with the module that a node loads


def test_a_worker_that_leaves_is_as_before(hosts: Hosts) -> None:
    worker = hosts.workers[0]
    hosts.kubectl("drain", worker.name, "--force", "--ignore-daemonsets", "--delete-emptydir-data")
    worker.run("kubelet-py uninstall --yes")
    assert hosts.kubectl("get", "node", worker.name, check=False).code == 1
    hosts.kubectl("rollout", "status", "deployment/hello", "--timeout", "300s")
    untouched = hosts.untouched[worker.name]
    deadline = time.monotonic() + 120
    while (found := _difference(untouched, state(worker))) and time.monotonic() < deadline:
        time.sleep(1)
    assert found == []
    units = worker.run("systemctl list-units --all --plain --no-legend 'kubelet*'").out
    files = worker.run("ls -d /etc/kubelet-py /var/lib/kubelet-py /run/kubelet-py", check=False).out
    assert (units, files, _ours(worker)) == ("", "", "")
    assert "kubelet-py" not in worker.run("cat /sys/kernel/security/apparmor/profiles").out


def _ours(worker: VirtualMachine) -> str:
    """Processes of a node or its pods. The machine's other ones come and go, with other numbers each time."""
    return worker.run("pgrep -x pause; pgrep -x httpd; pgrep -f '[/]opt/kubelet-py/venv'", check=False).out


def _difference(before: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    kinds = before.keys() - {"processes"}
    lost = [f"{kind}: -{fact}" for kind in kinds for fact in sorted({*before[kind]} - {*now[kind]})]
    new = [f"{kind}: {fact}" for kind in kinds for fact in sorted({*now[kind]} - {*before[kind]})]
    return [line for line in lost + new if line != MODULE_S]
