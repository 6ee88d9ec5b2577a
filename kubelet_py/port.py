"""Port 10250: opened when there is a certificate to show, which may be exchanged while it is open."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kubeclient.ranges import everywhere
from kubeclient.rest import RestClient
from kubelet_py.config import Config
from kubelet_py.node.reviews import NodeReviews
from kubelet_py.node.serving import ServingCertificate
from kubelet_py.paths import NodePaths
from kubelet_py.server import access_settings, tls_settings
from kubelet_py.server.access import Access
from kubelet_py.server.handlers import Handlers
from kubelet_py.server.healthz import HealthChecks
from kubelet_py.server.http_counts import HttpCounts

if TYPE_CHECKING:
    from kubelet_py.backend import AgentBackend
    from kubelet_py.instruments import Instrument
    from kubelet_py.server.app import KubeletServer

log = logging.getLogger(__name__)


class Port:
    """`backend(instruments)` is made when the port opens; it shows the port's own instruments as well."""

    def __init__(
        self,
        *,
        config: Config,
        paths: NodePaths,
        node_name: str,
        node_ip: str,
        client: RestClient | None,
        serving: ServingCertificate,
        backend: Callable[[Sequence[Instrument]], AgentBackend],
        checks: HealthChecks,
    ) -> None:
        self._config, self._paths, self._node_ip = config, paths, node_ip
        self._client, self._serving = client, serving
        self._backend, self._checks = backend, checks
        self._settings = access_settings.read(config.authentication, config.authorization)
        self._access = Access(self._settings, NodeReviews(client, node_name))
        self._server: KubeletServer | None = None

    def start(self, registered: Callable[[], bool]) -> None:
        """Open it with the certificate that there is, or as soon as the cluster's CA has signed one."""
        if not self._config.enable_server:
            log.info("Started without a server on port %d (enableServer is false)", self._config.port)
        elif self._client is None and not self._serving.configured():
            log.info("Started without a server on port %d (nobody could log in)", self._config.port)
        elif self._config.server_tls_bootstrap and self._client is not None:
            self._serving.start_by_request(self._serve, self._client, registered)
        else:
            self._serving.start(self._serve)

    def stop(self) -> None:
        self._serving.stop()
        if self._server is not None:
            self._server.stop()

    def _serve(self, certificate: Path, key: Path) -> None:
        from kubelet_py.server.app import KubeletServer

        if self._server is not None:
            self._server.use_certificate(str(certificate), str(key))
            return
        config, counts, authority = self._config, HttpCounts(), self._paths.pki / "ca.crt"
        self._server = KubeletServer(
            self._backend(counts.instruments),
            counts=counts,
            address=everywhere(self._config.address, self._node_ip),
            port=self._config.port,
            cert_file=str(certificate),
            key_file=str(key),
            client_ca_file=self._settings.client_ca_file or (str(authority) if authority.exists() else ""),
            access=self._access,
            log_folder=self._paths.pod_logs.parent,
            checks=self._checks,
            handlers=Handlers(
                config.enable_debugging_handlers,
                config.enable_system_log_handler,
                config.enable_debug_flags_handler,
                config.enable_system_log_query,
            ),
            limit_tls=partial(
                tls_settings.limit, version=config.tls_min_version, suites=config.tls_cipher_suites
            ),
        )
        self._server.start()
