"""Services in the kernel, by each backend, beside `iptables-restore` and `nft -f` with the same Services.

    sudo flock /tmp/bench.lock ./hack/isolate .venv/bin/python -m tests.bench.proxy_scale [--services 1000 10000]

Every figure and its peer are taken by turns in one run; only the ratios count on a busy machine. "watch
event" is an object as an informer delivers it, "in the kernel" the return of the transaction. Everything happens
in a network namespace of its own.
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


def connects(rounds: int, address: str, port: int) -> float:
    """The median of connect() to what refuses or answers at once, in seconds."""
    found = []
    for _ in range(rounds):
        with socket.socket() as sock:
            began = time.perf_counter()
            sock.connect((address, port))
            found.append(time.perf_counter() - began)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return statistics.median(found)


def connect_to_last(count: int, rounds: int) -> tuple[float, float]:
    """(no rules: the endpoint itself, by the last Service's address) in seconds."""
    subprocess.run(["ip", "address", "add", f"{SERVED}/32", "dev", "lo"], check=True)
    subprocess.run(["ip", "route", "add", "172.16.0.0/12", "dev", "lo"], check=True)
    with socket.create_server((SERVED, 8080), backlog=4096) as listener:
        listener.setblocking(False)

        def drain() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except BlockingIOError:
                    return

        bare: list[float] = []
        ours: list[float] = []
        for _ in range(3):
            for _part in range(rounds // 100):
                bare.append(connects(100, SERVED, 8080))
                drain()
            run = Run.of("nftables", count)
            run.changes.slice_event("MODIFIED", slice_of(count - 1, SERVED))
            run.proxier.sync()
            address = service(count - 1)["spec"]["clusterIP"]
            for _part in range(rounds // 100):
                ours.append(connects(100, address, 80))
                drain()
            run.close()
            remove_nftables()
    return statistics.median(bare), statistics.median(ours)


def memory(count: int) -> float:
    """PSS in MB of a process that watched and programmed so many Services, as __main__ wires it."""
    code = f"from tests.bench.proxy_scale import Run; r = Run.of('nftables', {count}); r.proxier.sync(); print(1)"
    keeper = subprocess.Popen(
        [sys.executable, "-c", f"{code}; import gc; gc.collect(); print(2, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert keeper.stdin and keeper.stdout
    while "2" not in keeper.stdout.readline():
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
        bare, ours = connect_to_last(args.nftables, 2000)
        print(f"connect() to the last of {args.nftables}: {ours * 1e6:.1f} µs; no rules {bare * 1e6:.1f} µs")
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
