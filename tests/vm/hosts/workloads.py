"""What must not be disturbed, or must come back: the machines' containers; and who asks the example."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hosts import Hosts
from virtual_machine import VirtualMachine

# Number and start time of each process of a name: the same ones, not others that took their place.
PROCESSES = "for pid in $(pgrep -x {name}); do echo $pid $(cut -d' ' -f22 /proc/$pid/stat); done"


def processes(machine: VirtualMachine, name: str = "httpd") -> set[str]:
    return set(machine.run(PROCESSES.format(name=name)).out.splitlines())


def _statuses(hosts: Hosts, node: str) -> dict[str, dict[str, Any]]:
    """Pod's uid → its container's status, of the pods on a node."""
    where = ("-A", "--field-selector", f"spec.nodeName={node}")
    found = hosts.kubectl("get", "pods", *where, "-o", "json").json()["items"]
    return {pod["metadata"]["uid"]: pod["status"].get("containerStatuses", [{}])[0] for pod in found}


def containers(hosts: Hosts, node: str) -> dict[str, str]:
    """Pod's uid → its container's ID, of the pods on a node."""
    return {uid: status.get("containerID", "") for uid, status in _statuses(hosts, node).items()}


def all_anew(hosts: Hosts, node: str, before: dict[str, str]) -> bool:
    """Whether the same pods are all ready in other containers than before."""
    now = _statuses(hosts, node)
    return now.keys() == before.keys() and all(
        status.get("ready") and status["containerID"] != before[uid] for uid, status in now.items()
    )


@dataclass(slots=True)
class Asked:
    """How often the example was asked, and when it did not answer (seconds since the start)."""

    answers: int = 0
    silent: list[float] = field(default_factory=list)


@contextmanager
def asking(hosts: Hosts, machine: VirtualMachine) -> Iterator[Asked]:
    """Somebody on the host asks the example through a machine's NodePort, one request after another."""
    asked, stop, begin = Asked(), threading.Event(), time.monotonic()

    def ask() -> None:
        while not stop.wait(0.2):
            moment = time.monotonic() - begin
            if hosts.ask(machine.address, hosts.port).startswith("Hello from "):
                asked.answers += 1
            else:
                asked.silent.append(round(moment, 1))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield asked
    finally:
        stop.set()
        thread.join()
