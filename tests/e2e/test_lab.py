"""`kubelet-py lab`: machines of namespaces, what can happen to them, and the host as before in the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import host_state
import pytest
from e2e_node import KUBECTLS, leaked_packets, pod
from lab_cluster import LabCluster, lab

from kubelet_py.cli.lab import state
from kubelet_py.cli.lab.layout import LabPaths

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not KUBECTLS, reason="no kubectl was found"),
]

NODES = {"node1": "198.18.44.11", "node2": "198.18.44.12", "node3": "198.18.44.13"}
CONTROL = "198.18.44.10"
HOSTS_LINK = "198.18.44.2"
RECEIVE = """
import socket, sys
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("0.0.0.0", 7007))
receiver.settimeout(60)
print("ready", flush=True)
count = 0
while receiver.recvfrom(100)[0] != b"end":
    count += 1
print(count)
"""


@pytest.fixture(scope="module")
def host_before(uplink: str) -> host_state.HostState:
    """With a default route, to a place that counts what should not come there."""
    return host_state.read()


@pytest.fixture(scope="module")
def cluster(uplink: str, host_before: host_state.HostState) -> Iterator[LabCluster]:
    with lab("--nodes", "3") as made:
        made.outside = uplink
        made.apply(*(_answering(name) for name in NODES), _service())
        made.wait_running(*(f"web-{name}" for name in NODES))
        yield made
        assert leaked_packets(made) == 0
    assert host_state.settled_difference(host_before) == []


def _answering(node: str) -> dict[str, Any]:
    script = f"echo {node} > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"
    return pod(f"web-{node}", script, labels={"app": "web"}, nodeName=node)


def _service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "NodePort",
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}],
        },
    }


def _connect(address: str, port: int, seconds: float) -> float | None:
    """How long it took to be connected, None where nobody answered."""
    began = time.monotonic()
    try:
        socket.create_connection((address, port), timeout=seconds).close()
    except OSError:
        return None
    return time.monotonic() - began


def _get(address: str, port: int, seconds: float = 2.0) -> str:
    """The body of a page, "" where none came."""
    try:
        with socket.create_connection((address, port), timeout=seconds) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            parts = []
            while part := connection.recv(4096):
                parts.append(part)
    except OSError:
        return ""
    return b"".join(parts).decode().rpartition("\r\n\r\n")[2].strip()


def _reaches(cluster: LabCluster, pod_name: str, url: str) -> str:
    done = cluster.kubectl("exec", pod_name, "--", "timeout", "3", "wget", "-q", "-O", "-", url, check=False)
    return done.out.strip()


def _restarts(cluster: LabCluster, name: str) -> int:
    return int(cluster.get("pod", name)["status"]["containerStatuses"][0]["restartCount"])


def _container(cluster: LabCluster, name: str) -> str:
    status = cluster.get("pod", name)["status"]
    return str(status["containerStatuses"][0].get("containerID", "")) if status["phase"] == "Running" else ""


def test_of_the_host_nothing_changes_but_one_link(
    cluster: LabCluster, host_before: host_state.HostState
) -> None:
    """While the lab is up: the switch's bridge and all cables but the host's own are in its machines."""
    found = [line.partition(": ")[::2] for line in host_before.difference(host_state.read())]
    (link,) = [fact.removeprefix("+") for kind, fact in found if kind == "links"]
    for kind, fact in found:
        assert fact.startswith("+") and kind in ("links", "routes", "cgroups", "processes"), (kind, fact)
        assert kind != "routes" or f" dev {link} " in fact
        assert kind != "cgroups" or "/kubelet-py-lab-" in fact


def test_each_machine_has_namespaces_and_names_of_its_own(cluster: LabCluster) -> None:
    show = (
        "for n in net mnt uts ipc pid cgroup; do readlink /proc/self/ns/$n; done; hostname; cat /etc/hostname"
    )
    found = {name: cluster.execute(name, "sh", "-c", show).out.split() for name in ("control", *NODES)}
    found["host"] = [os.readlink(f"/proc/self/ns/{n}") for n in ("net", "mnt", "uts", "ipc", "pid", "cgroup")]
    for kind in range(6):
        assert len({lines[kind] for lines in found.values()}) == 5, found
    assert all(found[name][6:] == [name, name] for name in NODES)


def test_pods_of_all_nodes_reach_each_other_and_a_service(cluster: LabCluster) -> None:
    addresses = {name: cluster.get("pod", f"web-{name}")["status"]["podIP"] for name in NODES}
    for here in NODES:
        for there, address in addresses.items():
            cluster.until(
                f"{here} reaches {there}",
                lambda here=here, there=there, address=address: (
                    _reaches(cluster, f"web-{here}", f"http://{address}:8080/") == there
                ),
            )
        cluster.until(
            "the Service by name", lambda here=here: _reaches(cluster, f"web-{here}", "http://web/")
        )


def test_the_host_reaches_node_ports_of_every_node_but_sends_nothing_for_pods_elsewhere(
    cluster: LabCluster,
) -> None:
    for address in NODES.values():
        cluster.until(f"NodePort of {address}", lambda address=address: _get(address, 30080) in NODES)
    pod_ip = cluster.get("pod", "web-node1")["status"]["podIP"]
    assert _get(pod_ip, 8080) == ""  # only its nodes know the way
    assert _get("10.96.0.1", 443) == ""


def test_a_cut_cable_cuts_and_heals(cluster: LabCluster) -> None:
    cluster.node("node2", "partition", "--from", "node1")
    node2 = NODES["node2"]
    ask = f"import socket; socket.create_connection(('{node2}', 10250), timeout=1)"
    assert cluster.execute("node1", "/usr/bin/python3", "-c", ask, check=False).code != 0
    cluster.until(
        "node3 reaches it",
        lambda: cluster.execute("node3", "/usr/bin/python3", "-c", ask, check=False).code == 0,
    )
    assert cluster.machines()["node2"]["cable"] == "cut from node1"
    cluster.node("node2", "heal")
    cluster.node("node2", "loss", "100%")  # not by dice: nft takes no "less than all"
    assert _connect(node2, 10250, 1.0) is None
    cluster.node("node2", "partition")
    assert _connect(node2, 10250, 1.0) is None
    cluster.node("node2", "heal")
    cluster.until("node2 answers again", lambda: _connect(node2, 10250, 2.0))
    cluster.until("and node1 hears it", lambda: _reaches(cluster, "web-node1", f"http://{node2}:30080/"))


def test_a_delayed_node_answers_later_by_twice_the_delay(cluster: LabCluster) -> None:
    node3 = NODES["node3"]
    cluster.node("node3", "delay", "150ms")
    cluster.until("node3 answers", lambda: _connect(node3, 10250, 10.0))
    assert min(_connect(node3, 10250, 30.0) or 30.0 for _ in range(3)) >= 0.3
    body = cluster.python("node1", _FETCH, node3).out.split()
    assert body == [str(_BYTES)]  # large segments and checksums come through the relay whole
    cluster.node("node3", "delay", "0")
    cluster.until("no more", lambda: (_connect(node3, 10250, 10.0) or 10.0) < 0.3)


_BYTES = 3_000_000
_FETCH = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], 7080, timeout=60)
connection.request("GET", "/large")
print(len(connection.getresponse().read()))
"""


