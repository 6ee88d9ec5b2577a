"""Bytes per second between two namespaces: a bare veth pair, our bridge, and a ClusterIP by each backend.

    sudo ./hack/isolate .venv/bin/python -m tests.bench.throughput [--rounds 8] [--seconds 1]

One TCP connection each, the same sender and receiver (a process each, 128 kB at a time), by turns in one
run; each way is divided by the bare pair's figure of the same round, since a busy machine changes between
rounds. On a very busy one the second ratio is the better one: bytes per second of CPU that both processes
used, in which the kernel's work for a packet is counted. The Service's one endpoint is the pod that the
bridge's figure is measured with; the proxy's rules stand meanwhile.
"""

from __future__ import annotations

import argparse
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

from cni.rtnetlink import new_address, new_veth, set_link  # noqa: E402
from proxy.modes import remove_other  # noqa: E402

GOAL = "goal: bridge and ClusterIP ≥ 0.95 × of the same veth pair without us"
PORT = 8080
CHUNK = 1 << 17
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


def measured(rounds: int, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """What `rate` answered for each way in each round."""
    found: dict[str, list[tuple[float, float]]] = {}
    near, far = bare_pair()
    with tempfile.TemporaryDirectory(prefix="kpy-throughput-") as name, network_lab.node():
        lab = services_lab.Lab(Path(name), "nftables")
        servers = [Receiver(far), Receiver(lab.pods[1])]

        def service(mode: str) -> Callable[[], tuple[float, float]]:
            def run() -> tuple[float, float]:
                lab.mode = mode
                lab.restart()
                lab.service(1)
                remove_other(mode)
                return rate(lab.pods[0], services_lab.VIP, 80, seconds)

            return run

        ways: dict[str, Callable[[], tuple[float, float]]] = {
            "bare": lambda: rate(near, "192.0.2.102", PORT, seconds),
            "bridge": lambda: rate(lab.pods[0], lab.ips[1], PORT, seconds),
            "ClusterIP, nftables": service("nftables"),
            "ClusterIP, iptables": service("iptables"),
        }
        order = list(ways)
        try:
            for number in range(rounds):
                turn = number % len(order)
                for way in order[turn:] + order[:turn]:
                    found.setdefault(way, []).append(ways[way]())
        finally:
            for server in servers:
                server.close()
            lab.close()
            near.close()
            far.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    found = measured(options.rounds, options.seconds)
    print(f"One TCP connection, {options.rounds} rounds of {options.seconds:g} s; {GOAL}")
    for way, values in found.items():
        print(f"{way:<22}{statistics.median(v for v, _ in values) / 1e9:7.2f} GB/s", end="")
        for which, unit in enumerate(("time", "CPU")):
            ratios = [one[which] / bare[which] for one, bare in zip(values, found["bare"], strict=True)]
            cuts = statistics.quantiles(ratios, n=4)
            print(f"   {unit} {statistics.median(ratios):.2f} × bare [{cuts[0]:.2f}–{cuts[2]:.2f}]", end="")
        print()


if __name__ == "__main__":
    main()
