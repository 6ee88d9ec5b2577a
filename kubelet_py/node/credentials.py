"""The node's two certificates, as one part of the agent: how it logs in, and what port 10250 shows."""

from __future__ import annotations

import logging
import math
import threading
from pathlib import Path
from urllib.parse import urlsplit

from kubeclient.rest import RestClient
from kubelet_py.config import Options
from kubelet_py.instruments import Instrument
from kubelet_py.node.api_counts import ApiCounts
from kubelet_py.node.bootstrap import Bootstrap, Login, client_renewal
from kubelet_py.node.certificate_manager import CertificateManager
from kubelet_py.node.serving import ServingCertificate
from kubelet_py.paths import NodePaths

log = logging.getLogger(__name__)


class Credentials:
    """`connect` first; `start` when the node is up. `serving` is for whoever opens the port."""

    def __init__(self, options: Options, paths: NodePaths, addresses: tuple[str, ...]) -> None:
        config = options.config
        self._node_name, self._rotate = options.node_name, config.rotate_certificates
        self._kubeconfig = options.kubeconfig or paths.kubeconfig("kubelet")
        cert_dir = options.cert_dir or paths.certificates
        self._bootstrap = Bootstrap(
            self._kubeconfig, options.bootstrap_kubeconfig, cert_dir, options.node_name, rotate=self._rotate
        )
        given = (Path(config.tls_cert_file), Path(config.tls_private_key_file))
        self.serving = ServingCertificate(
            given=given if config.tls_cert_file else None,
            ours=(paths.pki / "kubelet.crt", paths.pki / "kubelet.key"),
            cert_dir=cert_dir,
            node_name=options.node_name,
            addresses=addresses,
        )
        self._login: Login | None = None
        self._renewal: CertificateManager | None = None
        self._requests: tuple[Instrument, ...] = ()

    def connect(self, stopping: threading.Event) -> RestClient | None:
        """The agent's client of the API server; None without one. Raises ConfigError, CertificateError."""
        login = self._login = self._bootstrap.login(stopping)
        if login is None:
            log.info("Started without an API server: only static pods run (no %s)", self._kubeconfig)
            return None
        counts = ApiCounts(urlsplit(login.config.server).netloc)
        self._requests = counts.instruments
        client = RestClient(login.config, user_agent="kubelet-py", observe=counts.observe)
        if self._rotate and login.certificate is not None:
            self._renewal = client_renewal(self._bootstrap, login, client, self._node_name)
        return client

    def start(self) -> None:
        """Keep the client's certificate good, where that is wanted (rotateCertificates)."""
        if self._renewal is not None:
            self._renewal.start()

    def stop(self) -> None:
        if self._renewal is not None:
            self._renewal.stop()

    def expiries(self) -> dict[str, float]:
        """When the certificates in use end."""
        certificate = self._login.certificate if self._login is not None else None
        client = certificate.not_after if certificate is not None else math.inf
        if self._renewal is not None:
            client = self._renewal.expires()
        return {"client": client, "server": self.serving.expires()}

    def instruments(self) -> tuple[Instrument, ...]:
        """What is counted of requests to the API server and of renewals."""
        renewal = self._renewal.instruments if self._renewal is not None else ()
        return (*self._requests, *renewal, *self.serving.renewal_errors())
