"""WireGuard between nodes in namespaces, where the kernel has it: what the wire shows, what is repaired."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from network_lab import Namespace
from peers_lab import PLANS, Lab, three_nodes

from cni.genetlink import GenericNetlink
from cni.netns import in_namespace
from cni.wireguard import FAMILY, OVERHEAD, VERSION, DeviceState
from kubelet_py.cli.doctor.observe_kernel import try_link
from kubelet_py.node import tunnel
from kubelet_py.node.encryption import announcement
from kubelet_py.node.peer_routes import LOOK_SECONDS, METRIC, PeerWays
from kubelet_py.node.routes import TUNNEL
from kubelet_py.node.tunnel import MARK, Tunnel

pytestmark = pytest.mark.privileged

PORT = 51820
SECRET = b"nobody-else-reads-this" * 4


@pytest.fixture(scope="module", autouse=True)
def wireguard() -> None:
    problem = try_link("wireguard")
    if problem:
        pytest.skip(f"this kernel has no WireGuard: {problem}")


class Node:
    """What a node's agent would hold: its end of the tunnel and its ways."""

    def __init__(self, lab: Lab, name: str, folder: Path) -> None:
        self.lab, self.name = lab, name
        space = lab.spaces[name]
        self.file = folder / name / "wireguard.key"
        self.tunnel = Tunnel(
            self.file,
            address=lab.addresses[name],
            port=PORT,
            open_netlink=space.netlink,
            open_wireguard=self.open,
            clock=lambda: lab.now,
        )
        self.tunnel.start()
        self.ways = PeerWays([lab.routes(name, "wireguard", lambda: self.tunnel.public_key)], "", self.tunnel)

    def open(self) -> GenericNetlink:
        return GenericNetlink(FAMILY, VERSION, self.lab.spaces[self.name].fd)

    def state(self) -> DeviceState:
        return tunnel.read_kernel(self.open)


