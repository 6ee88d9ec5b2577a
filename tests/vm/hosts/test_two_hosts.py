"""What `vagrant up` leaves: a cluster over machines with kernels of their own, which share nothing but a
network. Pods reach pods, Services and names across them; kubectl on the host reaches everything."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import pytest
from e2e_node import pod
from hosts import Hosts

pytestmark = pytest.mark.e2e

SERVE = 'mkdir /www; hostname > /www/index.html; echo up; trap "exit 0" TERM; httpd -f -p 8080 -h /www & wait'
NAT = "10.0.2.15"


def service(name: str, **spec: Any) -> dict[str, Any]:
    ports = [{"port": 80, "targetPort": 8080}]
    spec = {"selector": {"app": "web"}, "ports": ports, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def web(name: str) -> dict[str, Any]:
    where = {"nodeSelector": {"kubernetes.io/hostname": name}}
    return pod(f"web-{name}", SERVE, labels={"app": "web"}, hostname=name, subdomain="peers", **where)


@pytest.fixture(scope="module")
def pods(hosts: Hosts) -> Mapping[str, str]:
    """Address of the one web pod on each node, by the node's name; the Service web is before all of them,
    and the headless one gives them names."""
    names = [machine.name for machine in hosts.machines]
    hosts.apply(*(web(name) for name in names), service("web"), service("peers", clusterIP="None"))
    hosts.wait_running(*(f"web-{name}" for name in names))
    return {name: hosts.get("pod", f"web-{name}")["status"]["podIP"] for name in names}


FETCH = 'for place; do timeout 60 wget -q -O - "http://$place/" || echo "$place: no answer"; done'


def fetch(hosts: Hosts, node: str, *places: str) -> list[str]:
    """What the web pod on a node gets from http://place/, for each place; one exec, as that takes seconds."""
    return hosts.kubectl("exec", f"web-{node}", "--", "sh", "-c", FETCH, "sh", *places).out.splitlines()


def test_nodes_are_known_by_their_private_addresses(hosts: Hosts) -> None:
    """The default route leads through the interface whose address all machines have."""
    ranges = []
    for machine in hosts.machines:
        assert NAT in machine.run("ip -4 -br addr show enp0s15").out
        assert "enp0s15" in machine.run("ip route show default").out
        node = hosts.get("node", machine.name)
        addresses = {entry["type"]: entry["address"] for entry in node["status"]["addresses"]}
        assert addresses["InternalIP"] == machine.address
        ranges.append(ipaddress.ip_network(node["spec"]["podCIDR"]))
    assert len(set(ranges)) == len(hosts.machines)
    subset = hosts.get("endpoints", "kubernetes")["subsets"][0]
    assert [entry["ip"] for entry in subset["addresses"]] == [hosts.control.address]


def test_the_example_answers_through_each_node_s_port(hosts: Hosts) -> None:
    """From the host, as the last lines of `vagrant up` show; some answers come from other nodes' pods."""
    names = hosts.kubectl("get", "pods", "-l", "app=hello", "-o", "json").json()["items"]
    assert {found["spec"]["nodeName"] for found in names} == {machine.name for machine in hosts.machines}
    pages = {f"Hello from {found['metadata']['name']}\n" for found in names}
    for machine in hosts.machines:
        hosts.until(f"answer of {machine.name}", lambda m=machine: hosts.ask(m.address, hosts.port))
        seen = {hosts.ask(machine.address, hosts.port) for _ in range(40)}
        assert seen == pages, (machine.name, seen)


def test_pods_reach_pods_on_other_machines(hosts: Hosts, pods: Mapping[str, str]) -> None:
    for source in pods:
        assert fetch(hosts, source, *(f"{address}:8080" for address in pods.values())) == list(pods)


def test_the_way_between_pods_is_the_private_network(hosts: Hosts, pods: Mapping[str, str]) -> None:
    for machine in hosts.machines:
        for target, address in pods.items():
            if target != machine.name:
                route = machine.run(f"ip -o route get {address}").out
                assert "dev enp0s16" in route and f"src {machine.address}" in route


def test_pods_reach_services_and_names(hosts: Hosts, pods: Mapping[str, str]) -> None:
    cluster_ip = hosts.get("service", "web")["spec"]["clusterIP"]
    for source in pods:
        for place in (cluster_ip, "web", "web.default.svc.cluster.local"):
            # Chosen at random each time: that one of two is never met among twelve is rare, not impossible.
            hosts.until(
                f"answers of all by {place}",
                lambda source=source, place=place: set(fetch(hosts, source, *[place] * 12)) == set(pods),
            )
        assert fetch(hosts, source, *(f"{target}.peers:8080" for target in pods)) == list(pods)


def test_nodes_reach_pods_and_services(hosts: Hosts, pods: Mapping[str, str]) -> None:
    cluster_ip = hosts.get("service", "web")["spec"]["clusterIP"]
    for machine in hosts.machines:
        for target, address in pods.items():
            assert machine.run(f"curl -s -m 60 http://{address}:8080/").out == f"{target}\n"
        assert machine.run(f"curl -s -m 60 http://{cluster_ip}/").out.strip() in pods


def test_kubectl_reaches_into_each_machine(hosts: Hosts, pods: Mapping[str, str]) -> None:
    for name in pods:
        assert hosts.kubectl("exec", f"web-{name}", "--", "hostname").out == f"{name}\n"
        logs = ("logs", f"web-{name}")
        hosts.until("its log", lambda logs=logs: hosts.kubectl(*logs, check=False).out == "up\n")
        echoed = hosts.kubectl("exec", "-i", f"web-{name}", "--", "cat", stdin="there and back")
        assert echoed.out == "there and back"


def test_limits_are_systemd_s_on_a_worker_too(hosts: Hosts) -> None:
    """A joined node has cgroup v2 alone as well: the limit is in the kernel's file, and kills."""
    worker = hosts.workers[0]
    where = {"nodeSelector": {"kubernetes.io/hostname": worker.name}}
    limited = {"resources": {"limits": {"memory": "32Mi"}}}
    hungry = pod("hungry", "echo eating; tail /dev/zero", container=limited, restartPolicy="Never", **where)
    hosts.apply(hungry, pod("modest", "sleep 3600", container=limited, **where))
    hosts.wait_running("modest")
    uid = hosts.get("pod", "modest")["metadata"]["uid"].replace("-", "_")
    folder = f"/sys/fs/cgroup/kubelet_py.slice/kubelet_py-kubepods.slice/*/*-pod{uid}.slice"
    assert worker.run(f"cat {folder}/memory.max").out == f"{32 << 20}\n"
    hosts.until("the end of hungry", lambda: hosts.phase("hungry") == "Failed")
    ended = hosts.get("pod", "hungry")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")
    hosts.kubectl("delete", "pod", "hungry", "modest", "--wait=false")