@pytest.fixture(scope="module", autouse=True)
def large_page(cluster: LabCluster) -> None:
    cluster.execute(
        "node3", "sh", "-c", f"mkdir -p /srv/pages; head -c {_BYTES} /dev/zero > /srv/pages/large"
    )
    cluster.execute("node3", "busybox", "httpd", "-p", "7080", "-h", "/srv/pages")


def test_loss_loses_about_so_many_frames(cluster: LabCluster) -> None:
    argv = ["exec", "node1", "--", "/usr/bin/python3", "-c", RECEIVE]
    # Its MAC address is known then: ARP gives up after three tries, of which half are lost below.
    cluster.until("node1 answers", lambda: _connect(NODES["node1"], 10250, 2.0))
    cluster.node("node1", "loss", "50%")
    with cluster.start(*argv) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            _send(sender, b"x", 400)
            cluster.node("node1", "heal")
            deadline = time.monotonic() + 60
            while receiver.poll() is None and time.monotonic() < deadline:
                _send(sender, b"end", 1)
                time.sleep(0.05)
        assert 100 < int(receiver.stdout.read()) < 300


def _send(sender: socket.socket, data: bytes, times: int) -> None:
    for _ in range(times):
        sender.sendto(data, (NODES["node1"], 7007))
        time.sleep(0.0005)


