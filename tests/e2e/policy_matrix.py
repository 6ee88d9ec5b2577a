"""The matrix of upstream's policy tests: three namespaces of three pods with two ports, every pair tried by a
real connection, and compared with what a rule says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from e2e_node import Node, pod

NAMESPACES, PODS, PORTS = ("x", "y", "z"), ("a", "b", "c"), (80, 81)
SERVE = 'for p in 80 81; do (mkdir -p /w; cd /w; httpd -f -p $p) & done; trap "exit 0" TERM; wait'
Pair = tuple[str, str, int]
Rule = Callable[[str, str, int], bool]


class Matrix:
    """Who reaches whom over one IP version, asked from inside every pod at once."""

    def __init__(self, node: Node, version: int = 4) -> None:
        self.node = node
        self.version = version
        self.names = [f"{namespace}/{name}" for namespace in NAMESPACES for name in PODS]
        self.ips = {name: self._ip(name) for name in self.names}

    def _ip(self, name: str) -> str:
        namespace, _, pod_name = name.partition("/")
        entries = self.node.get("pod", pod_name, namespace)["status"]["podIPs"]
        return next(entry["ip"] for entry in entries if (":" in entry["ip"]) == (self.version == 6))

    def seen(self) -> set[Pair]:
        with ThreadPoolExecutor(len(self.names)) as threads:
            return set().union(*threads.map(self._from, self.names))

    def _from(self, sender: str) -> set[Pair]:
        namespace, _, pod_name = sender.partition("/")
        asks = [
            f"(nc -w 2 {self.ips[receiver]} {port} </dev/null >/dev/null 2>&1 && echo {receiver} {port}) &"
            for receiver in self.names
            for port in PORTS
        ]
        line = "\n".join([*asks, "wait"])
        done = self.node.kubectl("exec", "-n", namespace, pod_name, "--", "sh", "-c", line)
        return {(sender, *_split(line)) for line in done.out.splitlines()}

    def wait_for(self, rule: Rule) -> None:
        """Until exactly those pairs get through for which the rule holds; a pod always reaches itself."""
        wanted = {
            (s, r, port)
            for s in self.names
            for r in self.names
            for port in PORTS
            if s == r or rule(s, r, port)
        }
        found: set[Pair] = set()

        def right() -> bool:
            found.clear()
            found.update(self.seen())
            return found == wanted

        try:
            self.node.until(f"the matrix of IPv{self.version}", right, 60)
        except AssertionError as error:
            wrong = f"too much: {sorted(found - wanted)[:5]}, too little: {sorted(wanted - found)[:5]}"
            raise AssertionError(f"IPv{self.version}: {wrong}") from error


def _split(line: str) -> tuple[str, int]:
    receiver, port = line.split()
    return receiver, int(port)


def policy(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, **spec},
    }


def make_pods(node: Node, place: Callable[[str, str], Mapping[str, Any]] = lambda *_: {}) -> None:
    """The namespaces and pods, running; `place` gives more of a pod's spec."""
    for namespace in NAMESPACES:
        labels = {"ns": namespace}
        node.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}
        )
    ports = {"ports": [{"name": f"serve-{port}", "containerPort": port} for port in PORTS]}
    bodies = []
    for namespace in NAMESPACES:
        for name in PODS:
            body = pod(name, SERVE, labels={"pod": name}, container=ports, **place(namespace, name))
            body["metadata"]["namespace"] = namespace
            bodies.append(body)
    node.apply(*bodies)
    for namespace in NAMESPACES:
        node.until("pods", lambda ns=namespace: all(node.phase(name, ns) == "Running" for name in PODS))


def remove_policies(node: Node, namespaces: Iterable[str] = NAMESPACES) -> None:
    for namespace in namespaces:
        node.kubectl("delete", "networkpolicy", "--all", "-n", namespace)
