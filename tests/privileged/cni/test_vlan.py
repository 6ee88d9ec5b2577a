"""VLANs of the bridge plugin on real packets, beside what Debian's plugin makes of the same configuration."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import network_lab
import pytest
from cni_lab import Attach
from network_lab import Namespace, Server
from plugin_lab import alone, body_of, bridge, names, run

from cni.bridge import ensure_bridge
from cni.errors import CniError, PluginFailure, UnsupportedField
from cni.netlink import Netlink
from cni.netns import in_namespace
from cni.vlans import PortVlans

pytestmark = pytest.mark.privileged

DEBIAN = Path("/usr/lib/cni/bridge")


def lacking() -> str:
    """Why this kernel's bridges know no VLANs, "" where they do."""
    with network_lab.node(), Netlink() as netlink:
        try:
            ensure_bridge(netlink, "try0", tagged=PortVlans(5))
        except UnsupportedField as error:
            return str(error)
    return ""


@pytest.fixture(scope="module")
def filtering() -> None:
    problem = lacking()
    if problem:
        pytest.skip(problem)


def shown(*argv: str, inside: str = "") -> Any:
    enter = ["nsenter", f"--net={inside}"] if inside else []
    done = subprocess.run([*enter, *argv], capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def ports() -> dict[str, list[tuple[int, tuple[str, ...]]]]:
    """`bridge vlan show`: interface → (VLAN, flags)."""
    return {
        entry["ifname"]: [(each["vlan"], tuple(sorted(each.get("flags", [])))) for each in entry["vlans"]]
        for entry in shown("bridge", "-j", "vlan", "show")
    }


def state() -> dict[str, Any]:
    """All that a plugin made on the node, without the names that each makes up."""
    named = {"kpy0", "kpy0.100"}
    addresses = {
        link["ifname"]: sorted(a["local"] for a in link["addr_info"] if a["scope"] == "global")
        for link in shown("ip", "-j", "addr")
        if link["ifname"] in named
    }
    (bridged,) = shown("ip", "-d", "-j", "link", "show", "kpy0")
    found = ports()
    return {
        "addresses": addresses,
        "filtering": bridged["linkinfo"]["info_data"]["vlan_filtering"],
        "bridge": found.pop("kpy0"),
        "ports": sorted(found.values()),
        "up": sorted(
            link["ifname"]
            for link in shown("ip", "-j", "link")
            if link["ifname"] in named and "UP" in link["flags"]
        ),
    }


def test_a_kernel_without_it_refuses_and_nothing_is_left(node: None, own_bin: Path, tmp_path: Path) -> None:
    if not lacking():
        pytest.skip("this kernel's bridges know VLANs")
    for key, value in (("vlan", 100), ("vlanTrunk", [{"id": 5}])):
        with Namespace() as pod:
            config = alone(bridge(tmp_path, **{key: value}))
            status, body = body_of("bridge", own_bin, "ADD", config, **names(pod))
            assert (status, body["code"]) == (1, 2) and "VLAN filtering" in body["msg"]
            with Netlink() as netlink:
                assert {link.name for link in netlink.links()} <= {"lo", "tunl0", "sit0", "ip6tnl0"}
            assert not list((tmp_path / "leases").glob("net/10.*"))


@pytest.mark.skipif(not DEBIAN.exists(), reason="containernetworking-plugins is not installed")
def test_the_kernel_holds_the_same_as_after_debians_plugin(
    filtering: None, own_bin: Path, tmp_path: Path
) -> None:
    found = []
    for folder, program in (("ours", own_bin / "bridge"), ("theirs", DEBIAN)):
        with network_lab.node(), Namespace() as one, Namespace() as two:
            config = alone(bridge(tmp_path / folder, vlan=100, ipMasq=False), "0.4.0")
            paths = f"{program.parent}:{own_bin}:/usr/lib/cni"
            for container, pod in (("c1", one), ("c2", two)):
                status, result = run(program, "ADD", config, paths, **names(pod, container))
                assert status == 0, result
            assert {"kpy0", "eth0", "kpy0.100"} <= {i["name"] for i in result["interfaces"]}
            found.append(state())
            status, result = run(program, "DEL", config, paths, **names(one, "c1"))
            assert status == 0, result
            found[-1]["after"] = state()
    assert found[0] == found[1]
    access = [(1, ("Egress Untagged",)), (100, ("Egress Untagged", "PVID"))]
    assert found[0]["ports"] == [access] * 3, "two pods and the gateway"
    assert found[0]["addresses"] == {"kpy0": [], "kpy0.100": ["10.6.0.1"]}
    assert len(found[0]["after"]["ports"]) == 2


def section(tmp_path: Path, name: str, subnet: str, **more: Any) -> dict[str, Any]:
    made = bridge(tmp_path / name, ipMasq=False, **more)
    made["ipam"]["subnet"] = subnet
    return made


def test_pods_of_one_vlan_meet_and_others_do_not(
    filtering: None, attach: Attach, tmp_path: Path, own_bin: Path
) -> None:
    """On one bridge, even where the addresses of all are of one subnet."""
    red = attach(section(tmp_path, "red", "10.6.0.0/24", vlan=100))
    with Namespace() as a, Namespace() as b, Namespace() as c:
        first = red.add("a", a.path).ips[0].address.split("/")[0]
        second = red.add("b", b.path).ips[0].address.split("/")[0]
        blue = alone(section(tmp_path, "red", "10.6.0.0/24", vlan=200, isGateway=False))
        blue["ipam"] |= {"routes": [], "rangeStart": "10.6.0.100"}
        status, result = body_of("bridge", own_bin, "ADD", blue, **names(c, "c"))
        assert status == 0, result
        server = Server("a", a, 80)
        try:
            assert b.ask(first, 80) == f"a {second}"
            assert network_lab.ask(first, 80) == "a 10.6.0.1", "the node, by the VLAN's gateway"
            with pytest.raises(OSError):
                c.ask(first, 80)
        finally:
            server.close()
        red.check("a", a.path)


def test_without_the_default_vlan_a_port_is_in_its_own_alone(
    filtering: None, attach: Attach, tmp_path: Path
) -> None:
    invoker = attach(section(tmp_path, "red", "10.6.0.0/24", vlan=100, preserveDefaultVlan=False))
    with Namespace() as pod:
        result = invoker.add("a", pod.path)
        own = [(100, ("Egress Untagged", "PVID"))]
        near = next(i.name for i in result.interfaces if not i.sandbox and i.name.startswith("veth"))
        found = ports()
        assert found[near] == own
        assert sorted(value for name, value in found.items() if name != "kpy0") == [own, own]
        invoker.check("a", pod.path)
        subprocess.run(["bridge", "vlan", "add", "vid", "7", "dev", near], check=True)
        with pytest.raises(PluginFailure, match="only VLAN 100"):
            invoker.check("a", pod.path)


def frame(source: str, vlan: int, payload: bytes) -> bytes:
    head = b"\xff" * 6 + bytes.fromhex(source.replace(":", ""))
    return head + b"\x81\x00" + vlan.to_bytes(2, "big") + b"\x88\xb5" + payload.ljust(60, b".")


def wire(pod: Namespace) -> socket.socket:
    kind = socket.htons(0x88B5)
    made = in_namespace(pod.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, kind))
    made.bind(("eth0", 0x88B5))
    made.settimeout(20)
    return made


