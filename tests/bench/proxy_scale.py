"""Services in the kernel, by each backend, beside `iptables-restore` and `nft -f` with the same Services.

    sudo ./hack/isolate .venv/bin/python -m tests.bench.proxy_scale [--iptables 1000] [--nftables 10000]

Every figure and its peer are taken by turns in one run; only the ratios count on a busy machine. "watch
event" is an object as an informer delivers it, "in the kernel" the return of the transaction. Everything
happens in network namespaces of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import network_lab
from network_lab import Namespace

from cni.netlink import Netlink
from cni.netns import in_namespace
from cni.rtnetlink import new_address, set_link
from proxy.backend import Backend
from proxy.changes import Changes
from proxy.config import ProxyConfig
from proxy.conntrack import Conntrack
from proxy.healthcheck import Health
from proxy.iptables import full_script
from proxy.iptables_backend import IptablesBackend
from proxy.modes import backends, remove_iptables, remove_nftables
from proxy.proxier import AddressFamily, Proxier
from proxy.rules import build

CONFIG = ProxyConfig(hostname="n", cluster_cidr="10.0.0.0/8")
SERVED = "198.18.0.1"


def service(n: int) -> dict[str, Any]:
    meta = {"name": f"svc-{n}", "namespace": "bench", "uid": str(n), "resourceVersion": "1"}
    ip = f"172.{16 + n // 65536}.{n // 256 % 256}.{n % 256}"
    return {
        "metadata": meta,
        "spec": {"clusterIP": ip, "ports": [{"name": "p", "port": 80, "protocol": "TCP"}]},
    }


def slice_of(n: int, *addresses: str) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": f"svc-{n}"}
    meta = {
        "name": f"svc-{n}-x",
        "namespace": "bench",
        "labels": labels,
        "uid": str(n),
        "resourceVersion": "1",
    }
    chosen = addresses or (f"10.{n // 256 % 256}.{n % 256}.1", f"10.{n // 256 % 256}.{n % 256}.2")
    return {
        "metadata": meta,
        "addressType": "IPv4",
        "ports": [{"name": "p", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [ip], "nodeName": "other"} for ip in chosen],
    }


def bodies(count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Objects as they come off the wire: every one with strings of its own."""
    made = [service(n) for n in range(count)], [slice_of(n) for n in range(count)]
    return json.loads(json.dumps(made[0])), json.loads(json.dumps(made[1]))


@dataclass
class Run:
    """A proxier that is synced by hand, with everything told to it but nothing synced."""

    changes: Changes
    backend: Backend
    proxier: Proxier

    @staticmethod
    def of(mode: str, count: int) -> Run:
        changes = Changes("n")
        (backend,) = backends(mode, CONFIG, [4])
        families = [AddressFamily(changes, backend, Conntrack())]
        proxier = Proxier(CONFIG, families, changes.changed, Health(60))
        services, slices = bodies(count)
        for body in services:
            changes.service_event("ADDED", body)
        for body in slices:
            changes.slice_event("ADDED", body)
        return Run(changes, backend, proxier)

    def close(self) -> None:
        self.backend.close()


def timed(act: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def restore_alone(count: int) -> float:
    """iptables-restore with the rules of our own iptables backend, nothing else."""
    run = Run.of("iptables", count)
    assert isinstance(run.backend, IptablesBackend)
    script = full_script(build(run.changes.view(), CONFIG), {})
    spent = timed(
        lambda: subprocess.run(["iptables-restore", "--noflush"], input=script, text=True, check=True)
    )
    remove_iptables()
    return spent


def nft_alone(count: int) -> float:
    """nft -f with maps of the same size and kind as ours."""
    lines = ["add table ip peer", "add chain ip peer c2"]
    lines.append("add map ip peer svc { type ipv4_addr . inet_proto . inet_service : verdict; }")
    lines.append(
        "add map ip peer ep { type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service; }"
    )
    ips = [service(n)["spec"]["clusterIP"] for n in range(count)]
    goto = ", ".join(f"{ip} . tcp . 80 : goto c2" for ip in ips)
    ends = ", ".join(
        f"{ip} . tcp . 80 . {k} : 10.{n // 256 % 256}.{n % 256}.{k + 1} . 8080"
        for n, ip in enumerate(ips)
        for k in range(2)
    )
    lines += [f"add element ip peer svc {{ {goto} }}", f"add element ip peer ep {{ {ends} }}"]
    text = "\n".join(lines)
    spent = timed(lambda: subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True))
    subprocess.run(["nft", "delete", "table", "ip", "peer"], check=True)
    return spent


def first_load(mode: str, count: int) -> tuple[float, float]:
    """Seconds in all, and of these in the kernel or the tool."""
    run = Run.of(mode, count)
    kernel: list[float] = []
    apply = run.backend.apply

    def watched(*args: Any) -> Any:
        outcome = apply(*args)
        kernel.append(outcome.kernel)
        return outcome

    run.backend.apply = watched  # type: ignore[method-assign]
    spent = timed(run.proxier.sync)
    run.close()
    (remove_nftables if mode == "nftables" else remove_iptables)()
    return spent, kernel[0]


