"""What a pod is called and what it shares: host name, hosts, resolv.conf, service links, namespaces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_node import NODE_IP, Node, pod
from resource_node import running_node, wait_for_event

pytestmark = pytest.mark.e2e

POLITE = "trap 'exit 0' TERM; sleep 3600 & wait"
DNS = "192.0.2.53"
KUBELET = "[sig-node] Kubelet when scheduling"


@pytest.fixture(scope="module")
def node(uplink: str) -> Iterator[Node]:
    """A node that knows of a cluster DNS."""
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
    }
    with running_node(uplink, config) as started:
        yield started


def sh(node: Node, name: str, line: str, container: str = "main") -> str:
    return node.kubectl("exec", name, "-c", container, "--", "sh", "-c", line).out


WHOLE = "web-0.web.default.svc.cluster.local"


@pytest.mark.conformance("[sig-network] DNS should provide /etc/hosts entries for the cluster")
def test_host_names(node: Node) -> None:
    named = {"hostname": "web-0", "subdomain": "web"}
    node.apply(
        pod("short", POLITE, **named),
        pod("whole", POLITE, setHostnameAsFQDN=True, **named),
        pod("too-long", POLITE, setHostnameAsFQDN=True, subdomain="web", hostname="n" * 60),
    )
    node.wait_running("short", "whole")
    look = "hostname; cat /etc/hostname; echo $HOSTNAME"
    assert sh(node, "short", look).split() == ["web-0"] * 3
    assert sh(node, "whole", look).split() == [WHOLE] * 3
    for name in ("short", "whole"):
        ip = node.get("pod", name)["status"]["podIP"]
        assert f"{ip}\t{WHOLE}\tweb-0\n" in sh(node, name, "cat /etc/hosts")
    told = wait_for_event(node, "too-long", "Warning FailedCreatePodSandBox")
    assert "(64 characters is the max, 90 characters requested)" in told
    assert node.phase("too-long") == "Pending"
    node.kubectl("delete", "pod", "short", "whole", "too-long")


@pytest.mark.conformance(f"{KUBELET} an agnhost Pod with hostAliases should write entries to /etc/hosts")
def test_host_aliases(node: Node) -> None:
    aliases = [{"ip": "192.0.2.1", "hostnames": ["foo.local", "bar.local"]}]
    node.apply(pod("aliased", POLITE, hostAliases=aliases))
    node.wait_running("aliased")
    lines = sh(node, "aliased", "cat /etc/hosts").splitlines()
    assert lines[-2:] == ["# Entries added by HostAliases.", "192.0.2.1\tfoo.local\tbar.local"]
    node.kubectl("delete", "pod", "aliased")


@pytest.mark.conformance("[sig-node] KubeletManagedEtcHosts should test kubelet managed /etc/hosts file")
def test_the_hosts_file_is_ours_but_on_the_hosts_network_and_where_one_is_mounted(node: Node) -> None:
    own = pod("own", POLITE, volumes=[{"name": "hosts", "hostPath": {"path": "/etc/hosts", "type": "File"}}])
    [main] = own["spec"]["containers"]
    mounts = [{"name": "hosts", "mountPath": "/etc/hosts"}]
    own["spec"]["containers"] = [main, main | {"name": "mounted", "volumeMounts": mounts}]
    node.apply(own, pod("on-host", POLITE, hostNetwork=True))
    node.wait_running("own", "on-host")
    ours, real = "# Kubernetes-managed hosts file.", Path("/etc/hosts").read_text()
    assert ours in sh(node, "own", "cat /etc/hosts")
    assert sh(node, "own", "cat /etc/hosts", "mounted") == real
    on_host = sh(node, "on-host", "cat /etc/hosts")
    assert ours not in on_host and on_host.startswith("# Kubernetes-managed hosts file (host network).")
    assert real.strip() in on_host
    node.kubectl("delete", "pod", "own", "on-host")


CLUSTER = ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"]
CUSTOM = {
    "nameservers": ["1.1.1.1"],
    "searches": ["resolv.conf.local"],
    "options": [{"name": "ndots", "value": "2"}],
}


def resolver(text: str) -> tuple[list[str], list[str], list[str]]:
    """(name servers, search domains, options)."""
    words = [line.split() for line in text.splitlines()]
    return (
        [line[1] for line in words if line[0] == "nameserver"],
        [word for line in words if line[0] == "search" for word in line[1:]],
        [word for line in words if line[0] == "options" for word in line[1:]],
    )


@pytest.mark.conformance("[sig-network] DNS should support configurable pod DNS nameservers")
def test_dns_policies(node: Node) -> None:
    many = CUSTOM | {"nameservers": [f"192.0.2.{n}" for n in range(1, 5)]}
    node.apply(
        pod("cluster-first", POLITE),
        pod("on-host", POLITE, hostNetwork=True),
        pod("on-host-cluster", POLITE, hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet"),
        pod("default", POLITE, dnsPolicy="Default"),
        pod("none", POLITE, dnsPolicy="None", dnsConfig=CUSTOM),
        pod("more", POLITE, dnsConfig=CUSTOM),
        pod("many", POLITE, dnsPolicy="None", dnsConfig=many),
    )
    names = ("cluster-first", "on-host", "on-host-cluster", "default", "none", "more", "many")
    node.wait_running(*names)
    found = {name: resolver(sh(node, name, "cat /etc/resolv.conf")) for name in names}
    host = resolver(Path("/etc/resolv.conf").read_text())
    searches = list(dict.fromkeys([*CLUSTER, *host[1]]))
    assert found["cluster-first"] == found["on-host-cluster"] == ([DNS], searches, ["ndots:5"])
    assert found["default"] == found["on-host"] == (host[0][:3], host[1], host[2])
    assert found["none"] == (["1.1.1.1"], ["resolv.conf.local"], ["ndots:2"])
    assert found["more"] == ([DNS, "1.1.1.1"], [*searches, "resolv.conf.local"], ["ndots:2"])
    assert found["many"][0] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    told = wait_for_event(node, "many", "Warning DNSConfigForming")
    assert told.endswith("the applied nameserver line is: 192.0.2.1 192.0.2.2 192.0.2.3")
    node.kubectl("delete", "pod", *names)


@pytest.mark.conformance("[sig-node] Pods should contain environment variables for services")
def test_services_are_in_the_environment_unless_that_is_not_wanted(node: Node) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "fooservice", "namespace": "default"},
        "spec": {"ports": [{"port": 8765, "targetPort": 8080}], "selector": {"app": "nobody"}},
    }
    node.apply(service)
    address = node.get("service", "fooservice")["spec"]["clusterIP"]
    node.apply(pod("linked", POLITE), pod("unlinked", POLITE, enableServiceLinks=False))
    node.wait_running("linked", "unlinked")
    wanted = {
        f"FOOSERVICE_SERVICE_HOST={address}",
        "FOOSERVICE_SERVICE_PORT=8765",
        f"FOOSERVICE_PORT=tcp://{address}:8765",
        f"FOOSERVICE_PORT_8765_TCP=tcp://{address}:8765",
        "FOOSERVICE_PORT_8765_TCP_PROTO=tcp",
        "FOOSERVICE_PORT_8765_TCP_PORT=8765",
        f"FOOSERVICE_PORT_8765_TCP_ADDR={address}",
    }
    assert wanted <= set(sh(node, "linked", "env").splitlines())
    unlinked = sh(node, "unlinked", "env")
    assert "FOOSERVICE" not in unlinked and "KUBERNETES_SERVICE_HOST=" in unlinked
    node.kubectl("delete", "pod", "linked", "unlinked")
    node.kubectl("delete", "service", "fooservice")


def namespaces(node: Node, name: str, container: str = "main") -> dict[str, str]:
    line = "for n in net pid ipc uts mnt; do readlink /proc/self/ns/$n; done"
    return dict(each.split(":") for each in sh(node, name, line, container).split())


def two(name: str, **spec: Any) -> dict[str, Any]:
    """A pod of two containers."""
    body = pod(name, POLITE, **spec)
    [main] = body["spec"]["containers"]
    body["spec"]["containers"] = [main, main | {"name": "other"}]
    return body


def test_namespaces_that_a_pod_shares_with_the_host_and_its_containers_with_each_other(node: Node) -> None:
    node.apply(
        two("apart"),
        two("shared", shareProcessNamespace=True),
        pod("host-net", POLITE, hostNetwork=True),
        pod("host-pid", POLITE, hostPID=True),
        pod("host-ipc", POLITE, hostIPC=True),
    )
    node.wait_running("apart", "shared", "host-net", "host-pid", "host-ipc")
    host = dict(os.readlink(f"/proc/self/ns/{kind}").split(":") for kind in ("net", "pid", "ipc", "uts"))
    one, other = namespaces(node, "apart"), namespaces(node, "apart", "other")
    same = {kind for kind in one if one[kind] == other[kind]}
    assert same == {"net", "ipc", "uts"}
    assert not {kind for kind in host if one[kind] == host[kind]}
    assert namespaces(node, "shared")["pid"] == namespaces(node, "shared", "other")["pid"] != host["pid"]
    assert "pause" in sh(node, "shared", "cat /proc/1/comm"), "it reaps what is left"
    for name, kinds in {"host-net": {"net", "uts"}, "host-pid": {"pid"}, "host-ipc": {"ipc"}}.items():
        found = namespaces(node, name)
        assert {kind for kind in host if found[kind] == host[kind]} == kinds, name
    assert node.get("pod", "host-net")["status"]["podIP"] == NODE_IP
    assert sh(node, "host-pid", "ps").count("\n") > sh(node, "apart", "ps").count("\n")
    node.kubectl("delete", "pod", "apart", "shared", "host-net", "host-pid", "host-ipc")


@pytest.mark.conformance(f"{KUBELET} a busybox command in a pod should print the output to logs")
def test_output_is_the_log(node: Node) -> None:
    node.apply(pod("talks", "echo 'Hello World' ; sleep 3600"))
    node.wait_running("talks")
    node.until("its log", lambda: node.kubectl("logs", "talks").out == "Hello World\n")
    node.kubectl("delete", "pod", "talks", "--force", "--grace-period=0")


@pytest.mark.conformance(
    f"{KUBELET} a busybox command that always fails in a pod should have an terminated reason"
)
@pytest.mark.conformance(
    f"{KUBELET} a busybox command that always fails in a pod should be possible to delete"
)
def test_a_command_that_always_fails_has_a_reason_and_can_be_deleted(node: Node) -> None:
    node.apply(pod("fails", ["/bin/false"]))

    def ended() -> dict[str, Any]:
        entries = node.get("pod", "fails")["status"].get("containerStatuses") or [{}]
        return dict(
            (entries[0].get("state") or {}).get("terminated")
            or ((entries[0].get("lastState") or {}).get("terminated") or {})
        )

    node.until("ended", ended)
    assert (ended()["reason"], ended()["exitCode"]) == ("Error", 1)
    node.kubectl("delete", "pod", "fails")
    assert node.kubectl("get", "pod", "fails", check=False).code == 1
