"""A worker leaves: its pods run elsewhere, and the machine is as before it joined."""

from __future__ import annotations

import pytest
from hosts import Hosts, state

pytestmark = pytest.mark.e2e

MODULE_S = "sysctls: net/bridge/bridge-nf-call-iptables=1"  # comes with the module that a node loads


def test_a_worker_that_leaves_is_as_before(hosts: Hosts) -> None:
    worker = hosts.workers[0]
    hosts.kubectl("drain", worker.name, "--force", "--ignore-daemonsets", "--delete-emptydir-data")
    worker.run("kubelet-py uninstall --yes")
    assert hosts.kubectl("get", "node", worker.name, check=False).code == 1
    hosts.kubectl("rollout", "status", "deployment/hello", "--timeout", "300s")
    untouched = hosts.untouched[worker.name]
    hosts.until("a machine as before", lambda: not _difference(untouched, state(worker)))
    units = worker.run("systemctl list-units --all --plain --no-legend 'kubelet*'").out
    files = worker.run("ls -d /etc/kubelet-py /var/lib/kubelet-py /run/kubelet-py", check=False).out
    assert (units, files) == ("", "")


def _difference(before: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    lost = [f"{kind}: -{fact}" for kind in before for fact in sorted({*before[kind]} - {*now[kind]})]
    new = [f"{kind}: {fact}" for kind in now for fact in sorted({*now[kind]} - {*before[kind]})]
    return [line for line in lost + new if line != MODULE_S]