def test_a_trunk_carries_its_vlans_tagged(
    filtering: None, attach: Attach, tmp_path: Path, own_bin: Path
) -> None:
    trunk = [{"minID": 10, "maxID": 12}, {"id": 20}]
    invoker = attach(section(tmp_path, "trunk", "10.6.0.0/24", vlanTrunk=trunk))
    with Namespace() as router, Namespace() as eleven, Namespace() as thirteen:
        result = invoker.add("router", router.path)
        near = next(i.name for i in result.interfaces if not i.sandbox and i.name.startswith("veth"))
        assert ports()[near] == [(1, ("Egress Untagged", "PVID")), *((n, ()) for n in (10, 11, 12, 20))]
        invoker.check("router", router.path)
        for number, pod in ((11, eleven), (13, thirteen)):
            config = alone(section(tmp_path, "trunk", "10.6.0.0/24", vlan=number, isGateway=False))
            status, body = body_of("bridge", own_bin, "ADD", config, **names(pod, f"c{number}"))
            assert status == 0, body
        mac = next(i.mac for i in result.interfaces if i.sandbox)
        with wire(router) as sender, wire(eleven) as near_wire, wire(thirteen) as far_wire:
            sender.send(frame(mac, 13, b"thirteen"))  # not in the trunk
            sender.send(frame(mac, 11, b"eleven"))
            received = near_wire.recv(200)
            assert received[12:20] == b"\x88\xb5eleven", "without its tag"
            far_wire.settimeout(0.5)
            with pytest.raises(TimeoutError):
                far_wire.recv(200)
        subprocess.run(["bridge", "vlan", "del", "vid", "11", "dev", near], check=True)
        with pytest.raises(PluginFailure, match="VLAN 11"):
            invoker.check("router", router.path)


def test_a_bridge_that_was_there_without_filtering_gets_it(
    filtering: None, attach: Attach, tmp_path: Path
) -> None:
    with Netlink() as netlink:
        ensure_bridge(netlink, "kpy0")
        assert not netlink.require("kpy0").filtering
    invoker = attach(section(tmp_path, "red", "10.6.0.0/24", vlan=100))
    with Namespace() as pod:
        invoker.add("a", pod.path)
        with Netlink() as netlink:
            assert netlink.require("kpy0").filtering


def test_a_bridge_that_was_deleted_comes_back_with_its_vlans_and_tear_down_takes_all(
    filtering: None, attach: Attach, tmp_path: Path
) -> None:
    invoker = attach(section(tmp_path, "red", "10.6.0.0/24", vlan=100, preserveDefaultVlan=False))
    with Namespace() as pod:
        invoker.prepare()
        address = invoker.add("a", pod.path).ips[0].address.split("/")[0]
        before = state()
        subprocess.run(["ip", "link", "del", "kpy0"], check=True)
        with pytest.raises(CniError):
            invoker.status()
        invoker.prepare()
        assert state() == before
        invoker.status()
        server = Server("a", pod, 80)
        try:
            assert network_lab.ask(address, 80) == "a 10.6.0.1"
        finally:
            server.close()
        invoker.delete("a", pod.path)
        invoker.tear_down()
        with Netlink() as netlink:
            left = {link.name for link in netlink.links()}
        assert not any(name.startswith(("kpy0", "vlan", "veth")) for name in left)
