"""Bytes per second between two namespaces: by wires alone, our bridge, and a ClusterIP by each backend.

    sudo ./hack/isolate .venv/bin/python -m tests.bench.throughput [--rounds 24] [--seconds 0.3] [--parts]
        [--gso BYTES]

One TCP connection each, the same sender and receiver (a process each, 128 kB at a time), by turns in one
run. Two wires stand for "without us": one veth pair, and what two pods of one node have at the least, a pair
each on a bridge that no netfilter sees. --parts adds the steps from there to us: br_netfilter, connection
tracking, chains for translation. On a busy machine the second ratio is the better one: bytes per second of
CPU that both processes used, in which the kernel's work for a packet is counted. The Service's one endpoint
is the pod that the bridge's figure is measured with; the proxy's rules stand meanwhile. Our pods are wired
as those of a node that no link leads out of (hack/isolate), or by --gso as `up --pod-gso-size BYTES` does:
65536 for a node with a usual uplink.
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import network_lab  # noqa: E402
import services_lab  # noqa: E402
from network_lab import Namespace  # noqa: E402

from cni.netlink import Netlink  # noqa: E402
from cni.netns import in_namespace  # noqa: E402
from cni.rtnetlink import new_address, new_bridge, new_veth, set_link  # noqa: E402
from kubelet_py.node import segments  # noqa: E402
from proxy.modes import remove_other  # noqa: E402

GOAL = "goal: bridge and ClusterIP ≥ 0.95 × of the same veth pair without us"
PAIR, PAIRS = "one pair", "two on a bridge"
PORT = 8080
CHUNK = 1 << 17
EMPTY = "table ip parts {\n chain forward {\n type filter hook forward priority 0;\n %s \n }\n %s }\n"
TRACKED = "ct state established,related accept"
NAT = "chain %s {\n type nat hook %s priority 0;\n }\n"
PARTS = {
    "… + br_netfilter": EMPTY % ("", ""),
    "… + conntrack": EMPTY % (TRACKED, ""),
    "… + nat chains": EMPTY % (TRACKED, NAT % ("a", "prerouting") + NAT % ("b", "postrouting")),
}
RECEIVE = f"""
import socket, sys, time
listening = socket.socket(fileno=int(sys.argv[1]))
while True:
    connection, _ = listening.accept()
    data, begin = bytearray({CHUNK}), time.process_time()
    while connection.recv_into(data): pass
    connection.sendall(str(time.process_time() - begin).encode())
    connection.close()
"""
SEND = f"""
import socket, sys, time
connection = socket.socket(fileno=int(sys.argv[1]))
data, total, seconds = bytes({CHUNK}), 0, float(sys.argv[2])
begin, cpu = time.perf_counter(), time.process_time()
while (spent := time.perf_counter() - begin) < seconds:
    total += connection.send(data)
