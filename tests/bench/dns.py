"""How many questions the cluster's name server answers: `python -m tests.bench.dns [SECONDS]`.

The server is a process of its own that knows 1,000 Services and one headless Service of 50 pods; a client in
another process keeps 32 questions in flight. A third are for one popular name, a third for any Service, a
third walk a resolver's search path and do not exist. Answers per core are what the server's own CPU time
says. While "changing", one Service changes a hundred times a second.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import random
import socket
import sys
import threading
import time

import dns.message

from proxy.dns.forward import Forwarder
from proxy.dns.records import Names
from proxy.dns.server import DnsConfig, DnsServer

ADDRESS = "127.0.0.1"
SERVICES = 1000
IN_FLIGHT = 32


def service(number: int, address: str = "") -> dict[str, object]:
    ports = [{"name": "http", "port": 80}]
    spec = {"clusterIP": address or f"10.96.{number // 250}.{number % 250 + 1}", "ports": ports}
    return {"metadata": {"namespace": "default", "name": f"s{number}"}, "spec": spec}


def cluster() -> Names:
    names = Names()
    names.namespace_event("ADDED", {"metadata": {"name": "default"}})
    for number in range(SERVICES):
        names.service_event("ADDED", service(number))
    names.service_event(
        "ADDED", {"metadata": {"namespace": "default", "name": "db"}, "spec": {"clusterIP": "None"}}
    )
    entries = [{"addresses": [f"10.244.1.{n}"]} for n in range(1, 51)]
    labels = {"kubernetes.io/service-name": "db"}
    meta = {"namespace": "default", "name": "db-1", "labels": labels}
    names.slice_event("ADDED", {"metadata": meta, "addressType": "IPv4", "endpoints": entries})
    return names


def serve(pipe: multiprocessing.connection.Connection, changing: bool) -> None:
    """Serve until told to stop; answers with the CPU seconds that it took."""
    names, stopped = cluster(), threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((ADDRESS, 0))
        port = probe.getsockname()[1]
    server = DnsServer(DnsConfig((ADDRESS,), port), names, Forwarder([]))
    server.start()

    def change() -> None:
        number = 0
        while not stopped.wait(0.01):
            number += 1
            names.service_event("MODIFIED", service(0, f"10.97.0.{number % 250 + 1}"))

    if changing:
        threading.Thread(target=change, daemon=True).start()
    before = time.process_time()
    pipe.send(port)
    pipe.recv()
    stopped.set()
    pipe.send(time.process_time() - before)
    server.stop()


def questions() -> list[bytes]:
    chance = random.Random(1)
    names = []
    for _ in range(1000):
        names.append("s7.default.svc.cluster.local")
        names.append(f"s{chance.randrange(SERVICES)}.default.svc.cluster.local")
        names.append(
            "example.com.default.svc.cluster.local" if chance.random() < 0.5 else "s1.svc.cluster.local"
        )
    names[::50] = ["db.default.svc.cluster.local"] * len(names[::50])
    return [dns.message.make_query(name, "A").to_wire()[2:] for name in names]


def ask(port: int, seconds: float) -> tuple[int, float, list[float]]:
    """Answers, seconds, and each answer's time in ms."""
    asked, took, sent = questions(), [], {}
    number = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((ADDRESS, port))
        client.settimeout(5)

        def send() -> None:
            nonlocal number
            number = (number + 1) % 65536
            sent[number] = time.perf_counter()
            client.send(number.to_bytes(2, "big") + asked[number % len(asked)])

        began = time.perf_counter()
        for _ in range(IN_FLIGHT):
            send()
        while time.perf_counter() - began < seconds:
            answer = client.recv(2048)
            took.append((time.perf_counter() - sent[int.from_bytes(answer[:2], "big")]) * 1000)
            send()
        return len(took), time.perf_counter() - began, took


def measure(changing: bool, seconds: float) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, changing))
    process.start()
    port = ours.recv()
    ask(port, 0.5)
    count, spent, took = ask(port, seconds)
    ours.send(None)
    cpu = ours.recv() * seconds / (seconds + 0.5)
    process.join(10)
    took.sort()
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    title = "a Service changes 100 times a second" if changing else "nothing changes"
    print(
        f"{title}: {count / spent:,.0f} answers/s, {count / cpu:,.0f} per core-second (goal ≥ 5,000), "
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms (goal ≤ 10)",
        flush=True,
    )


if __name__ == "__main__":
    for each in (False, True):
        measure(each, float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
