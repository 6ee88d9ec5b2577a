"""Three machines of one cluster, each a network namespace, and between them a router that knows of no pods.

    middle: router and outside client, 198.51.101.1 (a bridge: the segment) and 198.51.102.1
      ├─ n1 198.51.101.11   control plane and node
      ├─ n2 198.51.101.12   on n1's segment
      └─ n3 198.51.101.13   on that segment too, or 198.51.102.13: behind the router

The nodes share the test machine's kernel, as those of any lab do; what keeps them apart is the namespace and
the root folder, from which a node's names (bridge, cgroups) follow. Who answers a connection in here says its
own name and the address that it saw as the sender's: a translated source does not go unseen.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from e2e_node import Done, Node, pod, sh
from second_node import SecondNode

SEGMENT, BEYOND = "198.51.101", "198.51.102"
NAMES = ("n1", "n2", "n3")
BRIDGED = "/proc/sys/net/bridge/bridge-nf-call-iptables"
TCP, UDP, NODE_TCP = 8080, 9000, 7070

# Both programs run in pods with the host's own Python, and on the nodes.
ANSWER = """
import socket, sys, threading
name, address, tcp, udp = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((address, tcp))
listener.listen(100)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind((address, udp))
def serve():
    while True:
        _data, sender = datagrams.recvfrom(100)
        datagrams.sendto(f"{name} {sender[0]}".encode(), sender)
threading.Thread(target=serve, daemon=True).start()
def echo(connection, sender):
    with connection:
        try:
            connection.sendall(f"{name} {sender[0]}".encode())
            while data := connection.recv(65536):
                connection.sendall(data)
        except ConnectionError:
            pass
while True:
    threading.Thread(target=echo, args=listener.accept(), daemon=True).start()
"""
ASK = """
import concurrent.futures, json, socket, sys, threading
def bulk(channel, size):
    channel.recv(200)
    threading.Thread(target=channel.sendall, args=(b"x" * size,), daemon=True).start()
    seen = 0
    while seen < size and (data := channel.recv(65536)):
        seen += len(data)
    return seen
def ask(kind, address, port, *more):
    try:
        if kind == "name":
            return sorted({found[4][0] for found in socket.getaddrinfo(address, None, socket.AF_INET)})
        if kind == "address":
            return socket.gethostbyaddr(address)[0]
        with socket.socket(socket.AF_INET, getattr(socket, kind)) as channel:
            channel.settimeout(10)
            channel.connect((address, port))
            if len(more) == 1:
                return bulk(channel, more[0])
            if kind == "SOCK_DGRAM":
                channel.send(b"?")
            return channel.recv(200).decode()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
questions = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor(len(questions)) as pool:
    print(json.dumps(list(pool.map(lambda question: ask(*question), questions))))
"""
Question = tuple[str, str, int] | tuple[str, str, int, int]  # kind, whom, port; bytes to send there and back


class Machine(SecondNode):
    """One machine: its address, and its node's name and pod."""

    def __init__(self, name: str, root: Path, namespace: str, address: str) -> None:
        super().__init__(root, namespace)
        self.name = name
        self.address = address
        self.pod_ip = ""


class Cluster:
    """The three machines with one answering pod on each; pods and nodes ask questions."""

    def __init__(self, machines: Sequence[Machine], middle: str) -> None:
        self.machines = machines
        self.middle = middle
        self.first = machines[0]

    @property
    def pods(self) -> dict[str, str]:
        """Address of the pod on each node, by the node's name."""
        return {machine.name: machine.pod_ip for machine in self.machines}

    @property
    def nodes(self) -> dict[str, str]:
        return {machine.name: machine.address for machine in self.machines}

    def from_pod(self, node: str, questions: Sequence[Question]) -> list[Any]:
        python = ("/usr/bin/python3", "-c", ASK, json.dumps(questions))
        return list(self.first.kubectl("exec", f"echo-{node}", "--", *python).json())

    def from_node(self, node: str, questions: Sequence[Question]) -> list[Any]:
        machine = next(machine for machine in self.machines if machine.name == node)
        return list(machine._run([*PYTHON, ASK, json.dumps(questions)], check=True, timeout=120).json())

    def from_outside(self, questions: Sequence[Question]) -> list[Any]:
        argv = ["nsenter", f"--net=/run/netns/{self.middle}", *PYTHON, ASK, json.dumps(questions)]
        return list(Node._run(self.first, argv, check=True, timeout=120).json())


PYTHON = ("/usr/bin/python3", "-c")


def answerers(answers: Sequence[str]) -> Counter[str]:
    return Counter(answer.split()[0] for answer in answers)


def senders(answers: Sequence[str]) -> set[str]:
    return {answer.split()[-1] for answer in answers}


def _inside(namespace: str, *argv: str) -> None:
    sh("nsenter", f"--net=/run/netns/{namespace}", *argv)


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    sh("ip", "netns", "add", name)
    try:
        _inside(name, "ip", "link", "set", "lo", "up")
        yield name
    finally:
        sh("ip", "netns", "del", name)


