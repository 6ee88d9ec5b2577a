"""`sudo ./hack/isolate .venv/bin/python -m tests.bench.dns_changes`: how long until names follow the API.

One node; the cluster's name server is asked through its Service from the node, again and again, from the
moment the API has answered a write until it says what was written: a new Service, an endpoint of a headless
Service that is exchanged for another, and a Service that is deleted.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import dns.exception
import dns.message
import dns.query

from kubeclient import kubeconfig
from kubeclient.resources import ENDPOINT_SLICES, SERVICES
from kubeclient.rest import RestClient
from tests.bench.__main__ import percentile
from tests.bench.pod_starts import node_of_its_own

SERVER = "10.96.0.10"
PATIENCE = 10.0
LOOK_EVERY = 0.001


def addresses(name: str) -> set[str] | None:
    """None where nobody answered: a node is Ready before its proxy has programmed everything."""
    question = dns.message.make_query(f"{name}.default.svc.cluster.local", "A")
    try:
        answer = dns.query.udp(question, SERVER, 0.2)
    except dns.exception.Timeout:
        return None
    return {str(item) for part in answer.answer for item in part}


def until(name: str, wanted: set[str]) -> float:
    """Milliseconds until the name has these addresses."""
    began = time.perf_counter()
    while addresses(name) != wanted:
        if time.perf_counter() - began > PATIENCE:
            raise SystemExit(f"{name} did not get {wanted} within {PATIENCE:.0f} s")
        time.sleep(LOOK_EVERY)
    return (time.perf_counter() - began) * 1000


def added(client: RestClient, number: int) -> float:
    name = f"s{number}"
    body = {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}
    made = client.create(SERVICES, body, "default")
    return until(name, {made["spec"]["clusterIP"]})


def deleted(client: RestClient, number: int) -> float:
    client.delete(SERVICES, f"s{number}", "default")
    return until(f"s{number}", set())


def exchanged(client: RestClient, number: int) -> float:
    """The endpoint of `db`, whose slice this makes when it is called first."""
    address = f"10.244.9.{number + 1}"
    slice_: dict[str, Any] = {
        "metadata": {"name": "db-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4",
        "ports": [{"port": 80}],
        "endpoints": [{"addresses": [address]}],
    }
    if number:
        client.update(ENDPOINT_SLICES, slice_)
    else:
        body = {"metadata": {"name": "db"}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}
        client.create(SERVICES, body, "default")
        client.create(ENDPOINT_SLICES, slice_, "default")
    return until("db", {address})


def main() -> int:
    parser = argparse.ArgumentParser(description="from a write's answer to the name's new answer")
    parser.add_argument("--rounds", type=int, default=50, help="changes of each kind (default 50)")
    rounds = parser.parse_args().rounds
    print(f"load before: {os.getloadavg()[0]:.2f}", flush=True)
    kinds: tuple[Callable[[RestClient, int], float], ...] = (added, exchanged, deleted)
    with node_of_its_own() as node:
        client = RestClient(kubeconfig.load(node.kubeconfig), user_agent="bench")
        for kind in kinds:
            found = [kind(client, number) for number in range(rounds)]
            middle, last = percentile(found, 0.5), percentile(found, 0.99)
            print(f"{kind.__name__}: p50 {middle:.1f} ms, p99 {last:.1f} ms, worst {max(found):.1f} ms")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