connection.shutdown(socket.SHUT_WR)
theirs = float(connection.recv(100))  # the far end has taken all of it
print(total / (time.perf_counter() - begin), total / (time.process_time() - cpu + theirs))
"""


class Receiver:
    """A process that takes what is sent to PORT of a namespace."""

    def __init__(self, place: Namespace) -> None:
        with place.socket() as listening:
            listening.settimeout(None)
            listening.bind(("0.0.0.0", PORT))
            listening.listen(8)
            self._child = _program(RECEIVE, listening)

    def close(self) -> None:
        self._child.kill()
        self._child.wait()


def _program(code: str, channel: socket.socket, *words: str) -> subprocess.Popen[str]:
    number = channel.fileno()
    argv = [sys.executable, "-I", "-S", "-c", code, str(number), *words]
    return subprocess.Popen(argv, pass_fds=[number], stdout=subprocess.PIPE, text=True)


def rate(sender: Namespace, address: str, port: int, seconds: float) -> tuple[float, float]:
    """Bytes of one connection per second, and per second of CPU."""
    with sender.socket() as channel:
        channel.connect((address, port))
        channel.settimeout(None)
        child = _program(SEND, channel, str(seconds))
        told, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"the sender failed with status {child.returncode}")
    by_clock, by_cpu = map(float, told.split())
    return by_clock, by_cpu


def bare_pair() -> tuple[Namespace, Namespace]:
    """Two namespaces and a wire; the addresses are 192.0.2.101 and .102."""
    near, far = Namespace(), Namespace()
    with near.netlink() as one:
        one.batch([new_veth("eth0", peer="eth0", peer_netns=far.fd)])
    for number, place in ((101, near), (102, far)):
        with place.netlink() as inside:
            index = inside.require("eth0").index
            up = [set_link(1, up=True), set_link(index, up=True)]
            inside.batch([*up, new_address(index, f"192.0.2.{number}/24")])
    return near, far


class BareBridge:
    """A node with two pods and nothing else: a bridge, a pair each, `rules` if a packet sees any."""

    def __init__(self, rules: str = "") -> None:
        self._node, self._pods = Namespace(), (Namespace(), Namespace())
        with self._node.netlink() as netlink:
            netlink.batch([set_link(1, up=True), new_bridge("br0")])
            bridge = netlink.require("br0").index
            for number, pod in enumerate(self._pods, 1):
                made = new_veth(f"veth{number}", peer="eth0", peer_netns=pod.fd, master=bridge)
                netlink.batch([made])
                with pod.netlink() as inside:
                    index = inside.require("eth0").index
                    up = [set_link(1, up=True), set_link(index, up=True)]
                    inside.batch([*up, new_address(index, f"192.0.2.{number}/24")])
        in_namespace(self._node.fd, lambda: self._set(rules))
        self._receiver = Receiver(self._pods[1])

    def _set(self, rules: str) -> None:
        for name in ("iptables", "ip6tables", "arptables"):
            path = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
            if path.exists():  # else there is no br_netfilter, and no rule sees a frame of the bridge
                path.write_text("1" if rules else "0")
        if rules:
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)

    def rate(self, seconds: float) -> tuple[float, float]:
        return rate(self._pods[0], "192.0.2.2", PORT, seconds)

    def close(self) -> None:
        self._receiver.close()
        for place in (self._node, *self._pods):
            place.close()


def alone() -> int:
    """The size that `auto` chooses in the present namespace, where nothing is but loopback."""
    with Netlink() as netlink:
        return segments.of_node(netlink, 0, bridge="kpy0", wrapped=False)


def measured(rounds: int, seconds: float, parts: bool, gso: int) -> dict[str, list[tuple[float, float]]]:
    """What `rate` answered for each way in each round."""
    near, far = bare_pair()
    bridges = {PAIRS: BareBridge()}
    if parts:
        bridges |= {name: BareBridge(rules) for name, rules in PARTS.items()}
    with tempfile.TemporaryDirectory(prefix="kpy-throughput-") as name, network_lab.node():
        lab = services_lab.Lab(Path(name), "nftables", gso or alone())
        servers = [Receiver(far), Receiver(lab.pods[1])]

        def ours(mode: str, address: str, port: int) -> Callable[[], tuple[float, float]]:
            def run() -> tuple[float, float]:
                lab.mode = mode
                lab.restart()
                lab.service(1)
                remove_other(mode)
                return rate(lab.pods[0], address, port, seconds)

            return run

        ways: dict[str, Callable[[], tuple[float, float]]] = {
            PAIR: lambda: rate(near, "192.0.2.102", PORT, seconds),
            **{name: (lambda b=bridge: b.rate(seconds)) for name, bridge in bridges.items()},  # type: ignore[misc]
        }
        for mode in ("nftables", "iptables"):
            ways[f"ours, {mode}: pod"] = ours(mode, lab.ips[1], PORT)
            ways[f"ours, {mode}: ClusterIP"] = ours(mode, services_lab.VIP, 80)
        order = list(ways)
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        try:
            for _ in range(rounds):
                random.shuffle(order)  # neighbours in a round share the machine's mood
                for way in order:
                    found[way].append(ways[way]())
        finally:
            for closing in (*servers, *bridges.values()):
                closing.close()
            lab.close()
            near.close()
            far.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--parts", action="store_true", help="and what each step between costs")
    parser.add_argument("--gso", type=int, default=0, metavar="BYTES", help="of our pods (default: auto)")
    options = parser.parse_args()
    found = measured(options.rounds, options.seconds, options.parts, options.gso)
    print(f"One TCP connection, {options.rounds} rounds of {options.seconds:g} s; {GOAL}")
    for way in found:
        print(f"{way:<26}{statistics.median(v for v, _ in found[way]) / 1e9:6.2f} GB/s", end="")
        for which, unit in enumerate(("time", "CPU")):
            for like in (PAIR, PAIRS):
                pairs = zip(found[way], found[like], strict=True)
                cuts = statistics.quantiles([mine[which] / theirs[which] for mine, theirs in pairs], n=4)
                print(f"   {unit} {cuts[1]:.2f} × {like} [{cuts[0]:.2f}–{cuts[2]:.2f}]", end="")
        print()


if __name__ == "__main__":
    main()