def _wire(middle: str, namespace: str, port: str, address: str, *, bridged: bool) -> None:
    """A veth pair between the router and a machine, which gets its address and its default route by it."""
    gateway = address.rpartition(".")[0] + ".1"
    _inside(middle, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    if bridged:
        _inside(middle, "ip", "link", "set", port, "master", "segment")
    else:
        _inside(middle, "ip", "addr", "add", f"{gateway}/24", "dev", port)
    _inside(middle, "ip", "link", "set", port, "up")
    _inside(namespace, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
    _inside(namespace, "ip", "link", "set", "eth0", "up")
    _inside(namespace, "ip", "route", "add", "default", "via", gateway)


@contextmanager
def machines(*, routed: bool) -> Iterator[tuple[list[Machine], str]]:
    """The namespaces, wired; with `routed` n3 is behind the router."""
    prefix = f"kpytest{os.getpid()}"
    places = dict(zip(NAMES, (SEGMENT, SEGMENT, BEYOND if routed else SEGMENT), strict=True))
    with ExitStack() as stack:
        middle = stack.enter_context(_namespace(f"{prefix}m"))
        _inside(middle, "ip", "link", "add", "segment", "type", "bridge")
        _inside(middle, "ip", "addr", "add", f"{SEGMENT}.1/24", "dev", "segment")
        _inside(middle, "ip", "link", "set", "segment", "up")
        _inside(middle, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        # What passes the segment is no business of the router's rules.
        _inside(middle, "sh", "-c", f"test ! -e {BRIDGED} || echo 0 > {BRIDGED}")
        # A router that routes no pods: their packets would be lost with most of them.
        _inside(middle, "iptables", "-w", "-A", "FORWARD", "-s", "10.244.0.0/16", "-j", "DROP")
        _inside(middle, "iptables", "-w", "-A", "FORWARD", "-d", "10.244.0.0/16", "-j", "DROP")
        found = []
        for number, name in enumerate(NAMES, 1):
            namespace = stack.enter_context(_namespace(f"{prefix}{name}"))
            address = f"{places[name]}.1{number}"
            _wire(middle, namespace, f"to-{name}", address, bridged=places[name] == SEGMENT)
            root = Path(tempfile.mkdtemp(prefix="kpy-", dir="/tmp"))
            stack.callback(shutil.rmtree, root)
            found.append(Machine(name, root, namespace, address))
        yield found, middle


@contextmanager
def cluster(*, routed: bool, proxy_mode: str, pod_routes: str = "auto") -> Iterator[Cluster]:
    """The nodes Ready, a pod Running on each, and on each node itself somebody who answers."""
    options = ("--proxy-mode", proxy_mode, "--pod-routes", pod_routes)
    with machines(routed=routed) as (found, middle), ExitStack() as stack:
        first, *others = found
        stack.callback(first.cli, "reset", "--yes")
        first.import_busybox()
        first.cli("up", "--detach", "--node-name", first.name, *options)
        with ThreadPoolExecutor() as pool:
            for joined in [pool.submit(_join, first, machine, options) for machine in others]:
                joined.result()
        for machine in others:
            stack.callback(machine.cli, "leave")
        made = Cluster(found, middle)
        first.apply(*(_answering_pod(machine.name) for machine in found))
        first.wait_running(*(f"echo-{machine.name}" for machine in found))
        for machine in found:
            machine.pod_ip = first.get("pod", f"echo-{machine.name}")["status"]["podIP"]
            stack.enter_context(_answering(machine.outside, machine.name, machine.address))
        stack.enter_context(_answering(middle, "outside", f"{SEGMENT}.1"))
        yield made


def _join(first: Machine, machine: Machine, options: Sequence[str]) -> Done:
    printed = first.cli("token", "create", "--print-join-command").out
    machine.import_busybox()
    return machine.cli(*shlex.split(printed)[1:], "--node-name", machine.name, *options)


def _answering_pod(node: str) -> Mapping[str, Any]:
    """Debian's static busybox is no server that tells the sender's address: it is the host's Python."""
    folders = [folder for folder in ("/usr", "/lib", "/lib64") if os.path.isdir(folder)]
    mounts = [{"name": f.strip("/"), "mountPath": f, "readOnly": True} for f in folders]
    volumes = [{"name": f.strip("/"), "hostPath": {"path": f, "type": "Directory"}} for f in folders]
    command = ["/usr/bin/python3", "-u", "-c", ANSWER, f"pod-{node}", "0.0.0.0", str(TCP), str(UDP)]
    return pod(
        f"echo-{node}",
        command,
        labels={"app": "echo", "node": node},
        container={"volumeMounts": mounts},
        volumes=volumes,
        nodeSelector={"kubernetes.io/hostname": node},
        hostname=node,
        subdomain="peers",
    )


@contextmanager
def _answering(namespace: str, name: str, address: str) -> Iterator[None]:
    """Bound to the address: an unbound UDP server on a node would answer the node's pods as their gateway."""
    program = [*PYTHON, ANSWER, name, address, str(NODE_TCP), str(NODE_TCP)]
    argv = ["nsenter", f"--net=/run/netns/{namespace}", *program]
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        yield
    finally:
        server.terminate()
        server.wait(10)
