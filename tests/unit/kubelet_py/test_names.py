"""A pod's names: its host name, /etc/hosts and /etc/resolv.conf, from its spec alone."""

from __future__ import annotations

from typing import Any

import pytest
from pods_in_words import IP, pod

from kubelet_py.errors import SandboxError
from kubelet_py.pods import files

DOMAIN = "cluster.local"
LONG = "n" * 63
WHOLE = {"setHostnameAsFQDN": True}
DEFAULTS = files.DnsDefaults(
    "nameserver 192.0.2.53\nsearch lab.example\noptions rotate\n", ("10.96.0.10",), DOMAIN
)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({}, "p"),
        ({"hostname": "h"}, "h"),
        ({"hostname": LONG[:62] + "-x"}, LONG[:62]),
        (WHOLE, "p"),  # without a subdomain the pod has no such name
        ({"hostname": "h", "subdomain": "s"}, "h"),
        ({"hostname": "h", "subdomain": "s", **WHOLE}, "h.s.default.svc.cluster.local"),
        ({"hostname": "h", "subdomain": "s", "hostNetwork": True, **WHOLE}, "node"),
    ],
)
def test_nodename(spec: dict[str, Any], name: str) -> None:
    assert files.nodename_of(pod(**spec), "node", DOMAIN) == name


def test_a_name_that_the_kernel_has_no_room_for_is_refused() -> None:
    room = 64 - len(".s.default.svc.cluster.local")
    fits = pod(hostname="h" * room, subdomain="s", **WHOLE)
    assert len(files.nodename_of(fits, "node", DOMAIN)) == 64
    with pytest.raises(SandboxError, match=r"too long \(64 characters is the max, 65 characters requested\)"):
        files.nodename_of(pod(hostname="h" * (room + 1), subdomain="s", **WHOLE), "node", DOMAIN)


def test_hosts_file_names_the_pod_by_its_domain_first() -> None:
    body = pod(hostname="h", subdomain="s", hostAliases=[{"ip": "192.0.2.1", "hostnames": ["one", "two"]}])
    text = files.hosts_text(body, [IP], "h", None, DOMAIN)
    assert text.startswith("# Kubernetes-managed hosts file.\n")
    assert f"{IP}\th.s.default.svc.cluster.local\th\n" in text
    assert text.endswith("\n# Entries added by HostAliases.\n192.0.2.1\tone\ttwo\n")


CONFIG = {
    "nameservers": ["192.0.2.1"],
    "searches": ["my.example", "lab.example"],
    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
}
CLUSTER = "default.svc.cluster.local svc.cluster.local cluster.local lab.example"


@pytest.mark.parametrize(
    ("spec", "servers", "searches", "options"),
    [
        ({}, "10.96.0.10", CLUSTER, "ndots:5"),
        ({"hostNetwork": True}, "192.0.2.53", "lab.example", "rotate"),
        (
            {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"},
            "10.96.0.10", CLUSTER, "ndots:5",
        ),
        ({"dnsPolicy": "Default"}, "192.0.2.53", "lab.example", "rotate"),
        ({"dnsConfig": CONFIG}, "10.96.0.10 192.0.2.1", f"{CLUSTER} my.example", "ndots:2 edns0"),
        (
            {"dnsPolicy": "Default", "dnsConfig": CONFIG},
            "192.0.2.53 192.0.2.1", "lab.example my.example", "rotate ndots:2 edns0",
        ),
        (
            {"dnsPolicy": "None", "dnsConfig": CONFIG},
            "192.0.2.1", "my.example lab.example", "ndots:2 edns0",
        ),
    ],
)  # fmt: skip
def test_resolv_conf(spec: dict[str, Any], servers: str, searches: str, options: str) -> None:
    assert files.resolv_text(pod(**spec), DEFAULTS) == "".join(
        [
            f"search {searches}\n",
            *(f"nameserver {server}\n" for server in servers.split()),
            f"options {options}\n",
        ]
    )
    assert files.omitted_dns(pod(**spec), DEFAULTS) == []


def test_what_resolv_conf_has_no_room_for_is_left_out_and_told() -> None:
    servers = [f"192.0.2.{n}" for n in range(1, 5)]
    many = pod(dnsPolicy="None", dnsConfig={"nameservers": servers, "searches": ["a"]})
    assert files.resolv_text(many, DEFAULTS).count("nameserver") == 3
    [told] = files.omitted_dns(many, DEFAULTS)
    assert told.startswith("Nameserver limits were exceeded")
    assert told.endswith("the applied nameserver line is: 192.0.2.1 192.0.2.2 192.0.2.3")
    names = [f"{'x' * 200}{n:02}" for n in range(12)]  # 2048 bytes have room for ten of them
    long = pod(dnsPolicy="None", dnsConfig={"nameservers": servers[:1], "searches": names})
    assert files.resolv_text(long, DEFAULTS).splitlines()[0] == "search " + " ".join(names[:10])
    [told] = files.omitted_dns(long, DEFAULTS)
    assert told.startswith("Search Line limits were exceeded")
    short = pod(dnsPolicy="None", dnsConfig={"searches": [f"s{n}" for n in range(33)]})
    assert files.resolv_text(short, DEFAULTS).split()[-1] == "s31"
