"""A lab of two nodes whose pods talk by WireGuard: the throwaway VM's kernel has it, the usual test host has
not.

The switch between the nodes sees every frame. In this order: the last test takes a node out.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import host_state
import pytest
from e2e_node import Done, pod
from lab_cluster import LabCluster

from cni.netns import in_namespace
from kubelet_py.cli.lab.layout import SWITCH, LabPaths

pytestmark = pytest.mark.e2e

PORT = 51820
SO_RCVBUFFORCE = 33  # which Python's socket does not name
SECRET = "nobody-on-the-wire-reads-this"
KUBELET_PY = (sys.executable, "-m", "kubelet_py")


class PatientLab(LabCluster):
    """Everything takes about 16 times longer in an emulated machine."""

    def cli(self, *argv: str, check: bool = True, timeout: float = 900, **options: Any) -> Done:
        return super().cli(*argv, check=check, timeout=timeout, **options)

    def kubectl(self, *argv: str, check: bool = True, timeout: float = 200, **options: Any) -> Done:
        return super().kubectl(*argv, check=check, timeout=timeout, **options)

    def until(self, what: str, condition: Any, seconds: float = 300) -> Any:
        return super().until(what, condition, seconds)

    def get_page(self, url: str) -> str:
        # Not wget's own -T: Debian's static busybox crashes by it.
        ask = ("timeout", "20", "wget", "-q", "-O", "-", url)
        return self.kubectl("exec", "asker", "--", *ask, check=False).out.strip()

    def wg(self, node: str, *what: str) -> list[str]:
        """Another program's view: `wg show kpywg0 …`."""
        return self.execute(node, "wg", "show", "kpywg0", *what).out.split()

    def key(self, node: str) -> str:
        notes = self.get("node", node)["metadata"].get("annotations") or {}
        return str(notes.get("kubelet-py/wireguard-public-key", ""))


@pytest.fixture(scope="module")
def cluster(untouched: host_state.HostState) -> Iterator[PatientLab]:
    root = Path(tempfile.mkdtemp(prefix="kpy-lab-", dir="/tmp"))
    made = PatientLab(root)
    serve = f"echo {SECRET} > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"
    try:
        done = made.cli("up", "--nodes", "2", "--pod-routes", "wireguard", "--timeout", "780", check=False)
        assert done.code == 0, f"{done.out}{done.err}{made.last_words()}"
        made.give_busybox()
        made.apply(pod("asker", nodeName="node1"), pod("web", serve, labels={"app": "web"}, nodeName="node2"))
        made.kubectl("expose", "pod", "web", "--port=80", "--target-port=8080")
        made.wait_running("asker", "web")
        yield made
    finally:
        made.cli("down")
        shutil.rmtree(root)
    difference = host_state.settled_difference(untouched, seconds=20)
    assert [line for line in difference if line != "sysctls: +net/bridge/bridge-nf-call-iptables=1"] == []