def test_a_paused_node_stands_still_and_goes_on(cluster: LabCluster) -> None:
    cluster.node("node2", "pause")
    assert cluster.machines()["node2"]["power"] == "paused"
    refused = cluster.execute("node2", "true", check=False)  # it would stand still as well, deaf to Ctrl-C
    assert refused.code == 1 and "lab node node2 start" in refused.err
    assert _get(NODES["node2"], 30080, 1.0) in (
        "",
        "node1",
        "node3",
    )  # its kernel forwards, its pods are still
    pod_ip = cluster.get("pod", "web-node2")["status"]["podIP"]
    assert _reaches(cluster, "web-node1", f"http://{pod_ip}:8080/") == ""
    cluster.node("node2", "start")
    cluster.until("it goes on", lambda: _reaches(cluster, "web-node1", f"http://{pod_ip}:8080/") == "node2")


def test_after_a_power_cut_a_node_boots_with_its_disk_and_its_pods_run_again(cluster: LabCluster) -> None:
    before, restarts = _container(cluster, "web-node2"), _restarts(cluster, "web-node2")
    boot = cluster.get("node", "node2")["status"]["nodeInfo"]["bootID"]
    cluster.execute("node2", "sh", "-c", "echo kept > /root/kept; echo lost > /run/lost")
    cluster.node("node2", "kill")
    assert cluster.machines()["node2"]["power"] == "off"
    assert _connect(NODES["node2"], 10250, 1.0) is None
    refused = cluster.execute("node2", "true", check=False)
    assert refused.code == 1 and "lab node node2 start" in refused.err
    cluster.node("node2", "start", "--wait", "--timeout", "120")
    assert cluster.execute("node2", "sh", "-c", "cat /root/kept; ls /run").out.split()[0] == "kept"
    assert "lost" not in cluster.execute("node2", "ls", "/run").out.split()
    cluster.until("the pod runs anew", lambda: _container(cluster, "web-node2") not in ("", before))
    assert _restarts(cluster, "web-node2") == restarts + 1
    cluster.until(
        "its new boot is told", lambda: cluster.get("node", "node2")["status"]["nodeInfo"]["bootID"] != boot
    )


def _message(cluster: LabCluster, name: str) -> str:
    return str(cluster.get("pod", name)["status"].get("message", ""))


def test_an_orderly_stop_ends_the_pods_first(cluster: LabCluster) -> None:
    cluster.node("node3", "stop")
    cluster.until("its pod's end is told", lambda: "imminent node shutdown" in _message(cluster, "web-node3"))
    cluster.until("node3 is not Ready", lambda: cluster.ready("node3") != "True")
    cluster.node("node3", "start", "--wait", "--timeout", "120")
    cluster.until("node3 Ready", lambda: cluster.ready("node3") == "True")


def test_without_the_control_plane_everything_keeps_answering(cluster: LabCluster) -> None:
    cluster.node("control", "kill")
    assert cluster.kubectl("get", "nodes", "--request-timeout=2s", check=False).code != 0
    grown = cluster.cli("up", "--nodes", "4", "--timeout", "1", check=False)
    assert grown.code == 1 and "the control plane does not answer" in grown.err
    for address in NODES.values():
        cluster.until(
            f"{address} still answers",
            lambda address=address: _get(address, 30080, 5.0) in ("node1", "node2"),
        )
    cluster.node("control", "start")
    cluster.until("the API answers", lambda: cluster.kubectl("get", "nodes", check=False).code == 0)
    cluster.until("a lease is renewed", lambda: cluster.ready("node1") == "True")
    assert "node4" not in cluster.machines()  # nothing of it was made
    cluster.apply(pod("later", nodeName="node1"))
    cluster.wait_running("later")


