"""NetworkPolicies at scale: what a node needs for all of them, and for one pod more or one policy changed.

    sudo ./hack/isolate .venv/bin/python -m tests.bench.policies [--policies 100] [--pods 500] [--local 100]

"A pod comes" is from the object as an informer delivers it to the return of the transaction. The pods are
spread over namespaces of twenty; a policy selects half of its namespace's pods, and allows two ports to pods
of its own and of other namespaces, and one to a block of addresses. Everything happens in a network namespace
of its own. `--double` does the same with twice as much of each: what takes four times as long is quadratic.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from network_lab import Namespace

from cni.netns import in_namespace
from proxy.nfnetlink import NfTables
from proxy.policy import table
from proxy.policy.enforcer import Enforcer
from proxy.policy.rules import compile_policies
from proxy.policy.world import World

Object = dict[str, Any]
PER_NAMESPACE = 20


def namespace_of(number: int) -> str:
    return f"ns-{number // PER_NAMESPACE}"


def pod(number: int, local: int, labels: dict[str, str] | None = None) -> Object:
    address = f"10.{244 + number // 65536}.{number // 256 % 256}.{number % 256}"
    name = f"pod-{number}"
    own = {"app": f"app-{number % 4}", "half": str(number % 2)}
    return {
        "metadata": {
            "namespace": namespace_of(number),
            "name": name,
            "uid": f"uid-{number}",
            "labels": labels or own,
        },
        "spec": {"nodeName": "me" if number < local else "other", "containers": []},
        "status": {"podIPs": [{"ip": address}, {"ip": f"fd00:244::{number + 1:x}"}], "phase": "Running"},
    }


def policy(number: int, namespaces: int, port: int = 80) -> Object:
    block = f"198.51.{number % 256}"
    rules = [
        {"from": [{"podSelector": {"matchLabels": {"app": "app-1"}}}], "ports": [{"port": port}]},
        {
            "from": [{"namespaceSelector": {"matchLabels": {"team": f"team-{number % 5}"}}}],
            "ports": [{"port": 8080, "endPort": 8090}],
        },
        {
            "from": [{"ipBlock": {"cidr": f"{block}.0/24", "except": [f"{block}.9/32"]}}],
            "ports": [{"port": 443}],
        },
    ]
    return {
        "metadata": {"namespace": f"ns-{number % namespaces}", "name": f"policy-{number}"},
        "spec": {
            "podSelector": {"matchLabels": {"half": str(number % 2)}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": rules,
            "egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}]}],
        },
    }


def world_of(policies: int, pods: int, local: int) -> World:
    world = World()
    node = {"spec": {"podCIDRs": ["10.244.0.0/14", "fd00:244::/64"]}, "metadata": {"name": "me"}}
    world.node_event("ADDED", node)
    namespaces = -(-pods // PER_NAMESPACE)
    for number in range(namespaces):
        labels = {"team": f"team-{number % 5}"}
        world.namespace_event("ADDED", {"metadata": {"name": f"ns-{number}", "labels": labels}})
    for number in range(pods):
        world.pod_event("ADDED", pod(number, local))
    for number in range(policies):
        world.policy_event("ADDED", policy(number, namespaces))
    return world


def milliseconds(act: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def run(policies: int, pods: int, local: int, times: int) -> None:
    world = world_of(policies, pods, local)
    enforcer = Enforcer(world, "me", lambda: True, list)
    wanted = compile_policies(world.view(), "me")
    layout = table.layout(wanted)
    rules = sum(len(found) for _, found in layout.chains.values())
    elements = sum(len(found) for _, found in layout.sets.values())
    print(f"{policies} policies, {pods} pods, {len(wanted.known) // 2} of them here: ", end="")
    print(f"{len(layout.chains)} chains, {rules} rules, {len(layout.sets)} sets, {elements} elements")
    pure = [milliseconds(lambda: table.layout(compile_policies(world.view(), "me"))) for _ in range(times)]
    messages = table.replace(layout)
    with NfTables() as kernel:
        load = [milliseconds(lambda: kernel.commit(messages)) for _ in range(times)]
    enforcer.sync()
    namespaces = -(-pods // PER_NAMESPACE)
    far, near, changed = [], [], []
    for turn in range(times):
        number = pods + turn
        body = pod(number, local)
        for place, spent in (("other", far), ("me", near)):
            body["spec"]["nodeName"] = place
            world.pod_event("ADDED", body)
            spent.append(milliseconds(enforcer.sync))
            world.pod_event("DELETED", body)
            enforcer.sync()
        world.policy_event("MODIFIED", policy(0, namespaces, 1000 + turn))
        changed.append(milliseconds(enforcer.sync))
    for what, figures in (
        ("all policies, pure part", pure),
        ("all policies, one transaction", load),
        ("a pod comes on another node", far),
        ("a pod comes here", near),
        ("a policy changes", changed),
    ):
        print(f"  {what:32} p50 {statistics.median(figures):8.1f} ms   max {max(figures):8.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--policies", type=int, default=100)
    parser.add_argument("--pods", type=int, default=500)
    parser.add_argument("--local", type=int, default=100)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--double", action="store_true", help="and once more with twice as much of each")
    found = parser.parse_args()
    for factor in (1, 2) if found.double else (1,):
        sizes = (factor * found.policies, factor * found.pods, factor * found.local, found.times)
        with Namespace() as space:
            in_namespace(space.fd, lambda sizes=sizes: run(*sizes))


if __name__ == "__main__":
    main()