def changes_of_one(mode: str, count: int, rounds: int) -> Iterator[tuple[float, float]]:
    """One endpoint of one Service replaced by another: (watch event → kernel, of which kernel)."""
    run = Run.of(mode, count)
    run.proxier.sync()
    apply, kernel = run.backend.apply, [0.0]

    def watched(*args: Any) -> Any:
        outcome = apply(*args)
        kernel[0] = outcome.kernel
        return outcome

    run.backend.apply = watched  # type: ignore[method-assign]
    for n in range(rounds):
        number = n * 97 % count
        body = slice_of(number, f"10.{number // 256 % 256}.{number % 256}.1", f"10.255.{n % 250}.9")
        began = time.perf_counter()
        run.changes.slice_event("MODIFIED", body)
        run.proxier.sync()
        yield time.perf_counter() - began, kernel[0]
    run.close()
    (remove_nftables if mode == "nftables" else remove_iptables)()


class Endpoint:
    """A listener in a namespace, where the last Service's cluster IP is routed to the loopback."""

    def __init__(self, place: Namespace | None) -> None:
        self._place = place
        in_place = (lambda act: in_namespace(place.fd, act)) if place else (lambda act: act())
        with in_place(Netlink) as netlink:
            netlink.batch([set_link(1, up=True), new_address(1, f"{SERVED}/32")])
            netlink.add_route("172.16.0.0/12", dev=1)
        self._listener = self._socket()
        self._listener.bind((SERVED, 8080))
        self._listener.listen(4096)
        self._listener.setblocking(False)

    def _socket(self) -> socket.socket:
        return self._place.socket() if self._place else socket.socket()

    def connects(self, times: int, address: str, port: int) -> list[float]:
        """Seconds that each connect() took."""
        found = []
        for _ in range(times):
            with self._socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                began = time.perf_counter()
                sock.connect((address, port))
                found.append(time.perf_counter() - began)
        while True:
            try:
                self._listener.accept()[0].close()
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._listener.close()


def connect_to_last(count: int, rounds: int) -> tuple[float, float, float]:
    """Medians in seconds: without any rules; past the rules to the endpoint; by the last Service.

    Two namespaces by turns, one with the rules and one without; the second figure shows what connection
    tracking alone costs.
    """
    run = Run.of("nftables", count)
    run.changes.slice_event("MODIFIED", slice_of(count - 1, SERVED))
    run.proxier.sync()
    vip = service(count - 1)["spec"]["clusterIP"]
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    with Namespace() as place:
        bare, ours = Endpoint(place), Endpoint(None)
        for _ in range(rounds):
            found[0].extend(bare.connects(50, SERVED, 8080))
            found[1].extend(ours.connects(50, SERVED, 8080))
            found[2].extend(ours.connects(50, vip, 80))
        bare.close()
        ours.close()
    run.close()
    remove_nftables()
    first, second, third = map(statistics.median, found)
    return first, second, third


KEEPER = """
import gc, sys
from tests.bench.proxy_scale import Run
run = Run.of("nftables", int(sys.argv[1]))
run.proxier.sync()
gc.collect()
print("programmed", flush=True)
input()
"""


def memory(count: int) -> float:
    """PSS in MB of a process that programmed so many Services; the informers' copies are not in it."""
    command = [sys.executable, "-c", KEEPER, str(count)]
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert keeper.stdin and keeper.stdout
    while "programmed" not in keeper.stdout.readline():
        pass
    text = Path(f"/proc/{keeper.pid}/smaps_rollup").read_text()
    keeper.communicate("\n")
    remove_nftables()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--iptables", type=int, default=1000, help="Services for the iptables rows")
    parser.add_argument("--nftables", type=int, default=10000, help="Services for the nftables rows")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("nft") is None:
        raise SystemExit("needs root, iptables and nft")
    with network_lab.node():
        _loads(args)
        _changes(args)
        bare, past, ours = (seconds * 1e6 for seconds in connect_to_last(args.nftables, 60))
        print(
            f"connect() to the last of {args.nftables}: {ours:.1f} µs; no rules {bare:.1f} µs; "
            f"past the rules, not by a Service {past:.1f} µs"
        )
        print(f"memory at {args.nftables} (no informers): PSS {memory(args.nftables):.0f} MB")


def _loads(args: argparse.Namespace) -> None:
    found: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        found.setdefault("iptables-restore alone", []).append(restore_alone(args.iptables))
        found.setdefault("iptables backend", []).append(first_load("iptables", args.iptables)[0])
        found.setdefault("nft -f alone", []).append(nft_alone(args.nftables))
        whole, kernel = first_load("nftables", args.nftables)
        found.setdefault("nftables backend", []).append(whole)
        found.setdefault("… of which kernel", []).append(kernel)
    for name, values in found.items():
        count = args.iptables if "iptables" in name else args.nftables
        print(
            f"first load of {count} x 2, {name}: median {statistics.median(values) * 1000:.0f} ms, "
            f"best {min(values) * 1000:.0f} ms"
        )


def _changes(args: argparse.Namespace) -> None:
    for mode, count, rounds in (("iptables", args.iptables, 100), ("nftables", args.nftables, 1000)):
        both = list(changes_of_one(mode, count, rounds))
        for what, values in (
            ("event to kernel", [a for a, _ in both]),
            ("of which kernel", [b for _, b in both]),
        ):
            ordered = sorted(values)
            print(
                f"one endpoint at {count}, {mode}, {what}: p50 {ordered[rounds // 2] * 1000:.2f} ms, "
                f"p99 {ordered[rounds * 99 // 100] * 1000:.2f} ms"
            )


if __name__ == "__main__":
    main()
