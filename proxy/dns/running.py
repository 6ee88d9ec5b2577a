"""Runs the name server beside the proxy's loop, whatever becomes of it.

A port that is taken must not keep Services from working, so it is said in the log and tried again. dnspython
is imported here, on this thread, after the first sync: Services do not wait for it.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
from typing import TYPE_CHECKING

from proxy.dns.records import Names
from proxy.errors import ProxyError

if TYPE_CHECKING:
    from proxy.config import ProxyConfig

log = logging.getLogger(__name__)

RETRY = 5.0  # seconds


class DnsThread(threading.Thread):
    """Serves DNS from `names` until `stop` is set."""

    def __init__(self, config: ProxyConfig, names: Names, stop: threading.Event) -> None:
        super().__init__(name="dns-keeper", daemon=True)
        self._config = config
        self._names = names
        self._stopping = stop

    def run(self) -> None:
        from proxy.dns.server import DnsConfig, DnsServer

        config = self._config
        both = f"{config.cluster_cidr},{config.service_cidr}"
        ranges = [text.strip() for text in both.split(",") if text.strip()]
        settings = DnsConfig(
            addresses=config.dns_addresses,
            port=config.dns_port,
            domain=config.cluster_domain,
            service_addresses=config.dns_service_addresses,
            networks=tuple(ipaddress.ip_network(text) for text in ranges),
        )
        said = ""
        while not self._stopping.is_set():
            server = DnsServer(settings, self._names)
            try:
                server.start()
            except ProxyError as error:
                if str(error) != said:
                    log.error("Failed to serve DNS err=%s retry_s=%.0f", error, RETRY)
                    said = str(error)
                self._stopping.wait(RETRY)
                continue
            self._stopping.wait()
            server.stop()
