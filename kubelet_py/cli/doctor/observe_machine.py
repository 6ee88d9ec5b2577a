"""Reads clock, disks, ports, swap and the programs that run on this host."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from kubelet_py.cli import settings as node_settings
from kubelet_py.cli.doctor.machine import Disk, MachineFacts, Port
from kubelet_py.cli.settings import NodeSettings
from kubelet_py.cli.supervisor import read_state
from kubelet_py.paths import NodePaths
from runtime.linux import LinuxKernel

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_OVERLAY = 0x794C7630  # statfs(2)
_TIMEX_BYTES = 512  # more than struct timex of any machine


def machine(paths: NodePaths) -> MachineFacts:
    return MachineFacts(
        synchronised=_synchronised(),
        disks=_disks(paths),
        ports=_ports(paths),
        swap=tuple(line.split()[0] for line in _lines("/proc/swaps")[1:]),
        programs=programs(),
    )


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:
        return []


def _synchronised() -> bool | None:
    """adjtimex with an empty request changes nothing and answers the clock's state."""
    request = ctypes.create_string_buffer(_TIMEX_BYTES)
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(request)
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def _disks(paths: NodePaths) -> tuple[Disk, ...]:
    """One per file system, the images' first."""
    found: dict[int, Disk] = {}
    for folder in (paths.state, paths.logs, paths.run):
        place = folder
        while not place.exists():
            place = place.parent
        disk = os.statvfs(place)
        inodes = disk.f_favail if disk.f_files else None
        free = disk.f_bavail * disk.f_frsize
        known = Disk(str(place), free, inodes, run=folder == paths.run, overlay=_is_overlay(place))
        found.setdefault(place.stat().st_dev, known)
    return tuple(found.values())


def _is_overlay(place: Path) -> bool:
    folder = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return LinuxKernel().filesystem(folder) == _OVERLAY
    finally:
        os.close(folder)


def programs() -> frozenset[str]:
    """The names of what runs here, 15 letters at most."""
    return frozenset(
        line for entry in os.listdir("/proc") if entry.isdigit() for line in _lines(f"/proc/{entry}/comm")
    )


def _ports(paths: NodePaths) -> tuple[Port, ...]:
    import psutil

    settings = node_settings.load(paths)
    state = read_state(paths.run)
    own = {identity.pid for identity in (state.children.values() if state else ()) if identity.alive()}
    holders: dict[int, int | None] = {}
    for each in psutil.net_connections("tcp"):
        if each.status == psutil.CONN_LISTEN:
            holders.setdefault(each.laddr.port, each.pid)
    return tuple(
        Port(
            number, what, option,
            holder=_name(holders[number]) if number in holders else "",
            ours=holders.get(number) in own,
        )
        for number, what, option in _wanted(settings)
    )  # fmt: skip


def _wanted(settings: NodeSettings | None) -> list[tuple[int, str, str]]:
    """Port, whose, and the option that moves it."""
    s = settings or NodeSettings("", "")
    own = [(s.secure_port, "the API server", "--secure-port")] if not s.server else []
    return [
        *own,
        (s.kubelet_port, "the kubelet", "--kubelet-port"),
        (10248, "the kubelet's healthz", "healthzPort in --kubelet-config"),
        (s.proxy_healthz_port, "the proxy's healthz", "--proxy-healthz-port"),
        *([(10053, "cluster DNS", "--no-cluster-dns")] if s.cluster_dns else []),
    ]


def _name(pid: int | None) -> str:
    if pid is None:
        return "a process that cannot be seen from here"
    lines = _lines(f"/proc/{pid}/comm")
    return f"{lines[0] if lines else 'a process'} (pid {pid})"
