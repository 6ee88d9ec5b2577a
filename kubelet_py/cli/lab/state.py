"""What a lab consists of: decided by `lab up`, kept in `lab.json`, read by every other verb.

It is written before anything is made, so that whatever a killed `lab up` left can be found by name.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.layout import CONTROL, LabPaths

MOST_NODES = 240
GATEWAY, HOST_NUMBER, CONTROL_NUMBER, FIRST_NODE = 1, 2, 10, 11


@dataclass(frozen=True, slots=True)
class Cable:
    """What was done to a machine's link. `apart` names the machines that it cannot reach, "*" all of them.

    `delay` is in milliseconds and `loss` in per cent, each way.
    """

    apart: tuple[str, ...] = ()
    delay: float = 0.0
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """`number` is the last part of its address."""

    name: str
    number: int
    cable: Cable = Cable()

    @property
    def mac(self) -> str:
        """Fixed, as that of a real machine is: it keeps its neighbours' ARP entries good over a reboot."""
        return f"02:6b:70:79:00:{self.number:02x}"


@dataclass(frozen=True, slots=True)
class Lab:
    """`options` are what nodes are joined with, as `kubelet-py join` has them."""

    network: str
    cluster_cidr: str
    service_cidr: str
    control_options: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    machines: tuple[Machine, ...] = field(default=())

    @property
    def nodes(self) -> tuple[Machine, ...]:
        return tuple(machine for machine in self.machines if machine.name != CONTROL)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(machine.name for machine in self.machines)

    @property
    def prefix(self) -> int:
        return ipaddress.ip_network(self.network).prefixlen

    @property
    def server(self) -> str:
        return f"https://{self.address(CONTROL_NUMBER)}:6443"

    def address(self, number: int) -> str:
        return str(ipaddress.ip_network(self.network)[number])

    def machine(self, name: str) -> Machine:
        """Raises LabError for a name that the lab does not have."""
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise LabError(f"there is no machine {name} in the lab (it has {', '.join(self.names)})")

    def with_cable(self, name: str, cable: Cable) -> Lab:
        changed = replace(self.machine(name), cable=cable)
        return replace(self, machines=tuple(changed if m.name == name else m for m in self.machines))

    def grown(self, nodes: int) -> Lab:
        """The same with nodes up to node<nodes>, and the control machine."""
        missing = [f"node{i}" for i in range(1, nodes + 1) if f"node{i}" not in self.names]
        new = [Machine(name, FIRST_NODE - 1 + int(name.removeprefix("node"))) for name in missing]
        control = () if CONTROL in self.names else (Machine(CONTROL, CONTROL_NUMBER),)
        return replace(self, machines=(*control, *self.machines, *new))


def check(lab: Lab, nodes: int) -> None:
    """Raise LabError for networks that a lab of that many nodes cannot have."""
    try:
        network, pods, services = map(ipaddress.ip_network, (lab.network, lab.cluster_cidr, lab.service_cidr))
    except ValueError as error:
        raise LabError(f"Could not read an address range: {error} (write it like 198.18.44.0/24)") from error
    if network.version != 4 or network.num_addresses < FIRST_NODE + nodes + 1:
        raise LabError(f"--network {network}: it must be IPv4, with room for {nodes} nodes (a /24 for 240)")
    for option, other in (("--cluster-cidr", pods), ("--service-cidr", services)):
        if network.overlaps(other):
            raise LabError(f"--network {network} and {option} {other} overlap (change one)")


def save(paths: LabPaths, lab: Lab) -> None:
    new = paths.state.with_suffix(".new")
    new.write_text(json.dumps(asdict(lab), indent=1) + "\n")
    new.rename(paths.state)


def load(paths: LabPaths) -> Lab | None:
    """The lab of this folder, None where there is none."""
    try:
        data: dict[str, Any] = json.loads(paths.state.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LabError(f"Could not read {paths.state}: {error} ({paths.command} down removes it)") from error
    machines = tuple(
        Machine(m["name"], m["number"], Cable(**m["cable"] | {"apart": tuple(m["cable"]["apart"])}))
        for m in data.pop("machines")
    )
    for name in ("control_options", "options"):
        data[name] = tuple(data[name])
    return Lab(**data, machines=machines)


def require(paths: LabPaths) -> Lab:
    """Raises LabError where there is no lab."""
    lab = load(paths)
    if lab is None:
        raise LabError(f"there is no lab in {paths.root} (make one: {paths.command} up --nodes 3)")
    return lab


def check_folder(paths: LabPaths) -> None:
    """Raise LabError for a folder with something else in it: `lab down` takes away what is there."""
    if not paths.lock.exists() and paths.root.exists() and any(paths.root.iterdir()):
        raise LabError(f"{paths.root} is not empty, and no lab's folder (give another by --root)")


@contextmanager
def locked(paths: LabPaths) -> Iterator[None]:
    """One command at a time changes the lab. Raises LabError."""
    paths.root.mkdir(parents=True, exist_ok=True)
    fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LabError("another `kubelet-py lab` is changing this lab (wait for it)") from error
        yield
    finally:
        os.close(fd)
