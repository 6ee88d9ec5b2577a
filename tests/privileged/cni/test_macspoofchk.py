"""macspoofchk of the bridge plugin: frames from a forged source address, and who gets them."""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cni_lab import Attach, leases
from network_lab import Namespace
from plugin_lab import bridge

from cni import spoofcheck
from cni.errors import CniError, NetlinkError, PluginFailure
from cni.invoke import Invoker
from cni.netlink import Netlink
from cni.netns import in_namespace
from cni.rtnetlink import Message

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed"),
]

KIND = 0x88B5  # for local experiments (IEEE 802)
FORGED = bytes.fromhex("0a5801020304")


@pytest.fixture
def pods() -> Iterator[list[Namespace]]:
    made = [Namespace() for _ in range(2)]
    yield made
    for pod in made:
        pod.close()


def frames(pod: Namespace) -> socket.socket:
    """A socket for whole frames on the pod's eth0."""
    made = in_namespace(pod.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(KIND)))
    made.bind(("eth0", KIND))
    made.settimeout(10)
    return made


def mac(pod: Namespace) -> bytes:
    with pod.netlink() as inside:
        return bytes.fromhex(inside.require("eth0").mac.replace(":", ""))


def arrives(sender: Namespace, source: bytes, receiver: Namespace) -> bool:
    """Whether a frame from `source` reaches the other pod, or only the honest one that is sent behind it."""
    with frames(receiver) as far, frames(sender) as near:
        kind = KIND.to_bytes(2, "big")
        near.send(mac(receiver) + source + kind + b"first")
        near.send(mac(receiver) + mac(sender) + kind + b"second")
        return far.recv(100)[14:19] == b"first"


def rules() -> str:
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


def test_a_forged_source_passes_without_the_check(
    attach: Attach, tmp_path: Path, pods: list[Namespace]
) -> None:
    invoker = attach(bridge(tmp_path, ipMasq=False))
    for number, pod in enumerate(pods):
        invoker.add(f"c{number}", pod.path)
    assert arrives(pods[0], FORGED, pods[1])
    assert "kubelet-py-cni" not in rules()


def test_a_forged_source_is_dropped_and_ones_own_passes(
    attach: Attach, tmp_path: Path, pods: list[Namespace]
) -> None:
    invoker = attach(bridge(tmp_path, ipMasq=False, macspoofchk=True))
    for number, pod in enumerate(pods):
        invoker.add(f"c{number}", pod.path)
    for one, other in (pods, pods[::-1]):
        assert not arrives(one, FORGED, other)
        assert not arrives(one, mac(other), other)
        assert arrives(one, mac(one), other)
    invoker.check("c0", pods[0].path)
    spoofcheck.release({"veth0a060002"})
    assert arrives(pods[0], FORGED, pods[1])
    with pytest.raises(PluginFailure, match="MAC address 0a:58:0a:06:00:02"):
        invoker.check("c0", pods[0].path)
    invoker.delete("c1", pods[1].path)
    assert spoofcheck.interfaces() == set()
    invoker.delete("c0", None)
    invoker.delete("c0", None)


def test_an_interface_whose_name_is_used_again_is_held_to_its_new_address_only(node: None) -> None:
    spoofcheck.hold("veth1", "0a:58:00:00:00:01")
    spoofcheck.hold("veth2", "0a:58:00:00:00:01")
    spoofcheck.hold("veth1", "0a:58:00:00:00:02")
    assert spoofcheck.interfaces() == {"veth1", "veth2"}
    assert not spoofcheck.held("veth1", "0a:58:00:00:00:01")
    assert spoofcheck.held("veth1", "0a:58:00:00:00:02")
    assert spoofcheck.held("veth2", "0a:58:00:00:00:01")
    spoofcheck.release({"veth1", "unknown"})
    assert spoofcheck.interfaces() == {"veth2"}


def test_gc_forgets_interfaces_that_are_gone_and_tear_down_the_table(
    attach: Attach, tmp_path: Path, pods: list[Namespace]
) -> None:
    invoker = attach(bridge(tmp_path, ipMasq=False, macspoofchk=True))
    invoker.add("c0", pods[0].path)
    spoofcheck.hold("veth-gone", "0a:58:00:00:00:01")
    invoker.gc([("c0", "eth0")])
    assert spoofcheck.interfaces() == {"veth0a060002"}
    assert not arrives_at_host(pods[0])
    invoker.delete("c0", pods[0].path)
    subprocess.run(["nft", "add", "table", "bridge", "kubelet-py-cni-foreign"], check=True)
    invoker.tear_down()
    assert rules().split() == ["table", "bridge", "kubelet-py-cni-foreign", "{", "}"]


def arrives_at_host(pod: Namespace) -> bool:
    """The same for a frame to the bridge itself."""
    with Netlink() as host, frames(pod) as near:
        bridge_mac = bytes.fromhex(host.require("kpy0").mac.replace(":", ""))
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(KIND)) as far:
            far.bind(("kpy0", KIND))
            far.settimeout(10)
            kind = KIND.to_bytes(2, "big")
            near.send(bridge_mac + FORGED + kind + b"first")
            near.send(bridge_mac + mac(pod) + kind + b"second")
            return far.recv(100)[14:19] == b"first"


class Failing(Netlink):
    """Refuses what makes the pod's end of the pair."""

    def batch(self, messages: Any) -> None:
        if any(isinstance(m, Message) and m.action.startswith("add address 10.6.0.2") for m in messages):
            raise NetlinkError("obey the test", errno.EIO)
        super().batch(messages)


def test_an_add_that_fails_behind_it_leaves_nothing_held(
    attach: Attach, tmp_path: Path, pods: list[Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cni.wiring.Netlink", Failing)
    invoker: Invoker = attach(bridge(tmp_path, ipMasq=False, macspoofchk=True))
    with pytest.raises(CniError, match="obey the test"):
        invoker.add("c0", pods[0].path)
    assert spoofcheck.interfaces() == set()
    assert leases(tmp_path / "leases/net") == []


def test_without_nft_add_says_what_to_install_and_leaves_nothing(
    attach: Attach, tmp_path: Path, pods: list[Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cni.programs.find", lambda _name, _path: None)
    invoker = attach(bridge(tmp_path, ipMasq=False, macspoofchk=True))
    with pytest.raises(CniError, match="apt install nftables") as caught:
        invoker.add("c0", pods[0].path)
    assert caught.value.code == 103
    with pods[0].netlink() as inside:
        assert inside.link("eth0") is None
    assert leases(tmp_path / "leases/net") == []