class Encrypted:
    """The lab's nodes, of which those in `keyless` have no key; each learns of all."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.nodes = {name: Node(lab, name, folder) for name in lab.addresses}
        self.tell()

    def objects(self, *names: str) -> list[dict[str, object]]:
        found = []
        for name in names or tuple(self.nodes):
            node = self.lab.plan.node(name)
            node["metadata"]["annotations"] = announcement(self.nodes[name].tunnel.public_key, PORT)
            found.append(node)
        return found

    def tell(self, *names: str) -> None:
        for name, node in self.nodes.items():
            node.ways.update(self.objects(*names), self.lab.plan.node(name))


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def encrypted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Encrypted]:
    with three_nodes(PLANS[request.param]) as lab:
        yield Encrypted(lab, tmp_path)


@pytest.fixture
def encrypted4(tmp_path: Path) -> Iterator[Encrypted]:
    """For what does not depend on the IP version: an emulated machine takes its time."""
    with three_nodes(PLANS[4]) as lab:
        yield Encrypted(lab, tmp_path)


class Tap:
    """All frames on the router's ends of the cables."""

    def __init__(self, middle: Namespace) -> None:
        self._socket = in_namespace(
            middle.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.settimeout(0.5)

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def frames(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self._socket.recv(65536))
            except TimeoutError:
                return found


def ports(frame: bytes) -> tuple[int, int] | None:
    """Protocol and destination port of an IP packet; None for other frames and for neighbour discovery."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == 0x0800:
        protocol, rest = frame[23], frame[14 + (frame[14] & 15) * 4 :]
    elif kind == 0x86DD:
        protocol, rest = frame[20], frame[54:]
    else:
        return None
    if protocol in (1, 58, 2, 0):
        return None
    return protocol, int.from_bytes(rest[2:4], "big")


def ask(lab: Lab, sender: str, receiver: str, source: str, target: str) -> tuple[str, str]:
    """A question and an answer by UDP; what each end saw as the other's address."""
    server, client = lab.socket(receiver, socket.SOCK_DGRAM), lab.socket(sender, socket.SOCK_DGRAM)
    with server, client:
        server.settimeout(30)
        client.settimeout(30)
        server.bind((target, 0))
        client.bind((source, 0))
        client.sendto(SECRET, server.getsockname())
        data, seen = server.recvfrom(1000)
        server.sendto(data[::-1], seen)
        back, answered = client.recvfrom(1000)
        assert (data, back) == (SECRET, SECRET[::-1])
        return str(seen[0]), str(answered[0])


def test_the_wire_shows_nothing_but_the_tunnel(encrypted: Encrypted) -> None:
    lab = encrypted.lab
    pairs = [(a, b) for a in lab.pods for b in lab.pods if a != b]
    with Tap(lab.middle) as tap:
        for a, b in pairs:  # pod to pod, pod to node, node to pod
            assert ask(lab, a, b, lab.pods[a], lab.pods[b]) == (lab.pods[a], lab.pods[b])
            assert ask(lab, a, b, lab.pods[a], lab.addresses[b]) == (lab.pods[a], lab.addresses[b])
            assert ask(lab, a, b, lab.addresses[a], lab.pods[b]) == (lab.addresses[a], lab.pods[b])
            assert lab.talk(a, b, 30_000) == lab.pods[a]
        frames = tap.frames()
    seen = [found for found in map(ports, frames) if found is not None]
    assert len(seen) > 6 * len(pairs) and set(seen) == {(socket.IPPROTO_UDP, PORT)}
    assert not any(b"reads-this" in frame or b"xxxxxxxx" in frame for frame in frames)


def test_the_clear_would_have_been_seen(encrypted4: Encrypted) -> None:
    """The other side of the test above: between nodes' own addresses nothing is hidden."""
    lab = encrypted4.lab
    with Tap(lab.middle) as tap:
        ask(lab, "a", "b", lab.addresses["a"], lab.addresses["b"])
        frames = tap.frames()
    assert any(b"reads-this" in frame for frame in frames)


def test_device_and_peers_are_as_the_nodes_say(encrypted: Encrypted) -> None:
    lab, node = encrypted.lab, encrypted.nodes["a"]
    state = node.state()
    assert (state.port, state.mark, state.public_key) == (PORT, MARK, node.tunnel.public_key)
    length = 32 if lab.plan.family == socket.AF_INET else 128
    found = {peer.key: (peer.endpoint.address, peer.allowed) for peer in state.peers if peer.endpoint}
    assert found == {
        encrypted.nodes[other].tunnel.public_key: (
            lab.addresses[other],
            frozenset({lab.ranges[other], f"{lab.addresses[other]}/{length}"}),
        )
        for other in ("b", "c")
    }
    with lab.spaces["a"].netlink() as netlink:
        link = netlink.require(TUNNEL)
        assert link.up and link.mtu == netlink.require("up0").mtu - OVERHEAD
    assert (node.file.stat().st_mode & 0o777, len(node.file.read_text().strip())) == (0o600, 44)


@pytest.mark.skipif(shutil.which("wg") is None, reason="wg is missing (apt-get install wireguard-tools)")
def test_another_program_reads_the_same_of_it(encrypted4: Encrypted) -> None:
    lab, node = encrypted4.lab, encrypted4.nodes["a"]
    ask(lab, "a", "b", lab.pods["a"], lab.pods["b"])
    fd = lab.spaces["a"].fd
    argv = ["nsenter", f"--net=/proc/self/fd/{fd}", "wg", "show", TUNNEL, "dump"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, pass_fds=[fd], timeout=60)
    own, *others = [line.split("\t") for line in done.stdout.splitlines()]
    state = node.state()
    assert own == [node.file.read_text().strip(), state.public_key, str(PORT), hex(MARK)]
    told = {peer.key: peer for peer in state.peers}
    assert {line[0] for line in others} == set(told)
    for line in others:
        peer = told[line[0]]
        assert (line[2], frozenset(line[3].split(","))) == (str(peer.endpoint), peer.allowed)
        assert (int(line[4]), int(line[5]), int(line[6])) == (int(peer.handshake), peer.received, peer.sent)
    assert max(peer.handshake for peer in state.peers) > time.time() - 600


def test_a_node_that_is_gone_is_no_peer_any_more(encrypted: Encrypted) -> None:
    lab, node = encrypted.lab, encrypted.nodes["a"]
    node.ways.update(encrypted.objects("a", "b"), lab.plan.node("a"))
    assert [peer.key for peer in node.state().peers] == [encrypted.nodes["b"].tunnel.public_key]
    assert set(lab.ways("a")) == {lab.ranges["b"]}
    assert ask(lab, "a", "b", lab.pods["a"], lab.pods["b"])[0] == lab.pods["a"]


@pytest.mark.parametrize("harm", ["device", "key", "peer", "down", "mtu", "route"])
def test_what_others_break_is_repaired(encrypted4: Encrypted, harm: str) -> None:
    lab, node = encrypted4.lab, encrypted4.nodes["a"]
    before, routes = node.state(), lab.ways("a")
    HARMS[harm](node)
    lab.now += LOOK_SECONDS
    node.ways.look()
    after = node.state()
    assert {(p.key, p.endpoint, p.allowed) for p in after.peers} == {
        (p.key, p.endpoint, p.allowed) for p in before.peers
    }
    assert (after.private_key, after.port, after.mark) == (before.private_key, before.port, before.mark)
    assert lab.ways("a") == routes and len(routes) == 2
    with lab.spaces["a"].netlink() as netlink:
        link = netlink.require(TUNNEL)
        assert link.up and link.mtu == netlink.require("up0").mtu - OVERHEAD
    assert ask(lab, "a", "b", lab.pods["a"], lab.pods["b"])[0] == lab.pods["a"]
    index = link.index
    lab.now += LOOK_SECONDS
    node.ways.look()
    with lab.spaces["a"].netlink() as netlink:
        assert netlink.require(TUNNEL).index == index, "nothing is done twice"


def _delete(node: Node) -> None:
    with node.lab.spaces[node.name].netlink() as netlink:
        netlink.delete_link(TUNNEL)


def _in(node: Node, *argv: str) -> None:
    fd = node.lab.spaces[node.name].fd
    inside = ["nsenter", f"--net=/proc/self/fd/{fd}", *argv]
    subprocess.run(inside, check=True, pass_fds=[fd], timeout=60)


def _forget_peer(node: Node) -> None:
    from cni.wireguard import CMD_SET_DEVICE, PeerChange, set_peers

    with node.open() as channel:
        gone = PeerChange(node.state().peers[0].key, remove=True)
        channel.tell("remove a peer", CMD_SET_DEVICE, set_peers(TUNNEL, [gone]))


def _other_key(node: Node) -> None:
    from cni.wireguard import CMD_SET_DEVICE, new_private_key, set_identity

    with node.open() as channel:
        body = set_identity(TUNNEL, private_key=new_private_key(), port=4711, mark=0)
        channel.tell("set another key", CMD_SET_DEVICE, [body])


def _no_route(node: Node) -> None:
    with node.lab.spaces[node.name].netlink() as netlink:
        assert netlink.delete_route(node.lab.ranges["b"], metric=METRIC)


HARMS: dict[str, Callable[[Node], None]] = {
    "device": _delete,
    "key": _other_key,
    "peer": _forget_peer,
    "down": lambda node: _in(node, "ip", "link", "set", TUNNEL, "down"),
    "mtu": lambda node: _in(node, "ip", "link", "set", TUNNEL, "mtu", "1300"),
    "route": _no_route,
}


def test_a_node_without_a_key_is_reached_in_the_clear_and_others_are_not(encrypted: Encrypted) -> None:
    lab = encrypted.lab
    plain = [*encrypted.objects("a", "b"), lab.plan.node("c")]
    for name in ("a", "b"):
        encrypted.nodes[name].ways.update(plain, lab.plan.node(name))
    clear = lab.routes("c")
    with lab.spaces["c"].netlink() as netlink:
        netlink.delete_link(TUNNEL)
    clear.update(plain, lab.ranges["c"])
    assert ask(lab, "a", "c", lab.pods["a"], lab.pods["c"]) == (lab.pods["a"], lab.pods["c"])
    with Tap(lab.middle) as tap:
        assert ask(lab, "b", "a", lab.pods["b"], lab.pods["a"])[0] == lab.pods["b"]
        assert {found for found in map(ports, tap.frames()) if found} == {(socket.IPPROTO_UDP, PORT)}


def test_a_key_that_is_gone_at_the_next_start_is_made_anew_and_known(encrypted4: Encrypted) -> None:
    lab, before = encrypted4.lab, encrypted4.nodes["a"]
    ask(lab, "a", "b", lab.pods["a"], lab.pods["b"])
    old = before.tunnel.public_key
    again = Node(lab, "a", encrypted4.folder)
    assert again.tunnel.public_key == old, "a key that is there stays"
    before.file.unlink()
    encrypted4.nodes["a"] = Node(lab, "a", encrypted4.folder)
    new = encrypted4.nodes["a"].tunnel.public_key
    assert new != old
    encrypted4.tell()
    keys = {peer.key for peer in encrypted4.nodes["b"].state().peers}
    assert new in keys and old not in keys
    assert ask(lab, "b", "a", lab.pods["b"], lab.pods["a"])[0] == lab.pods["b"]
