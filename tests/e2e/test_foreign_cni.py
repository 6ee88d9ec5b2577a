"""Pods on other people's CNI plugins: Debian's containernetworking-plugins, by flag and by conflist.

A folder of spies comes before /usr/lib/cni: each notes the command and the plugin and then is Debian's
plugin. So a test sees that the distribution's program did the work, and that ours did not.
"""

from __future__ import annotations

import collections
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import host_state
import pytest
from e2e_node import NODE_IP, OUTSIDE_IP, Node, leaked_packets, pod

DEBIAN = Path("/usr/lib/cni")
PLUGINS = ("bridge", "ptp", "macvlan", "host-local", "portmap", "bandwidth", "loopback")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not all((DEBIAN / name).exists() for name in PLUGINS), reason="containernetworking-plugins is missing"
    ),
]

SERVE = 'mkdir -p /www; hostname > /www/index.html; trap "exit 0" TERM; httpd -f -p 8080 -h /www & wait'


class Spies:
    """Debian's plugins, that say what they were called for: lines of "COMMAND plugin container-id"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / "calls"
        for name in PLUGINS:
            script = (
                f'#!/bin/sh\necho "$CNI_COMMAND {name} $CNI_CONTAINERID" >> {self._log}\n'
                f"exec {DEBIAN / name}\n"
            )
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)

    def calls(self, command: str) -> dict[str, set[str]]:
        """Plugin → ids of the containers for which it was called with `command`."""
        found = collections.defaultdict(set)
        if self._log.exists():
            for line in self._log.read_text().splitlines():
                called, plugin, container = [*line.split(" "), ""][:3]
                if called == command:
                    found[plugin].add(container)
        return found

    def forget(self) -> None:
        self._log.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def spies(tmp_path_factory: pytest.TempPathFactory) -> Spies:
    return Spies(tmp_path_factory.mktemp("cni"))


@pytest.fixture(params=["bridge", "ptp"])
def foreign(request: pytest.FixtureRequest, unstarted_node: Node, spies: Spies) -> Iterator[tuple[Node, str]]:
    """A node whose pods are attached by Debian's plugins: the flag alone, or a conflist somebody wrote."""
    node = unstarted_node
    before = host_state.read()
    spies.forget()
    conflist = node.root / "etc/cni/net.d/05-by-hand.conflist"
    if request.param == "ptp":
        conflist.parent.mkdir(parents=True, exist_ok=True)
        conflist.write_text(json.dumps(ptp_network(node)))
    node.cli("up", "--detach", "--cni-bin-dir", str(spies.folder), "--cni-bin-dir", str(DEBIAN))
    yield node, request.param
    node.cli("down")
    conflist.unlink(missing_ok=True)
    assert host_state.settled_difference(before) == []


def ptp_network(node: Node) -> dict[str, Any]:
    """A conflist as a person would write it, for the first node's range."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.244.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(node.root / "reservations"),
    }
    plugins = [
        {"type": "ptp", "ipMasq": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ]
    return {"cniVersion": "1.0.0", "name": "by-hand", "plugins": plugins}


def macvlan_network(node: Node) -> dict[str, Any]:
    """Pods as further machines on the node's own segment, with limits where a pod asks for them."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": f"{NODE_IP.rsplit('.', 1)[0]}.0/24", "gateway": OUTSIDE_IP,
                     "rangeStart": NODE_IP.rsplit(".", 1)[0] + ".100"}]],
        "dataDir": str(node.root / "reservations"),
    }  # fmt: skip
    plugin = {"type": "macvlan", "master": "up0", "mode": "bridge", "ipam": ipam}
    return {"cniVersion": "1.0.0", "name": "by-hand", "plugins": [plugin]}


def host_ends() -> list[str]:
    return [name for _, name in socket.if_nameindex() if name.startswith("veth")]


def answers(node: Node, source: str, url: str, times: int = 10) -> set[str]:
    loop = f"i=0; while [ $i -lt {times} ]; do timeout 3 wget -q -O - {url} || echo failed; i=$((i+1)); done"
    on_host = ["sh", "-c", loop.replace("timeout 3 wget -q -O -", "curl -s -m 3")]
    if source == "outside":
        return set(node.outside_run(*on_host).out.split())
    if source == "node":
        return set(node._run(on_host, check=True, timeout=60).out.split())
    return set(node.kubectl("exec", source, "--", "sh", "-c", loop).out.split())


def reserved(node: Node) -> list[str]:
    """Files of addresses in use, wherever a plugin keeps them; folders may go meanwhile."""
    names = [name for _, _, files in os.walk(node.root) for name in files]
    return [name for name in names if name.startswith("10.244.0.")]


def ready_message(node: Node) -> str:
    found = json.loads(node.kubectl("get", "nodes", "-o", "json").out)["items"][0]
    conditions = found["status"]["conditions"]
    return str(next(c["message"] for c in conditions if c["type"] == "Ready"))


