"""Host ports on real packets: TCP, UDP, SCTP, by address of the node, in both families and variants."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cni_lab import Attach, nat_rules
from network_lab import Namespace, Server, lacks_sctp, uplink

from cni.conntrack import forget_udp
from cni.netlink import Netlink
from cni.netns import in_namespace
from cni.rtnetlink import new_address

pytestmark = pytest.mark.privileged

NODE, NODE6 = "192.0.2.1", "2001:db8::1"
OTHER, OTHER6 = "192.0.2.9", "2001:db8::9"


def chain(tmp_path: Path) -> tuple[dict[str, Any], ...]:
    ranges = [[{"subnet": "10.4.0.0/24"}], [{"subnet": "fd04::/64"}]]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    ipam = {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": str(tmp_path / "leases")}
    first = {"type": "bridge", "bridge": "kpy0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
             "ipam": ipam}  # fmt: skip
    return first, {"type": "portmap", "capabilities": {"portMappings": True}}


def ports(*entries: tuple[int, int, str, str]) -> dict[str, Any]:
    keys = ("hostPort", "containerPort", "protocol", "hostIP")
    return {"portMappings": [dict(zip(keys, entry, strict=True)) for entry in entries]}


@pytest.fixture
def client(node: None) -> Any:
    with Namespace() as made:
        uplink(made, node_ip6=NODE6, client_ip6="2001:db8::2")
        with Netlink() as host:
            index = host.require("uplink0").index
            host.batch([new_address(index, f"{OTHER}/24"), new_address(index, f"{OTHER6}/64")])
        yield made


@pytest.mark.parametrize("udp", [False, True])
def test_a_host_ip_is_the_only_one_that_answers(
    client: Namespace, attach: Attach, tmp_path: Path, udp: bool
) -> None:
    invoker = attach(*chain(tmp_path))
    kind = "udp" if udp else "tcp"
    wanted = ports(
        (8001, 80, kind, NODE), (8001, 80, kind, NODE6), (8002, 80, kind, ""), (8003, 80, kind, "0.0.0.0")
    )
    with Namespace() as pod:
        invoker.add("a", pod.path, capabilities=wanted)
        servers = [Server("a", pod, 80, udp=udp), Server("a", pod, 80, udp=udp, address="::")]
        try:
            for address in (NODE, NODE6):
                assert client.ask(address, 8001, udp=udp).startswith("a ")
            for address in (OTHER, OTHER6):
                with pytest.raises(OSError):
                    client.ask(address, 8001, udp=udp)
                assert client.ask(address, 8002, udp=udp).startswith("a ")
            assert client.ask(OTHER, 8003, udp=udp).startswith("a ")
            # The pod itself, by the node's port: hairpin, masqueraded.
            assert pod.ask(NODE, 8002, udp=udp).startswith("a 10.4.0.1")
            assert pod.ask(NODE6, 8002, udp=udp).startswith("a fd04::1")
            invoker.check("a", pod.path)
        finally:
            for server in servers:
                server.close()
        invoker.delete("a", pod.path)
        assert "CNI-DN-" not in nat_rules() + nat_rules("ip6tables")


def crc32c(data: bytes) -> int:
    """SCTP's checksum (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sctp_init(source: int, target: int) -> bytes:
    init = struct.pack("!BBHIIHHI", 1, 0, 20, 0x1234, 65536, 1, 1, 1)
    header = struct.pack("!HHI", source, target, 0)
    return header + struct.pack("<I", crc32c(header + b"\0\0\0\0" + init)) + init


def test_sctp_leads_to_the_pod(client: Namespace, attach: Attach, tmp_path: Path) -> None:
    """The kernel here has no SCTP sockets, only its connection tracking: the packets are made by hand."""
    invoker = attach(*chain(tmp_path))
    with Namespace() as pod:
        invoker.add("a", pod.path, capabilities=ports((9001, 90, "sctp", NODE)))
        with raw(pod) as receiver, raw(client) as sender:
            sender.sendto(sctp_init(40000, 9001), (NODE, 0))
            receiver.settimeout(5)
            packet, _ = receiver.recvfrom(2000)
        offset = (packet[0] & 15) * 4
        assert struct.unpack_from("!HH", packet, offset) == (40000, 90)
        assert socket.inet_ntoa(packet[16:20]) == "10.4.0.2"
        invoker.delete("a", pod.path)


def raw(place: Namespace) -> socket.socket:
    return in_namespace(place.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 132))