def test_what_cannot_be_is_refused_in_one_line(cluster: LabCluster) -> None:
    for argv, text in (
        (("up", "--nodes", "3"), "a lab of 3 nodes runs already"),
        (("node", "node9", "kill"), "no machine node9"),
        (("node", "node1", "loss", "5"), "write it like 5%"),
        (("node", "node1", "kill", "5"), "kill takes no '5'"),
        (("logs", "node1", "-n", "-3"), "--lines -3"),
        (("node", "node1", "partition", "--from", "node1"), "cannot be cut off from itself"),
        (("exec", "node1"), "say what to run"),
    ):
        done = cluster.cli(*argv, check=False)
        assert done.code == 1 and text in done.err and len(done.err.splitlines()) == 1, done


def test_a_host_without_nft_is_told_before_a_cable_is_changed(cluster: LabCluster) -> None:
    done = cluster.cli("node", "node1", "delay", "50ms", check=False, env={"PATH": "/nonexistent"})
    assert done.code == 1 and "apt-get install nftables" in done.err
    assert not (cluster.lab_root / "machines/node1/relay.json").exists()
    assert cluster.machines()["node1"]["cable"] == cluster.machines()["node2"]["cable"]


def test_the_token_that_nodes_joined_with_is_gone(cluster: LabCluster) -> None:
    tokens = "--field-selector=type=bootstrap.kubernetes.io/token"
    assert cluster.kubectl("get", "secrets", "-n", "kube-system", tokens, "-o", "name").out == ""
    for name in NODES:
        file = cluster.lab_root / f"machines/{name}/disk/etc/kubelet-py/bootstrap-kubelet.conf"
        assert not file.exists()


def test_logs_and_kubeconfig_are_where_one_looks(cluster: LabCluster) -> None:
    assert "Registered node node=node1" in cluster.cli("logs", "node1", "agent", "-n", "100000").out
    assert cluster.cli("kubeconfig").out.strip() == str(cluster.kubeconfig)
    nodes = json.loads(cluster.cli("kubectl", "get", "nodes", "-o", "json").out)
    assert [node["metadata"]["name"] for node in nodes["items"]] == list(NODES)


def test_a_second_lab_is_refused_the_first_ones_network_and_leaves_nothing(
    cluster: LabCluster, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = LabCluster(tmp_path / "other")
    done = other.cli("up", "--nodes", "1", check=False)
    assert done.code == 1 and "--network" in done.err
    assert other.cli("node", "node1", "kill", check=False).code == 1
    assert other.cli("down").code == 0
    assert not other.lab_root.exists()


def test_a_lab_that_grows_and_is_killed_whole_leaves_nothing_after_down(cluster: LabCluster) -> None:
    del cluster  # it is there meanwhile, and stays as it is
    before = host_state.read()
    with lab("--nodes", "1", "--network", "198.18.45.0/24", "--pod-routes", "vxlan") as second:
        paths = LabPaths(second.lab_root)
        state.save(paths, state.require(paths).grown(2))  # as a `lab up` that was cut off would leave it
        second.cli("up", "--nodes", "2", "--timeout", "240")
        assert second.ready("node2") == "True"
        folders = list(Path("/sys/fs/cgroup").glob(f"*/{_cgroup(second)}")) or [
            Path("/sys/fs/cgroup", _cgroup(second))
        ]
        pids = {
            int(p) for f in folders for procs in f.rglob("cgroup.procs") for p in procs.read_text().split()
        }
        assert len(pids) > 8
        for pid in pids:
            _kill(pid)
        off = lambda: {m["power"] for m in second.machines().values()} == {"off"}  # noqa: E731
        second.until("all are off", off)
        refused = second.cli("up", "--nodes", "3", check=False)
        assert refused.code == 1 and "was killed" in refused.err
    assert host_state.settled_difference(before) == []


def _cgroup(cluster: LabCluster) -> str:
    from kubelet_py.cli.lab.layout import LabPaths

    return LabPaths(cluster.lab_root).cgroup


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it was in the namespace of one that was killed before
