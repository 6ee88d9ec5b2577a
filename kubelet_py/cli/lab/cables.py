"""Cutting, slowing and mending a machine's cable: brings the switch to what the lab's description says."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time

from cni.netlink import Netlink
from cni.rtnetlink import set_link
from kubelet_py.cli.lab import relay, traffic, warm, wires
from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.layout import SWITCH, LabPaths
from kubelet_py.cli.lab.machines import Machines, recall, remember
from kubelet_py.cli.lab.state import Lab, Machine
from kubelet_py.cli.processes import ProcessIdentity
from runtime.kernel import Kernel
from runtime.namespaces import flags_of

RELAY_SECONDS = 5.0


def apply(paths: LabPaths, machines: Machines, kernel: Kernel, lab: Lab, changed: Machine) -> None:
    """Put the cable of `changed` and the switch's rules into effect. Raises LabError."""
    switch = machines.identity(SWITCH)
    if switch is None:
        raise LabError("the lab's switch is gone (take the lab away: kubelet-py lab down)")
    nft = _find_nft()
    _end_relay(paths, changed.name)
    if machines.identity(changed.name) is not None:
        if changed.cable.delay:
            _start_relay(paths, machines, kernel, switch, changed)
        else:
            _plug(switch.pid, changed.name)
    _load_rules(nft, switch.pid, traffic.ruleset(lab))


def _find_nft() -> str:
    nft = shutil.which("nft")
    if nft is None:
        raise LabError(
            "Could not find nft, which cuts and loses frames (install it: apt-get install nftables)"
        )
    return nft


def _load_rules(nft: str, switch: int, rules: str) -> None:
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{switch}/ns/net", nft, "-f", "-"],
        input=rules,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise LabError(
            f"Could not set the switch's rules: {words} (the kernel needs nf_tables for bridges: "
            "CONFIG_NF_TABLES_BRIDGE, modprobe nf_tables)"
        )


def _plug(switch: int, port: str) -> None:
    """Put the port into the bridge, where it may be already, in the place of the slow one."""
    netns = wires.open_netns(switch)
    try:
        with Netlink(netns) as netlink:
            netlink.delete_link(traffic.slow_port(port))
            bridge = netlink.require(wires.BRIDGE).index
            netlink.batch([set_link(netlink.require(port).index, up=True, master=bridge)])
    finally:
        os.close(netns)


def _start_relay(
    paths: LabPaths, machines: Machines, kernel: Kernel, switch: ProcessIdentity, machine: Machine
) -> None:
    """A process among the switch's own that holds the port; returns once frames go through it."""
    name, slow = machine.name, traffic.slow_port(machine.name)
    reader, writer = os.pipe()
    spaces = os.pidfd_open(switch.pid)

    def work() -> int:
        port, wire = relay.make_port(slow, kernel), relay.Plug(name)
        with Netlink() as netlink:
            bridge = netlink.require(wires.BRIDGE).index
            netlink.batch(
                [
                    set_link(netlink.require(name).index, up=True, master=0),
                    set_link(netlink.require(slow).index, up=True, master=bridge),
                ]
            )
        os.write(writer, b"ready\n")
        os.close(writer)
        relay.run(wire, port, machine.cable.delay / 1000)
        return 0

    def enter() -> int:
        """Joining a PID namespace concerns only the next child."""
        machines.join_cgroup(SWITCH)
        kernel.setns(spaces, flags_of(("network", "pid")))
        os.close(spaces)
        pid = warm.fork(work, f"{name}: delay", paths.boot_log(SWITCH), (writer,))
        os.write(writer, f"{pid}\n".encode())
        return 0

    child = warm.fork(enter, f"{name}: delay", paths.boot_log(SWITCH), (writer, spaces))
    os.close(writer)
    os.close(spaces)
    lines = _read_until_ready(reader)
    os.waitpid(child, 0)
    pids = [int(line) for line in lines if line.isdigit()]
    identity = ProcessIdentity.of(pids[0]) if pids else None
    if "ready" not in lines or identity is None:
        reason = machines.last_words(SWITCH)
        raise LabError(f"Could not slow down {name}: {reason}")
    remember(paths.relay(name), identity)


def _read_until_ready(reader: int) -> list[str]:
    deadline = time.monotonic() + RELAY_SECONDS
    text = b""
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while (left := deadline - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
            part = pipe.read(4096)
            if not part:
                break
            text += part
    return text.decode().split("\n")


def _end_relay(paths: LabPaths, name: str) -> None:
    """End the process in the cable, if there is one; its port goes with it, a moment later."""
    relaying = recall(paths.relay(name))
    if relaying is not None:
        relaying.stop(0.0)
    paths.relay(name).unlink(missing_ok=True)