@contextmanager
def switch_frames(cluster: PatientLab) -> Iterator[list[bytes]]:
    """What the switch's ports saw meanwhile; complete behind the `with`."""
    process, *_ = json.loads(LabPaths(cluster.lab_root).record(SWITCH).read_text())
    netns = os.open(f"/proc/{process}/ns/net", os.O_RDONLY)
    tap = in_namespace(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    found: list[bytes] = []
    try:
        yield found
        tap.settimeout(1)
        while True:
            try:
                found.append(tap.recv(65536))
            except TimeoutError:
                break
    finally:
        tap.close()
        os.close(netns)


def tunnelled(frame: bytes) -> bool:
    """An IPv4 packet in UDP to the tunnel's port."""
    start = 14 + (frame[14] & 15) * 4
    return frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[start + 2 : start + 4] == b"\xca\x6c"


def of_pods(frame: bytes) -> bool:
    """An IPv4 packet with a pod's address in the clear (10.244.0.0/16)."""
    return frame[12:14] == b"\x08\x00" and b"\x0a\xf4" in (frame[26:28], frame[30:32])


def test_a_pod_asks_one_on_the_other_node_and_the_switch_reads_nothing(cluster: PatientLab) -> None:
    address = cluster.get("pod", "web")["status"]["podIP"]
    service = cluster.get("service", "web")["spec"]["clusterIP"]
    cluster.until("the first answer", lambda: cluster.get_page(f"http://{address}:8080/") == SECRET)
    cluster.until("the Service", lambda: cluster.get_page(f"http://{service}/") == SECRET)
    with switch_frames(cluster) as frames:
        assert cluster.get_page(f"http://{address}:8080/") == SECRET
        assert cluster.get_page(f"http://{service}/") == SECRET
        from_node = cluster.execute("node1", "curl", "-s", "-m", "60", f"http://{address}:8080/")
        assert from_node.out.strip() == SECRET, "the node itself, too"
    assert sum(map(tunnelled, frames)) >= 12, "three connections"
    assert not [frame for frame in frames if of_pods(frame) or SECRET.encode() in frame]


def test_another_program_sees_the_peers_that_the_nodes_announce(cluster: PatientLab) -> None:
    assert cluster.wg("node1", "peers") == [cluster.key("node2")]
    assert cluster.wg("node2", "peers") == [cluster.key("node1")]
    assert cluster.wg("node1", "public-key") == [cluster.key("node1")]
    assert cluster.wg("node1", "endpoints") == [cluster.key("node2"), f"198.18.44.12:{PORT}"]
    pods = cluster.get("node", "node2")["spec"]["podCIDR"]
    allowed = cluster.wg("node1", "allowed-ips")
    assert (allowed[0], sorted(allowed[1:])) == (cluster.key("node2"), sorted([pods, "198.18.44.12/32"]))
    mode = cluster.execute("node1", "stat", "-c", "%a %s", "/var/lib/kubelet-py/wireguard.key").out.strip()
    assert mode == "600 45"


def test_pods_have_room_for_the_tunnel(cluster: PatientLab) -> None:
    assert cluster.kubectl("exec", "asker", "--", "cat", "/sys/class/net/eth0/mtu").out.strip() == "1420"
    assert cluster.execute("node1", "cat", "/sys/class/net/kpywg0/mtu").out.strip() == "1420"


def test_status_inspect_and_doctor_tell_of_it(cluster: PatientLab) -> None:
    address = cluster.get("pod", "web")["status"]["podIP"]
    assert cluster.get_page(f"http://{address}:8080/") == SECRET  # a session is not older than three minutes
    status = cluster.execute("node1", *KUBELET_PY, "status", check=False).out
    assert f"WireGuard on kpywg0, port {PORT}, key {cluster.key('node1')}; 1 of 1 peers" in status, status
    shown = json.loads(cluster.execute("node1", *KUBELET_PY, "inspect", "node", "node2", "-o", "json").out)
    assert shown["key"] == cluster.key("node2")
    assert set(shown["routes"].values()) == {"dev kpywg0"}
    peer = shown["tunnel"]
    assert peer["endpoint"] == f"198.18.44.12:{PORT}" and peer["handshake"].endswith(" s ago")
    assert peer["received"] > 0 and peer["sent"] > 0
    found = json.loads(cluster.execute("node1", *KUBELET_PY, "doctor", "-o", "json", check=False).out)
    assert {each["found"] for each in found if each["name"] == "wireguard"} == {"can be made"}


def test_a_tunnel_that_somebody_deletes_comes_back(cluster: PatientLab) -> None:
    address = cluster.get("pod", "web")["status"]["podIP"]
    cluster.execute("node1", "ip", "link", "del", "kpywg0")
    cluster.until("an answer", lambda: cluster.get_page(f"http://{address}:8080/") == SECRET)
    assert cluster.wg("node1", "peers") == [cluster.key("node2")]


def test_a_node_that_has_lost_its_key_makes_another(cluster: PatientLab) -> None:
    address = cluster.get("pod", "web")["status"]["podIP"]
    old = cluster.key("node1")
    cluster.execute("node1", "rm", "/var/lib/kubelet-py/wireguard.key")
    pid = cluster.execute("node1", *KUBELET_PY, "status", "--pid", "agent").out.strip()
    cluster.execute("node1", "kill", pid)
    cluster.until("another key", lambda: cluster.key("node1") not in ("", old))
    new = cluster.key("node1")
    cluster.until("the other node to know it", lambda: cluster.wg("node2", "peers") == [new])
    cluster.until("an answer", lambda: cluster.get_page(f"http://{address}:8080/") == SECRET)


def test_a_node_that_is_deleted_is_no_peer_any_more(cluster: PatientLab) -> None:
    cluster.node("node2", "kill")
    cluster.kubectl("delete", "node", "node2", "--wait=false")
    cluster.until("no peers", lambda: cluster.wg("node1", "peers") == [])
    routes = cluster.execute("node1", "ip", "route", "show", "dev", "kpywg0").out
    assert routes.strip() == ""
