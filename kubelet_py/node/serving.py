"""Which certificate port 10250 shows, and who made it.

In this order: the files of the configuration (tlsCertFile); one that the cluster's CA signs upon request and
that is exchanged before it ends (serverTLSBootstrap); the one that `kubelet-py up` made together with the
CA; a self-signed one, which is what upstream's kubelet does without any of them. With serverTLSBootstrap the
port opens when the certificate is there: who connected before could not know whom to. Files that somebody
exchanges on the disk are read again by the server itself (server/tls_settings.py).
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

from kubeclient.rest import RestClient
from kubelet_py.errors import CertificateError, ConfigError
from kubelet_py.instruments import Instrument
from kubelet_py.node import certificate_manager, key_maker, x509
from kubelet_py.node.bootstrap import write_private
from kubelet_py.node.certificate_manager import SERVING, CertificateManager
from kubelet_py.node.certificate_store import CertificateStore, read_pair
from kubelet_py.node.key_maker import Subject

log = logging.getLogger(__name__)

STORE_NAME = "kubelet-server"
Use = Callable[[Path, Path], None]
"""Called with the files of certificate and key, again for each new pair."""


class ServingCertificate:
    """`subject` is None while the node does not know its addresses or is not registered."""

    def __init__(
        self,
        *,
        given: tuple[Path, Path] | None,
        ours: tuple[Path, Path],
        cert_dir: Path,
        node_name: str,
        addresses: tuple[str, ...],
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`given`: tlsCertFile and tlsPrivateKeyFile; `ours`: those beside the cluster's CA, if there."""
        self._given, self._ours, self._cert_dir = given, ours, cert_dir
        self._node_name, self._addresses = node_name, addresses
        self._clock, self._chance = clock, chance
        self._manager: CertificateManager | None = None
        self._shown: Path | None = None

    def configured(self) -> bool:
        """Whether there is a certificate without making one."""
        return self._given is not None or all(file.exists() for file in self._ours)

    def expires(self) -> float:
        """The epoch second at which the one that is shown ends; infinite where there is none."""
        try:
            return x509.read(self._shown.read_bytes()).not_after if self._shown is not None else math.inf
        except (OSError, ValueError):
            return math.inf

    def renewal_errors(self) -> tuple[Instrument, ...]:
        return self._manager.instruments if self._manager is not None else ()

    def _remembering(self, use: Use) -> Use:
        def show(certificate: Path, key: Path) -> None:
            self._shown = certificate
            use(certificate, key)

        return show

    def start(self, use: Use) -> None:
        """Find or make the certificate. Raises ConfigError, CertificateError."""
        use = self._remembering(use)
        if self._given is not None:
            if not all(file.is_file() for file in self._given):
                raise ConfigError(f"Could not find tlsCertFile {self._given[0]} or its key {self._given[1]}")
            use(*self._given)
        elif self.configured():
            use(*self._ours)
        else:
            use(*self._self_signed())

    def start_by_request(self, use: Use, client: RestClient, registered: Callable[[], bool]) -> None:
        """serverTLSBootstrap: what there is already, and from then on what the cluster's CA signs."""
        use = self._remembering(use)
        store = CertificateStore(self._cert_dir, STORE_NAME)
        subject = certificate_manager.serving_subject(self._node_name, self._addresses)
        pair = store.load()
        if pair is not None:
            use(pair.file, pair.file)
        self._manager = CertificateManager(
            SERVING,
            store,
            present=pair.certificate if pair is not None else None,
            subject=lambda: subject if registered() else None,
            client=lambda _: client,
            rotate=True,
            changed=lambda pair: use(pair.file, pair.file),
            clock=self._clock,
            chance=self._chance,
        )
        self._manager.start()

    def look(self) -> None:
        """The node was registered: its addresses may be asked for now."""
        if self._manager is not None:
            self._manager.look()

    def stop(self) -> None:
        if self._manager is not None:
            self._manager.stop()

    def _self_signed(self) -> tuple[Path, Path]:
        """Made once, and again when it is over. Upstream's file names."""
        certificate, key = self._cert_dir / "kubelet.crt", self._cert_dir / "kubelet.key"
        pair = read_pair(certificate, key)
        if pair is None or self._clock() >= pair.certificate.not_after:
            subject = Subject(
                f"{self._node_name}-ca@{int(self._clock())}",
                names=(self._node_name, "localhost"),
                addresses=("127.0.0.1", *self._addresses),
            )
            made = key_maker.make(subject, self_signed=True)
            write_private(key, made.key)
            write_private(certificate, made.document)
            if read_pair(certificate, key) is None:
                raise CertificateError(f"Could not use the self-signed certificate {certificate}")
            log.info("Made a self-signed serving certificate file=%s", certificate)
        return certificate, key
