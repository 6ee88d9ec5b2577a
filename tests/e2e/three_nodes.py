"""Three machines of one dual-stack cluster, each a network namespace, and between them a router that knows of
no pods.

    middle: router and outside client, 198.51.101.1 (a bridge: the segment) and 198.51.102.1
      ├─ n1 198.51.101.11   control plane and node
      ├─ n2 198.51.101.12   on n1's segment
      └─ n3 198.51.101.13   on that segment too, or 198.51.102.13: behind the router

and the same in IPv6, 2001:db8:101::11 …

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

SEGMENT, BEYOND = 101, 102
RANGES = {"cluster": "10.244.0.0/16,fd00:244::/56", "service": "10.96.0.0/12,fd00:96::/112"}
NAMES = ("n1", "n2", "n3")
BRIDGED = "/proc/sys/net/bridge/bridge-nf-call-"
TCP, UDP, NODE_TCP = 8080, 9000, 7070

# Both programs run in pods with the host's own Python, and on the nodes.
ANSWER = """
import socket, sys, threading
name, addresses, tcp, udp = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]), int(sys.argv[4])
def opened(address, kind, port):
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in address:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((address, port))
    return made
def serve(datagrams):
    while True:
        _data, sender = datagrams.recvfrom(100)
        datagrams.sendto(f"{name} {sender[0]}".encode(), sender)
def accept(listener):
    while True:
        threading.Thread(target=echo, args=listener.accept(), daemon=True).start()
def echo(connection, sender):
    with connection:
        try:
            connection.sendall(f"{name} {sender[0]}".encode())
            while data := connection.recv(65536):
                connection.sendall(data)
        except ConnectionError:
            pass
for address in addresses:
    listener = opened(address, socket.SOCK_STREAM, tcp)
    listener.listen(100)
    threading.Thread(target=accept, args=(listener,)).start()
    threading.Thread(target=serve, args=(opened(address, socket.SOCK_DGRAM, udp),)).start()
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
        if kind in ("name", "name6"):
            family = socket.AF_INET6 if kind == "name6" else socket.AF_INET
            return sorted({found[4][0] for found in socket.getaddrinfo(address, None, family)})
        if kind == "address":
            return socket.gethostbyaddr(address)[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, getattr(socket, kind)) as channel:
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
HOLD = """
import socket, sys, time
channel = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
channel.settimeout(3)
channel.recv(200)
print("open", flush=True)
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    try:
        channel.send(b"x")
        channel.recv(1)
    except OSError as error:
        sys.exit(print("cut", flush=True))
    time.sleep(0.05)
print("held", flush=True)
"""
Question = tuple[str, str, int] | tuple[str, str, int, int]  # kind, whom, port; bytes to send there and back


class Machine(SecondNode):
    """One machine: its addresses by IP version, and its node's name and pod."""

    def __init__(self, name: str, root: Path, namespace: str, addresses: Mapping[int, str]) -> None:
        super().__init__(root, namespace)
        self.name = name
        self.addresses = addresses
        self.pod_ips: Mapping[int, str] = {}


class Cluster:
    """The three machines with one answering pod on each; pods and nodes ask questions."""

    def __init__(self, machines: Sequence[Machine], middle: str) -> None:
        self.machines = machines
        self.middle = middle
        self.first = machines[0]

    def pods(self, version: int) -> dict[str, str]:
        """Address of the pod on each node, by the node's name."""
        return {machine.name: machine.pod_ips[version] for machine in self.machines}

    def nodes(self, version: int) -> dict[str, str]:
        return {machine.name: machine.addresses[version] for machine in self.machines}

    def from_pod(self, node: str, questions: Sequence[Question]) -> list[Any]:
        python = ("/usr/bin/python3", "-c", ASK, json.dumps(questions))
        return list(self.first.kubectl("exec", f"echo-{node}", "--", *python).json())

    @contextmanager
    def holding(self, node: str, address: str) -> Iterator[subprocess.Popen[str]]:
        """A pod's open connection to another's TCP port, in use all the time; its output tells of its end."""
        command = ("/usr/bin/python3", "-uc", HOLD, address, str(TCP))
        exec_ = self.first.kubectl_argv("exec", f"echo-{node}", "--", *command)
        argv = ["nsenter", f"--net=/run/netns/{self.first.outside}", *exec_]
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=self.first.environment()
        ) as program:
            try:
                assert program.stdout is not None and program.stdout.readline() == "open\n"
                yield program
            finally:
                program.kill()

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


def addresses(segment: int, host: int) -> dict[int, str]:
    return {4: f"198.51.{segment}.{host}", 6: f"2001:db8:{segment}::{host}"}


