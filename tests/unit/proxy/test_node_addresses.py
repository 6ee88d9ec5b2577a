from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from kubeclient.errors import ApiError
from proxy.__main__ import _configuration, _parser
from proxy.config import ProxyConfig, overlay
from proxy.errors import ConfigError
from proxy.node_addresses import NOWHERE, Moving, defaulted, primary, settled

HEAD = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}


def node(*addresses: tuple[str, str]) -> dict[str, Any]:
    return {"status": {"addresses": [{"type": kind, "address": address} for kind, address in addresses]}}


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ((), ()),
        ((("Hostname", "node-a"),), ()),
        ((("InternalIP", "192.0.2.1"), ("InternalIP", "192.0.2.2")), ("192.0.2.1/32",)),
        ((("ExternalIP", "203.0.113.1"), ("InternalIP", "192.0.2.1")), ("192.0.2.1/32",)),
        ((("ExternalIP", "203.0.113.1"), ("Hostname", "a")), ("203.0.113.1/32",)),
        ((("InternalIP", "2001:db8::1"), ("InternalIP", "192.0.2.1")), ("2001:db8::1/128", "192.0.2.1/32")),
        ((("InternalIP", "192.0.2.1"), ("ExternalIP", "2001:db8::1")), ("192.0.2.1/32", "2001:db8::1/128")),
    ],
)
def test_primary_is_one_address_of_each_family(
    addresses: tuple[tuple[str, str], ...], expected: tuple[str, ...]
) -> None:
    assert primary(node(*addresses)) == expected


def test_primary_comes_by_file_or_flag_and_stands_alone() -> None:
    assert overlay({**HEAD, "nodePortAddresses": ["primary"]}, ProxyConfig()).check().primary_only
    flags = ["--kubeconfig", "k", "--nodeport-addresses", "primary"]
    assert _configuration(_parser().parse_args(flags)).primary_only
    assert not ProxyConfig().primary_only
    for wrong in (["primary", "192.0.2.0/24"], ["primary", "primary"], ["secondary"]):
        with pytest.raises(ConfigError, match="nodePortAddresses"):
            overlay({**HEAD, "nodePortAddresses": wrong}, ProxyConfig()).check()


def test_the_nftables_mode_takes_primary_by_itself() -> None:
    plain, chosen = ProxyConfig(), ProxyConfig(node_port_addresses=("0.0.0.0/0",))
    assert defaulted(plain, "nftables").primary_only
    assert defaulted(plain, "iptables") == plain
    assert defaulted(chosen, "nftables") == chosen


def test_a_family_the_node_has_no_address_of_has_no_node_ports() -> None:
    config = replace(ProxyConfig(), node_port_addresses=primary(node(("InternalIP", "192.0.2.1"))))
    assert config.node_port_ranges(4) == ("192.0.2.1/32",)
    assert config.node_port_ranges(6) == ()


def test_other_addresses_of_the_node_end_the_process_and_nothing_else_does() -> None:
    stop = threading.Event()
    moving = Moving(("192.0.2.1/32",), stop)
    same = node(("InternalIP", "192.0.2.1"), ("InternalIP", "192.0.2.9"))
    for kind, body in (("ADDED", same), ("MODIFIED", node()), ("DELETED", node(("InternalIP", "192.0.2.7")))):
        moving.node_event(kind, body)
        assert not stop.is_set()
    moving.node_event("MODIFIED", node(("InternalIP", "192.0.2.7")))
    assert stop.is_set()
    assert moving.moved


class Nodeless:
    """An API server that shows us no Node."""

    def get(self, *_: object) -> dict[str, Any]:
        raise ApiError({"code": 403, "reason": "Forbidden", "message": "nodes is forbidden"})


def test_nobody_waits_without_end_for_what_was_only_a_default(caplog: pytest.LogCaptureFixture) -> None:
    times = iter((0.0, 10.0, 20.0, 30.0))
    config, stop = ProxyConfig(node_port_addresses=("primary",), hostname="n"), threading.Event()
    stop.wait = lambda _=None: False  # type: ignore[method-assign,assignment]
    found = settled(config, Nodeless(), stop, 30.0, clock=lambda: next(times))  # type: ignore[arg-type]
    assert found is not None and found.node_port_addresses == NOWHERE
    assert "Opened no node ports" in caplog.text
    moving = Moving(NOWHERE, stop)
    moving.node_event("ADDED", node(("InternalIP", "192.0.2.1")))
    assert moving.moved and stop.is_set()
