"""Clock, disks, ports, swap, and other programs that do a node's work. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from kubelet_py.cli.doctor.finding import DEGRADED, MISSING, OK, Finding

LEAST_FREE, COMFORTABLE_FREE = 128 << 20, 1 << 30
RUN_LEAST, RUN_FREE = 4 << 20, 32 << 20
LEAST_INODES, COMFORTABLE_INODES = 1000, 20000
# Programs that do what a node does; containerd, docker and podman may run beside it.
RIVALS = {"kubelet": "kubelet", "kube-proxy": "kube-proxy", "k3s": "k3s", "k3s-server": "k3s", "k0s": "k0s"}
NEIGHBOURS = ("containerd", "crio", "dockerd")


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes and inodes free for us at `place`; `inodes` is None where the file system does not count them.
    `run`: nothing but sockets and state lies there, as in /run, which has a tenth of the machine's memory.
    `overlay`: it is one itself, as a container's root is."""

    place: str
    free: int
    inodes: int | None
    run: bool = False
    overlay: bool = False


@dataclass(frozen=True, slots=True)
class Port:
    """`holder` has it, "" where it is free; `ours` where that is this very node."""

    number: int
    what: str
    option: str
    holder: str
    ours: bool


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """`synchronised` is what the kernel says of its clock, None where it does not say."""

    synchronised: bool | None
    disks: tuple[Disk, ...]
    ports: tuple[Port, ...]
    swap: tuple[str, ...]
    programs: frozenset[str]


def judge(facts: MachineFacts) -> list[Finding]:
    return [
        clock(facts.synchronised),
        *(disk(each, first=number == 0) for number, each in enumerate(facts.disks)),
        ports(facts.ports),
        swap(facts.swap),
        others(facts.programs),
    ]


def clock(synchronised: bool | None) -> Finding:
    purpose = "certificates, tokens and leases, which other machines check by their own clocks"
    if synchronised:
        return Finding("clock", OK, "synchronised", purpose)
    if synchronised is None:
        return Finding("clock", DEGRADED, "the kernel does not say", purpose, "look at timedatectl")
    mend = "timedatectl set-ntp true (apt-get install systemd-timesyncd)"
    return Finding("clock", DEGRADED, "the kernel says that it is not synchronised", purpose, mend)


def disk(found: Disk, *, first: bool) -> Finding:
    """Past the least the node would evict its pods at once."""
    name = "disk" if first else f"disk {found.place}"
    purpose = "images and volumes" if first else "sockets and the pods' state" if found.run else "logs"
    if first and found.overlay:
        words = f"{found.place} is an overlay, on which the kernel puts no other: no container can start"
        mend = "mount a disk or a tmpfs there, or use --root"
        return Finding(name, MISSING, words, "containers' layers", mend)
    comfortable, least = (RUN_FREE, RUN_LEAST) if found.run else (COMFORTABLE_FREE, LEAST_FREE)
    states = [
        OK if found.free > comfortable else DEGRADED if found.free > least else MISSING,
    ]
    words = f"{found.free >> 20} MiB"
    if found.inodes is not None:
        words += f" and {found.inodes} inodes"
        states.append(
            OK if found.inodes > COMFORTABLE_INODES else DEGRADED if found.inodes > LEAST_INODES else MISSING
        )
    worst = max(states, key=(OK, DEGRADED, MISSING).index)
    mend = f"make room (du -x --max-depth 2 {found.place}), or use --root"
    return Finding(name, worst, f"{words} free at {found.place}", purpose, mend)


def ports(found: tuple[Port, ...]) -> Finding:
    purpose = "API server, kubelet and proxy"
    numbers = " ".join(str(each.number) for each in found)
    taken = [each for each in found if each.holder and not each.ours]
    if taken:
        words = ", ".join(f"{each.number} ({each.what}) is held by {each.holder}" for each in taken)
        options = " ".join(each.option for each in taken if each.option)
        mend = f"stop it, or choose others by {options}" if options else "stop it"
        return Finding("ports", MISSING, words, purpose, mend)
    if any(each.ours for each in found):
        return Finding("ports", OK, f"{numbers}: held by this node, or free", purpose)
    return Finding("ports", OK, f"{numbers} free", purpose)


def swap(found: tuple[str, ...]) -> Finding:
    purpose = "memory that is where it was promised"
    if not found:
        return Finding("swap", OK, "off", purpose)
    mend = "swapoff -a, and out of /etc/fstab; limited containers get none in any case"
    return Finding("swap", DEGRADED, f"on {', '.join(found)}", purpose, mend)


def others(programs: frozenset[str]) -> Finding:
    purpose = "one program per job: two kubelets or proxies undo each other's work"
    rivals = sorted({RIVALS[name] for name in programs if name in RIVALS})
    beside = [name for name in NEIGHBOURS if name in programs]
    if rivals:
        mend = f"systemctl disable --now {' '.join(rivals)}"
        return Finding("other nodes", DEGRADED, f"{', '.join(rivals)} runs here", purpose, mend)
    if beside:
        return Finding("other nodes", OK, f"none; {', '.join(beside)} may run beside ours", purpose)
    return Finding("other nodes", OK, "none", purpose)
