"""`nodePortAddresses: [primary]`: node ports answer on those addresses only that the Node object has.

The nftables mode does so by itself, as upstream's; all addresses are `0.0.0.0/0,::/0` there.
They are read once, before the first rule, and stay for the life of the process. When the Node comes to have
others the process ends, to be started afresh: as upstream's does.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from proxy.config import PRIMARY, ProxyConfig

if TYPE_CHECKING:
    from kubeclient.rest import RestClient

log = logging.getLogger(__name__)

NOWHERE = ("127.0.0.0/8", "::1/128")  # node ports answer on the machine's own addresses, without these
BY_DEFAULT_SECONDS = 30.0  # nobody asked for `primary`, and all the rest needs no Node
RETRY_SECONDS = 0.2  # the agent that makes the Node may be starting at the same moment


def defaulted(config: ProxyConfig, mode: str) -> ProxyConfig:
    """PURE: the configuration with upstream's default of the chosen mode."""
    if config.node_port_addresses or mode != "nftables":
        return config
    return replace(config, node_port_addresses=(PRIMARY,))


def primary(node: Mapping[str, Any]) -> tuple[str, ...]:
    """PURE: the first InternalIP (or else ExternalIP) and the first one of the other family, as ranges."""
    listed = (node.get("status") or {}).get("addresses") or ()
    ordered = [a for kind in ("InternalIP", "ExternalIP") for a in listed if a.get("type") == kind]
    first: dict[int, str] = {}
    for entry in ordered:
        address = ipaddress.ip_address(entry["address"])
        first.setdefault(address.version, str(ipaddress.ip_network(address)))
    return tuple(first.values())


def settled(
    config: ProxyConfig,
    client: RestClient,
    stop: threading.Event,
    patience: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ProxyConfig | None:
    """The configuration with addresses for `primary`; waits for the Node to have some. None: told to stop.

    After `patience` seconds node ports answer nowhere, until `Moving` sees the Node.
    """
    from kubeclient.errors import ApiError
    from kubeclient.resources import NODES

    waited, began = False, clock()
    while not stop.is_set():
        try:
            found = primary(client.get(NODES, config.hostname))
            reason = "it has no address yet"
        except ApiError as error:
            found, reason = (), str(error)
        if found:
            log.info("Chose addresses for node ports addresses=%s reason=primary", ",".join(found))
            return replace(config, node_port_addresses=found)
        if not waited:
            log.info("Waiting for the addresses of this node node=%s reason=%s", config.hostname, reason)
            waited = True
        if patience is not None and clock() - began >= patience:
            log.warning(
                "Opened no node ports: no addresses of this node are known node=%s reason=%s (name it by "
                "--hostname-override, or say --nodeport-addresses)",
                config.hostname,
                reason,
            )
            return replace(config, node_port_addresses=NOWHERE)
        stop.wait(RETRY_SECONDS)
    return None


class Moving:
    """Ends the process when the Node's addresses are others than those the rules were made for."""

    def __init__(self, used: tuple[str, ...], stop: threading.Event) -> None:
        self._used = used
        self._stop = stop
        self.moved = False

    def node_event(self, kind: str, new: dict[str, Any], old: dict[str, Any] | None = None) -> None:
        now = primary(new)
        if kind == "DELETED" or not now or now == self._used or self.moved:
            return
        self.moved = True
        log.warning(
            "Stopped for new addresses of this node old=%s new=%s", ",".join(self._used), ",".join(now)
        )
        self._stop.set()
