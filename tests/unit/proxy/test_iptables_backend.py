"""More Services than the nft variant of iptables carries are told of, once."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest

from proxy.changes import Endpoint, ServicePort
from proxy.config import ProxyConfig
from proxy.iptables import Iptables, Saved, parse_save
from proxy.iptables_backend import COMFORTABLE, IptablesBackend


class Tool:
    """Has nothing, and takes every script."""

    version = 4

    def __init__(self, variant: str) -> None:
        self.variant = variant

    def save(self) -> Saved:
        return parse_save("")

    def restore(self, script: str) -> None:
        pass


def served(number: int) -> Any:
    address = f"10.96.{number // 250}.{number % 250 + 1}"
    port = ServicePort("default", f"s{number}", "", "tcp", address, 80)
    return ("default", f"s{number}"), ((port, (Endpoint("10.244.0.2", 80, local=True),)),)


@pytest.mark.parametrize(("variant", "told"), [("nft", 1), ("legacy", 0)])
def test_more_services_than_the_variant_carries(
    caplog: pytest.LogCaptureFixture, variant: str, told: int
) -> None:
    backend = IptablesBackend(ProxyConfig(cluster_cidr="10.244.0.0/16"), cast(Iptables, Tool(variant)))
    with caplog.at_level(logging.WARNING):
        backend.apply(dict(map(served, range(COMFORTABLE))))
        assert not caplog.records, "as many as it carries"
        for number in (COMFORTABLE, COMFORTABLE + 1):
            backend.apply(dict([served(number)]))
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == told
    assert all("Found more Services than the nft variant" in text for text in found)
    assert all(f"ports={COMFORTABLE + 1} " in text and "--proxy-mode nftables" in text for text in found)
