"""Several emulated machines as one cluster, and who uses it from the host with the host's kubectl."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import vagrant_steps
from e2e_node import Done, Node, main_kubectls
from virtual_machine import VirtualMachine, make_bridge

PATIENCE = 600.0


class Hosts(Node):
    """The cluster, seen from the host. What `Node` offers about a node's own processes is not for here."""

    def __init__(self, machines: Sequence[VirtualMachine], folder: Path) -> None:
        self.root = folder
        self.outside = ""
        self.home = folder / "home"
        self.home.mkdir(exist_ok=True)
        self.kubeconfig = folder / "kubeconfig"
        self.default_kubectl = main_kubectls()[-1]
        self.machines = tuple(machines)
        self.control, *self.workers = machines
        self.port = 0
        self.untouched: dict[str, dict[str, list[str]]] = {}

    def kubectl(self, *argv: str, check: bool = True, timeout: float = PATIENCE, **options: Any) -> Done:
        """Asked again where no connection was made in kubectl's own ten seconds: nothing was done then."""
        deadline = time.monotonic() + timeout
        while True:
            done = super().kubectl(*argv, check=False, timeout=timeout, **options)
            if "TLS handshake timeout" not in done.err or time.monotonic() > deadline:
                break
        said = f"kubectl {' '.join(argv)}: exit {done.code}\n{done.out}{done.err}"
        assert not check or done.code == 0, said
        return done

    def until(self, what: str, condition: Any, seconds: float = PATIENCE) -> Any:
        return super().until(what, condition, seconds)

    def last_words(self) -> str:
        """The end of each agent's log."""
        tail = "tail -n 12 /var/log/kubelet-py/agent.log"
        return "\n".join(f"--- {m.name}\n{m.run(tail, check=False, seconds=60).out}" for m in self.machines)

    def up(self) -> None:
        """All that `vagrant up` does. What takes long and needs no order is done at the same time."""
        for machine in self.machines:
            machine.boot()
        with ThreadPoolExecutor() as pool:
            workers = [pool.submit(self._install, machine) for machine in self.workers]
            self.control.wait()
            vagrant_steps.up_control(self.control, self.kubeconfig)
            for done in workers:
                done.result()
        for worker in self.workers:
            vagrant_steps.join_worker(worker, self.control)
        self.port = vagrant_steps.example(self.control, [machine.name for machine in self.machines])

    def _install(self, machine: VirtualMachine) -> None:
        machine.wait()
        vagrant_steps.install_worker(machine)
        self.untouched[machine.name] = state(machine)

    def ask(self, address: str, port: int) -> str:
        """The page at an address, asked from the host; "" where nobody answers."""
        url = f"http://{address}:{port}/"
        done = subprocess.run(["curl", "-s", "-m", "30", url], capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else ""

    def ready(self, name: str) -> str:
        """The condition Ready of a node: True, False or Unknown."""
        path = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        return self.kubectl("get", "node", name, "-o", path).out


def state(machine: VirtualMachine) -> dict[str, list[str]]:
    """host_state.read() on a machine, where the tests came along with the rest of the checkout."""
    program = "import dataclasses, host_state, json; "
    program += "print(json.dumps(dataclasses.asdict(host_state.read()), default=sorted))"
    found = machine.run(f"cd /vagrant/tests && /opt/venv/bin/python -c '{program}'").out
    return dict(json.loads(found))


def machines(count: int, image: Path, folder: Path) -> list[VirtualMachine]:
    make_bridge()
    names = ["control", *(f"worker-{number}" for number in range(1, count))]
    return [VirtualMachine(name, number, image, folder) for number, name in enumerate(names)]

