"""How the agent comes to its kubeconfig: the one that is there, or a bootstrap token turned into one.

A machine that joins has a kubeconfig with a bootstrap token, good for one thing: asking for the kubelet's
certificate. With that the real kubeconfig is written, last of all, so that a start that was cut off begins
again where it was. The certificate stays outside of the kubeconfig, in the file that rotation exchanges.
Source: upstream's pkg/kubelet/certificate/bootstrap.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import kubeclient.errors
from kubeclient import kubeconfig
from kubeclient.errors import ApiError, ServerUnavailable
from kubeclient.kubeconfig import ClientConfig
from kubeclient.rest import RestClient
from kubelet_py.errors import CertificateError, ConfigError
from kubelet_py.node import certificate_manager, certificate_requests, x509
from kubelet_py.node.certificate_manager import CertificateManager
from kubelet_py.node.certificate_store import CertificateStore, Pair
from kubelet_py.node.x509 import Certificate

log = logging.getLogger(__name__)

STORE_NAME = "kubelet-client"
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Login:
    """How to reach the API server, and the certificate that is used for it (None: another way to log in)."""

    config: ClientConfig
    certificate: Certificate | None


class Bootstrap:
    """`kubeconfig` is where the agent's own one is or will be; `bootstrap` may be None."""

    def __init__(
        self,
        kubeconfig: Path,
        bootstrap: Path | None,
        cert_dir: Path,
        node_name: str,
        *,
        rotate: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kubeconfig, self._bootstrap = kubeconfig, bootstrap
        self.store = CertificateStore(cert_dir, STORE_NAME)
        self._node_name = node_name
        self._rotate = rotate
        self._clock = clock

    def login(self, stopping: threading.Event) -> Login | None:
        """None without a kubeconfig of either kind. Waits until a bootstrap token was exchanged for a
        certificate. Raises ConfigError, CertificateError.
        """
        pair = self.store.load()
        if self._kubeconfig.exists():
            try:
                found = self._existing(pair)
            except kubeclient.errors.ConfigError as error:
                if self._bootstrap is None or not self._bootstrap.exists():
                    raise ConfigError(str(error)) from error
                log.warning("Used the bootstrap token again reason=%s", error)
            else:
                if found.certificate is None or not self._over(found.certificate):
                    return found
                if self._bootstrap is None or not self._bootstrap.exists():
                    log.error("Found the client certificate expired (make the node join again)")
                    return found
                log.warning("Found the client certificate expired, used the bootstrap token again")
        if self._bootstrap is None:
            return None
        if not self._bootstrap.exists():
            raise ConfigError(
                f"Could not start: neither {self._kubeconfig} nor {self._bootstrap} is there "
                "(make the node join again: kubelet-py join)"
            )
        return self._join(pair, stopping)

    def bootstrap_client(self) -> RestClient | None:
        """Logs in with the bootstrap token, where there is one."""
        if self._bootstrap is None or not self._bootstrap.exists():
            return None
        return RestClient(kubeconfig.load(self._bootstrap), user_agent="kubelet-py", timeout=10.0)

    def _existing(self, pair: Pair | None) -> Login:
        config = kubeconfig.load(self._kubeconfig)
        if self._rotate and config.cert is not None:
            # An embedded certificate is what the first rotation starts from; afterwards the store's counts.
            current = str(self.store.current)
            config = replace(config, cert_file=current, key_file=current)
            if pair is not None:
                config = replace(config, cert=(data := pair.file.read_bytes()), key=data)
        return Login(config, x509.read(config.cert) if config.cert is not None else None)

    def _over(self, certificate: Certificate) -> bool:
        return self._clock() >= certificate.not_after

    def _join(self, pair: Pair | None, stopping: threading.Event) -> Login:
        subject = certificate_manager.client_subject(self._node_name)
        usable = pair is not None and not self._over(pair.certificate)
        if pair is None or not usable or pair.certificate.common_name != subject.common_name:
            client = self.bootstrap_client()
            assert client is not None
            try:
                pair = self._exchange(client, stopping)
            finally:
                client.close()
        assert self._bootstrap is not None
        write_kubeconfig(
            self._kubeconfig,
            kubeconfig.load(self._bootstrap),
            self.store.current,
            f"system:node:{self._node_name}",
        )
        log.info("Joined node=%s kubeconfig=%s", self._node_name, self._kubeconfig)
        return self._existing(pair) if self._rotate else self._plain()

    def _plain(self) -> Login:
        config = kubeconfig.load(self._kubeconfig)
        assert config.cert is not None
        return Login(config, x509.read(config.cert))

    def _exchange(self, client: RestClient, stopping: threading.Event) -> Pair:
        subject = certificate_manager.client_subject(self._node_name)
        while True:
            try:
                return certificate_manager.obtain(
                    certificate_manager.CLIENT,
                    self.store,
                    client,
                    subject,
                    stopping=stopping,
                    clock=self._clock,
                )
            except ServerUnavailable as error:
                log.info("Waiting for the API server error=%s", error)
                if stopping.wait(RETRY_SECONDS):
                    raise CertificateError("Could not join: the agent is ending") from error
            except ApiError as error:
                text = f"Could not ask for the node's certificate: {certificate_requests.explain(error)}"
                raise CertificateError(text) from error


def client_renewal(
    bootstrap: Bootstrap,
    login: Login,
    client: RestClient,
    node_name: str,
    *,
    chance: Callable[[], float] = random.random,
) -> CertificateManager:
    """Keeps the certificate of `login` good. One that is over cannot ask for its successor any more: then the
    bootstrap token does, where there still is one.
    """

    def asking(present: Certificate | None) -> RestClient:
        if present is None or time.time() >= present.not_after:
            return bootstrap.bootstrap_client() or client
        return client

    return CertificateManager(
        certificate_manager.CLIENT,
        bootstrap.store,
        present=login.certificate,
        subject=lambda: certificate_manager.client_subject(node_name),
        client=asking,
        rotate=True,
        chance=chance,
        changed=lambda _: None,  # the client sees that the file has changed
    )


def write_kubeconfig(path: Path, cluster: ClientConfig, credentials: Path, user: str) -> None:
    """A kubeconfig whose user logs in with the certificate and key in the file `credentials`."""
    entry: dict[str, object] = {"server": cluster.server}
    if cluster.ca_data:
        entry["certificate-authority-data"] = base64.b64encode(cluster.ca_data).decode()
    login = {"client-certificate": str(credentials), "client-key": str(credentials)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kubernetes", "cluster": entry}],
        "contexts": [{"name": "default", "context": {"cluster": "kubernetes", "user": user}}],
        "current-context": "default",
        "users": [{"name": user, "user": login}],
    }
    write_private(path, json.dumps(document, indent=1).encode() + b"\n")


def write_private(path: Path, data: bytes) -> None:
    """A file that only its owner reads, whole or not at all. Raises CertificateError."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CertificateError(f"Could not write {path}: {error.strerror}") from error
