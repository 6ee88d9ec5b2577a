"""`sudo ./hack/isolate .venv/bin/python -m tests.bench.proxy_process`: the proxy as it runs, all of it.

tests.bench.proxy_scale times its parts in one process; this starts `python -m proxy` against a small API
server that holds as many Services of two endpoints. Its memory (PSS, informers included) is read when the
last Service answers. A change goes from the moment the watch event is sent until a new connection to the
Service arrives at the exchanged endpoint: JSON, informer, waiting for company, sync and kernel are in it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import network_lab  # noqa: E402
from proxy_lab import Api, endpoints, node, service, start, write_kubeconfig  # noqa: E402

from tests.bench.__main__ import percentile  # noqa: E402
from tests.bench.proxy_scale import bodies  # noqa: E402

VIP = ("10.96.0.9", 80)
BACKENDS = ("198.18.0.1", "198.18.0.2")
PATIENCE = 120.0
PAUSE = 0.2  # between changes: each is the first after a quiet moment


def answer(address: str) -> None:
    """Serve its own address to whoever connects."""
    listener = socket.create_server((address, 8080), backlog=256)

    def serve() -> None:
        while True:
            with listener.accept()[0] as connection, contextlib.suppress(OSError):
                connection.sendall(address.encode())
                connection.recv(1)  # until the other end is done: it closes first

    threading.Thread(target=serve, daemon=True).start()


def asked() -> str:
    try:
        with socket.create_connection(VIP, 1) as connection:
            # Reset at the end, or ports that wait for their last packets are met again and answer late.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return connection.recv(20).decode()
    except OSError:
        return ""


def until(wanted: str) -> float:
    """Milliseconds until a new connection arrives there."""
    began = time.perf_counter()
    while asked() != wanted:
        if time.perf_counter() - began > PATIENCE:
            raise SystemExit(f"no connection arrived at {wanted} within {PATIENCE:.0f} s")
    return (time.perf_counter() - began) * 1000


def slice_to(address: str, version: int) -> dict[str, Any]:
    return endpoints(address, version=str(version))


def pss(pid: int) -> float:
    """MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def run(mode: str, count: int, rounds: int) -> None:
    with network_lab.node(), tempfile.TemporaryDirectory() as folder:
        for address in BACKENDS:
            subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
            answer(address)
        subprocess.run(["ip", "route", "add", "10.96.0.0/12", "dev", "lo"], check=True)
        api = Api()
        services, slices = bodies(count)
        api.lists["services"] = [*services, service()]
        api.lists["endpointslices"] = [*slices, slice_to(BACKENDS[0], 2)]
        api.lists["nodes"] = [node("192.0.2.1", version="3")]
        write_kubeconfig(api, Path(folder))
        process = start(api, Path(folder), "--proxy-mode", mode, "--metrics-bind-address", "")
        try:
            loaded = until(BACKENDS[0]) / 1000
            time.sleep(3)
            memory = pss(process.pid)
            found = []
            for number in range(rounds):
                target = BACKENDS[(number + 1) % 2]
                api.send("endpointslices", "MODIFIED", slice_to(target, number + 10))
                found.append(until(target))
                time.sleep(PAUSE)
        finally:
            process.kill()
            process.communicate()
            api.close()
    print(
        f"{mode}, {count} Services: start to answering {loaded:.2f} s, PSS {memory:.0f} MB; one endpoint, "
        f"event to connection: p50 {percentile(found, 0.5):.1f} ms, p99 {percentile(found, 0.99):.1f} ms",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="the proxy's process: memory, and one change end to end")
    parser.add_argument("--nftables", type=int, default=10_000, help="Services in that mode")
    parser.add_argument("--iptables", type=int, default=1_000, help="Services in that mode")
    parser.add_argument("--rounds", type=int, default=100, help="changes in each (default 100)")
    args = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.2f}", flush=True)
    run("nftables", args.nftables, args.rounds)
    run("iptables", args.iptables, args.rounds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