def test_pods_have_network_services_and_host_ports_and_leave_nothing(
    foreign: tuple[Node, str], spies: Spies
) -> None:
    node, plugin = foreign
    host_port = {"ports": [{"containerPort": 8080, "hostPort": 8085}]}
    limited = pod("client")
    limited["metadata"]["annotations"] = {"kubernetes.io/ingress-bandwidth": "800M"}
    web = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"app": "web"},
                 "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30222}]},
    }  # fmt: skip
    node.apply(
        pod("web-1", SERVE, labels={"app": "web"}),
        pod("web-2", SERVE, labels={"app": "web"}, container=host_port),
        limited,
        web,
    )
    node.wait_running("web-1", "web-2", "client")
    assert len(host_ends()) == 3, "Debian's plugins name the host's ends veth…, one for each pod"
    cluster_ip = node.get("service", "web")["spec"]["clusterIP"]
    address = node.get("pod", "web-1")["status"]["podIP"]
    assert address.startswith("10.244.0.")
    direct = f"http://{address}:8080/"
    node.until("its server listens", lambda: answers(node, "client", direct, 1) == {"web-1"})
    both = {"web-1", "web-2"}
    url = f"http://{cluster_ip}/"
    asked = [(source, url) for source in ("client", "node", "web-1")]
    asked.append(("outside", f"http://{NODE_IP}:30222/"))
    # The choice is random: now and then ten requests go to one and the same.
    for source, at in asked:
        node.until(f"both answer {source}", lambda source=source, at=at: answers(node, source, at) == both)
    assert answers(node, "outside", f"http://{NODE_IP}:8085/", 3) == {"web-2"}
    queues = node._run(["tc", "qdisc", "show"], check=True, timeout=10).out
    assert queues.count("qdisc tbf") == 1 and "rate 800Mbit" in queues
    added = spies.calls("ADD")
    assert len(added[plugin]) == 3 and added["portmap"] >= added[plugin]
    assert added["host-local"] == added["bandwidth"] == added[plugin]

    node.kubectl("delete", "pod", "web-1", "web-2", "client")
    node.kubectl("delete", "service", "web")
    node.until("DEL for each ADD", lambda: spies.calls("DEL")[plugin] >= added[plugin])
    assert host_ends() == []
    # host-local keeps a file per address in use.
    assert reserved(node) == []
    assert leaked_packets(node) == 0


def test_pods_on_macvlan_are_machines_of_the_nodes_segment(unstarted_node: Node, spies: Spies) -> None:
    node = unstarted_node
    before = host_state.read()
    spies.forget()
    conflist = node.root / "etc/cni/net.d/05-by-hand.conflist"
    conflist.parent.mkdir(parents=True, exist_ok=True)
    conflist.write_text(json.dumps(macvlan_network(node)))
    node.cli("up", "--detach", "--cni-bin-dir", str(spies.folder), "--cni-bin-dir", str(DEBIAN))
    node.apply(pod("web", SERVE), pod("client"))
    node.wait_running("web", "client")
    address = node.get("pod", "web")["status"]["podIP"]
    assert address.rsplit(".", 1)[0] == NODE_IP.rsplit(".", 1)[0]
    url = f"http://{address}:8080/"
    node.until("the client sees the web", lambda: answers(node, "client", url, 1) == {"web"})
    node.until("the segment sees the web", lambda: answers(node, "outside", url, 1) == {"web"})
    assert len(spies.calls("ADD")["macvlan"]) == 2
    node.kubectl("delete", "pod", "web", "client")
    node.until("DEL for each ADD", lambda: spies.calls("DEL")["macvlan"] >= spies.calls("ADD")["macvlan"])
    assert [p for p in (node.root / "reservations/by-hand").iterdir() if p.name[0].isdigit()] == []
    node.cli("down")
    conflist.unlink()
    assert host_state.settled_difference(before) == []


def test_a_missing_plugin_is_named_and_the_node_waits_for_it(unstarted_node: Node, spies: Spies) -> None:
    node = unstarted_node
    before = host_state.read()
    conflist = node.root / "etc/cni/net.d/05-by-hand.conflist"
    conflist.parent.mkdir(parents=True, exist_ok=True)
    good = json.dumps(ptp_network(node))
    conflist.write_text(good.replace('"ptp"', '"no-such-plugin"'))
    flags = ("--cni-bin-dir", str(spies.folder), "--cni-bin-dir", str(DEBIAN))
    refused = node.cli("up", "--detach", "--timeout", "20", *flags, check=False)
    assert refused.code == 1 and refused.err.count("\n") == 1
    assert "is not Ready" in refused.err and "no-such-plugin" in refused.err
    assert str(spies.folder) in refused.err
    node.apply(pod("unattached"))
    select = ("--field-selector", "involvedObject.name=unattached")
    node.until("event", lambda: "not-ready" in node.kubectl("get", "events", *select).out)
    assert node.phase("unattached") == "Pending"
    # A plugin that says by STATUS that it cannot: the node is NotReady with its words, and Ready when it can.
    sick = spies.folder / "sick"
    sick.write_text(
        '#!/bin/sh\n[ "$CNI_COMMAND" = STATUS ] || exec cat >/dev/null\n'
        f'[ -e {spies.folder}/well ] || {{ echo \'{{"code":50,"msg":"uplink unplugged"}}\'; exit 1; }}\n'
    )
    sick.chmod(0o755)
    conflist.write_text(json.dumps({"cniVersion": "1.1.0", "name": "by-hand", "plugins": [{"type": "sick"}]}))
    node.until("NotReady by STATUS", lambda: "uplink unplugged" in ready_message(node))
    (spies.folder / "well").touch()
    node.until("Ready by STATUS", lambda: "kubelet is posting ready status" in ready_message(node))
    conflist.write_text(good)
    node.wait_running("unattached")
    node.kubectl("delete", "pod", "unattached")
    node.cli("down")
    conflist.unlink()
    assert host_state.settled_difference(before) == []