@pytest.mark.parametrize("address", [NODE, NODE6])
def test_a_udp_flow_follows_the_port_from_pod_to_pod(
    client: Namespace, attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    # No conntrack tool may be needed.
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("iptables", "ip6tables", "iptables-restore", "ip6tables-restore"):
        (tools / tool).symlink_to(str(shutil.which(tool, path="/usr/sbin:/sbin")))
    monkeypatch.setenv("PATH", str(tools))
    invoker = attach(*chain(tmp_path))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bind = "::" if ":" in address else "0.0.0.0"
    wanted = ports((5353, 53, "udp", ""))
    with Namespace() as one, Namespace() as two, client.socket(socket.SOCK_DGRAM, family) as sock:
        sock.bind((bind, 44444))
        sock.sendto(b"?", (address, 5353))  # nobody there: conntrack remembers a flow to the node itself
        for name, pod in (("one", one), ("two", two)):
            invoker.add(name, pod.path, capabilities=wanted)
            server = Server(name, pod, 53, udp=True, address=bind)
            try:
                sock.sendto(b"?", (address, 5353))
                assert sock.recv(100).decode().startswith(name + " ")
            finally:
                server.close()
            invoker.delete(name, pod.path)


def test_flows_to_other_ports_stay(client: Namespace, attach: Attach, tmp_path: Path) -> None:
    invoker = attach(*chain(tmp_path))
    with Namespace() as pod, client.socket(socket.SOCK_DGRAM) as sock:
        invoker.add("a", pod.path, capabilities=ports((5353, 53, "udp", ""), (5354, 54, "udp", "")))
        servers = [Server("a", pod, 53, udp=True), Server("a", pod, 54, udp=True)]
        for port in (5353, 5354):
            sock.sendto(b"?", (NODE, port))
            sock.recv(100)
        assert forget_udp(4, {5353}) == 1
        assert forget_udp(4, {5353}) == 0
        assert forget_udp(4, {5354}) == 1
        for server in servers:
            server.close()
        invoker.delete("a", pod.path)


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_the_hosts_iptables_variant_is_the_one_used(
    client: Namespace, attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("iptables", "ip6tables"):
        for suffix in ("", "-restore"):
            found = shutil.which(f"{name}-{variant}{suffix}", path="/usr/sbin:/sbin")
            if found is None:
                pytest.skip(f"{name}-{variant} is missing")
            (tools / (name + suffix)).symlink_to(found)
    probe = subprocess.run([str(tools / "iptables"), "-t", "nat", "-S"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"the kernel has no iptables-{variant}: {probe.stderr.strip()}")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    other = {"nft": "iptables-legacy", "legacy": "iptables-nft"}[variant]
    invoker = attach(*chain(tmp_path))
    with Namespace() as pod:
        invoker.add("a", pod.path, capabilities=ports((8001, 80, "tcp", "")))
        server = Server("a", pod, 80)
        assert client.ask(NODE, 8001).startswith("a ")
        server.close()
        assert "CNI-DN-" in nat_rules(str(tools / "iptables"))
        if shutil.which(other):
            assert "CNI-" not in nat_rules(other)
        invoker.delete("a", pod.path)
        invoker.tear_down()
        assert "CNI-" not in nat_rules(str(tools / "iptables"))


def test_conditions_keep_a_client_out(client: Namespace, attach: Attach, tmp_path: Path) -> None:
    first, mapper = chain(tmp_path)
    invoker = attach(first, {**mapper, "conditionsV4": ["!", "-s", "192.0.2.2"], "masqAll": True})
    with Namespace() as pod:
        invoker.add("a", pod.path, capabilities=ports((8001, 80, "tcp", "")))
        servers = [Server("a", pod, 80), Server("a", pod, 80, address="::")]
        with pytest.raises(ConnectionRefusedError):
            client.ask(NODE, 8001)
        # IPv6 has no condition; everything is masqueraded.
        assert client.ask(NODE6, 8001) == "a fd04::1"
        for server in servers:
            server.close()
        invoker.delete("a", pod.path)


def test_sctp_connections_by_a_host_port(client: Namespace, attach: Attach, tmp_path: Path) -> None:
    """By sockets, where the kernel has any; in both versions, from outside and by the pod itself."""
    problem = lacks_sctp()
    if problem:
        pytest.skip(problem)
    sctp = socket.IPPROTO_SCTP
    invoker = attach(*chain(tmp_path))
    wanted = ports((8001, 80, "sctp", NODE), (8001, 80, "sctp", NODE6), (8002, 80, "sctp", ""))
    with Namespace() as pod:
        invoker.add("a", pod.path, capabilities=wanted)
        servers = [Server("a", pod, 80, address=address, protocol=sctp) for address in ("0.0.0.0", "::")]
        try:
            assert client.ask(NODE, 8001, protocol=sctp) == "a 192.0.2.2"
            assert client.ask(NODE6, 8001, protocol=sctp) == "a 2001:db8::2"
            for address in (OTHER, OTHER6):
                assert client.ask(address, 8002, protocol=sctp).startswith("a ")
            assert pod.ask(NODE, 8002, protocol=sctp).startswith("a 10.4.0.1")
            invoker.check("a", pod.path)
        finally:
            for server in servers:
                server.close()
        invoker.delete("a", pod.path)
        assert "CNI-DN-" not in nat_rules() + nat_rules("ip6tables")
