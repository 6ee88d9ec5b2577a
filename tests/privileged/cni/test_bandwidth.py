"""bandwidth on the real kernel: how long bytes take at least, and what `tc` shows of it."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cni_lab import Attach
from network_lab import Namespace

from cni import shaping
from cni.bandwidth import device_name
from cni.errors import CniError, InvalidConfig, NetlinkError, PluginFailure
from cni.netlink import Netlink

pytestmark = pytest.mark.privileged

LIMIT = 8_000_000  # bits per second: one megabyte
BURST = 800_000
LIMITS = {"ingressRate": LIMIT, "ingressBurst": BURST, "egressRate": LIMIT, "egressBurst": BURST}
SHAPER = {"type": "bandwidth", "capabilities": {"bandwidth": True}}


def chain(tmp_path: Path, kind: str = "bridge") -> tuple[dict[str, Any], ...]:
    ipam = {"type": "host-local", "subnet": "10.7.0.0/24", "dataDir": str(tmp_path / "leases")}
    first = {"type": kind, "ipam": ipam}
    if kind == "bridge":
        first |= {"bridge": "kpy0", "isGateway": True}
    return first, SHAPER


def ifbs() -> list[str]:
    with Netlink() as host:
        return [link.name for link in host.links() if link.kind == "ifb"]


def seconds_for(size: int, sender: socket.socket, listener: socket.socket, address: str) -> float:
    """How long `size` bytes take from one end to the other."""
    listener.bind((address, 0))
    listener.listen(1)
    sender.connect(listener.getsockname())
    receiver, _ = listener.accept()
    with receiver, sender, listener:
        sender.settimeout(60)
        receiver.settimeout(60)
        thread = threading.Thread(target=sender.sendall, args=(b"x" * size,))
        begin = time.monotonic()
        thread.start()
        left = size
        while left:
            left -= len(receiver.recv(1 << 16))
        took = time.monotonic() - begin
        thread.join()
    return took


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_both_ways_are_held_to_the_limit(attach: Attach, tmp_path: Path, kind: str) -> None:
    invoker = attach(*chain(tmp_path, kind))
    with Namespace() as pod:
        invoker.add("a", pod.path, capabilities={"bandwidth": LIMITS})
        invoker.check("a", pod.path)
        size, floor = 1_500_000, (1_500_000 * 8 - BURST) / LIMIT * 0.9
        # Only a lower bound is asserted: a busy machine is slow for other reasons.
        assert seconds_for(size, socket.socket(), pod.socket(), "10.7.0.2") > floor
        host = socket.socket()
        assert seconds_for(size, pod.socket(), host, "10.7.0.1") > floor
        invoker.delete("a", pod.path)
        assert ifbs() == []


def test_a_pod_with_limits_keeps_the_usual_pieces_and_takes_larger_ones_of_others(
    attach: Attach, tmp_path: Path
) -> None:
    """Larger than a burst is cut by the bucket; no piece may be lost because of its size alone."""
    first, shaper = chain(tmp_path)
    invoker = attach({**first, "gsoIPv4MaxSize": 196608}, shaper)
    with Namespace() as fast, Namespace() as slow:
        invoker.add("fast", fast.path)
        invoker.add("slow", slow.path, capabilities={"bandwidth": LIMITS})
        found = []
        for pod in (fast, slow):
            with pod.netlink() as inside, Netlink() as host:
                far = inside.require("eth0")
                near = host.link(far.peer)
                assert near is not None
                found.append((far.gso, near.gso))
        if not found[0][0]:
            pytest.skip("this kernel has no gso_ipv4_max_size (it needs 6.3)")
        assert found == [(196608, 196608), (65536, 196608)]
        size, floor = 1_500_000, (1_500_000 * 8 - BURST) / LIMIT * 0.9
        assert seconds_for(size, fast.socket(), slow.socket(), "10.7.0.3") > floor
        assert seconds_for(size, slow.socket(), fast.socket(), "10.7.0.2") > floor


def test_a_pod_without_limits_is_not_touched(attach: Attach, tmp_path: Path) -> None:
    invoker = attach(*chain(tmp_path))
    with Namespace() as pod:
        result = invoker.add("a", pod.path)
        assert len(result.interfaces) == 3
        with Netlink() as host:
            near = host.require(result.interfaces[1].name)
            assert [q.kind for q in shaping.queues(host, near.index)] == ["noqueue"]
        invoker.check("a", pod.path)
        assert ifbs() == []


def test_one_way_only(attach: Attach, tmp_path: Path) -> None:
    invoker = attach(*chain(tmp_path))
    with Namespace() as pod:
        only = {"ingressRate": LIMIT, "ingressBurst": BURST}
        near = invoker.add("a", pod.path, capabilities={"bandwidth": only}).interfaces[1].name
        with Netlink() as host:
            assert [q.kind for q in shaping.queues(host, host.require(near).index)] == ["tbf"]
        assert ifbs() == []


def test_check_notices_a_changed_rate_and_a_missing_device(attach: Attach, tmp_path: Path) -> None:
    invoker = attach(*chain(tmp_path))
    with Namespace() as pod:
        near = invoker.add("a", pod.path, capabilities={"bandwidth": LIMITS}).interfaces[1].name
        with Netlink() as host:
            index = host.require(near).index
            host.batch([shaping.token_bucket(index, shaping.Rate(LIMIT * 2, BURST))])
            with pytest.raises(PluginFailure, match="16000000 bit/s"):
                invoker.check("a", pod.path)
            host.batch([shaping.token_bucket(index, shaping.Rate(LIMIT, BURST))])
            invoker.check("a", pod.path)
            host.delete_link(device_name("net", "a", "eth0"))
        with pytest.raises(PluginFailure, match="bwp"):
            invoker.check("a", pod.path)


def test_gc_and_a_second_add_clear_what_a_killed_one_left(attach: Attach, tmp_path: Path) -> None:
    invoker = attach(*chain(tmp_path))
    with Namespace() as pod, Namespace() as other, Netlink() as host:
        host.batch([shaping.intermediate(device_name("net", "a", "eth0"), 1500)])
        invoker.add("a", pod.path, capabilities={"bandwidth": LIMITS})
        invoker.add("b", other.path, capabilities={"bandwidth": LIMITS})
        assert len(ifbs()) == 2
        for file in (tmp_path / "cache/results").glob("*-b-*"):
            file.unlink()  # as after a crash: only GC can know
        invoker.gc([("a", "eth0")])
        assert ifbs() == [device_name("net", "a", "eth0")]
        invoker.check("a", pod.path)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_add_that_fails_at_any_step_leaves_nothing(
    attach: Attach, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Netlink):
        left = step

        def batch(self, messages: Any) -> None:
            Failing.left -= 1
            if Failing.left == 0:
                raise NetlinkError("obey the test", 5)
            super().batch(messages)

    monkeypatch.setattr("cni.bandwidth.Netlink", Failing)
    invoker = attach(*chain(tmp_path))
    with Namespace() as pod:
        with pytest.raises(CniError, match="obey the test"):
            invoker.add("a", pod.path, capabilities={"bandwidth": LIMITS})
        with Netlink() as host, pod.netlink() as inside:
            assert [link.name for link in host.links()] == ["lo", "kpy0"]
            assert inside.link("eth0") is None
        assert not (tmp_path / "leases/net/10.7.0.2").exists()


def test_the_tc_program_sees_what_debians_plugin_would_make(attach: Attach, tmp_path: Path) -> None:
    debian = Path("/usr/lib/cni/bandwidth")
    if not debian.exists():
        pytest.skip("containernetworking-plugins is not installed")
    seen: list[list[tuple[Any, ...]]] = []
    for folders in ([], [debian.parent]):
        invoker = attach(*chain(tmp_path), version="1.0.0", first=folders)
        with Namespace() as pod:
            result = invoker.add("a", pod.path, capabilities={"bandwidth": LIMITS})
            near = next(i.name for i in result.interfaces if i.name.startswith("veth"))
            middle = next(i.name for i in result.interfaces if i.name.startswith("bwp"))
            queues: list[tuple[Any, ...]] = []
            for name in (near, middle):
                shown = subprocess.run(
                    ["tc", "-j", "qdisc", "show", "dev", name], capture_output=True, check=True
                )
                for queue in json.loads(shown.stdout):
                    queues.append((queue["kind"], queue.get("options", {}).get("rate")))
            seen.append(sorted(queues, key=str))
            invoker.check("a", pod.path)
            invoker.delete("a", pod.path)
            assert ifbs() == []
    assert seen[0] == seen[1]
    assert ("tbf", LIMIT // 8) in seen[0]


def test_an_interface_without_a_host_end_is_refused(attach: Attach) -> None:
    invoker = attach({"type": "loopback"}, {"type": "bandwidth", **LIMITS})
    with Namespace() as pod, pytest.raises(InvalidConfig, match="veth pair"):
        invoker.add("a", pod.path, ifname="lo")