def _give(namespace: str, device: str, found: Mapping[int, str]) -> None:
    for address, length in zip(found.values(), (24, 64), strict=True):
        options = ["nodad"] if length == 64 else []
        _inside(namespace, "ip", "addr", "add", f"{address}/{length}", "dev", device, *options)


def _wire(middle: str, namespace: str, port: str, segment: int, host: int) -> None:
    """A veth pair between the router and a machine, which gets its addresses and default routes by it."""
    _inside(middle, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    if segment == SEGMENT:
        _inside(middle, "ip", "link", "set", port, "master", "segment")
    else:
        _give(middle, port, addresses(segment, 1))
    _inside(middle, "ip", "link", "set", port, "up")
    _give(namespace, "eth0", addresses(segment, host))
    _inside(namespace, "ip", "link", "set", "eth0", "up")
    for version, gateway in addresses(segment, 1).items():
        _inside(namespace, "ip", f"-{version}", "route", "add", "default", "via", gateway)


@contextmanager
def machines(*, routed: bool) -> Iterator[tuple[list[Machine], str]]:
    """The namespaces, wired; with `routed` n3 is behind the router."""
    prefix = f"kpytest{os.getpid()}"
    places = dict(zip(NAMES, (SEGMENT, SEGMENT, BEYOND if routed else SEGMENT), strict=True))
    with ExitStack() as stack:
        middle = stack.enter_context(_namespace(f"{prefix}m"))
        _inside(middle, "ip", "link", "add", "segment", "type", "bridge")
        _give(middle, "segment", addresses(SEGMENT, 1))
        _inside(middle, "ip", "link", "set", "segment", "up")
        for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            _inside(middle, "sh", "-c", f"echo 1 > /proc/sys/net/{switch}")
        # What passes the segment is no business of the router's rules.
        for switch in (f"{BRIDGED}iptables", f"{BRIDGED}ip6tables"):
            _inside(middle, "sh", "-c", f"test ! -e {switch} || echo 0 > {switch}")
        # A router that routes no pods: their packets would be lost with most of them.
        for program, pods in zip(("iptables", "ip6tables"), RANGES["cluster"].split(","), strict=True):
            for side in ("-s", "-d"):
                _inside(middle, program, "-w", "-A", "FORWARD", side, pods, "-j", "DROP")
        found = []
        for number, name in enumerate(NAMES, 1):
            namespace = stack.enter_context(_namespace(f"{prefix}{name}"))
            _wire(middle, namespace, f"to-{name}", places[name], 10 + number)
            root = Path(tempfile.mkdtemp(prefix="kpy-", dir="/tmp"))
            stack.callback(shutil.rmtree, root)
            found.append(Machine(name, root, namespace, addresses(places[name], 10 + number)))
        yield found, middle


@contextmanager
def cluster(*, routed: bool, proxy_mode: str, pod_routes: str = "auto") -> Iterator[Cluster]:
    """The nodes Ready, a pod Running on each, and on each node itself somebody who answers."""
    options = ("--proxy-mode", proxy_mode, "--pod-routes", pod_routes)
    ranges = [part for what, text in RANGES.items() for part in (f"--{what}-cidr", text)]
    with machines(routed=routed) as (found, middle), ExitStack() as stack:
        first, *others = found
        stack.callback(first.cli, "reset", "--yes")
        first.import_busybox()
        first.cli("up", "--detach", "--node-name", first.name, *options, *ranges)
        with ThreadPoolExecutor() as pool:
            for joined in [pool.submit(_join, first, machine, options) for machine in others]:
                joined.result()
        for machine in others:
            stack.callback(machine.cli, "leave")
        made = Cluster(found, middle)
        first.apply(*(_answering_pod(machine.name) for machine in found))
        first.wait_running(*(f"echo-{machine.name}" for machine in found))
        for machine in found:
            status = first.get("pod", f"echo-{machine.name}")["status"]
            machine.pod_ips = dict(zip((4, 6), [entry["ip"] for entry in status["podIPs"]], strict=True))
            stack.enter_context(_answering(machine.outside, machine.name, machine.addresses))
        stack.enter_context(_answering(middle, "outside", addresses(SEGMENT, 1)))
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
    command = ["/usr/bin/python3", "-u", "-c", ANSWER, f"pod-{node}", "0.0.0.0,::", str(TCP), str(UDP)]
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
def _answering(namespace: str, name: str, own: Mapping[int, str]) -> Iterator[None]:
    """Bound to the addresses: an unbound UDP server would answer the node's own pods as their gateway."""
    program = [*PYTHON, ANSWER, name, ",".join(own.values()), str(NODE_TCP), str(NODE_TCP)]
    argv = ["nsenter", f"--net=/run/netns/{namespace}", *program]
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        yield
    finally:
        server.terminate()
        server.wait(10)
