"""Keeps one certificate of the node good: asks when it is time, waits, exchanges it, never stops the node.

One thread per certificate: the client's (how the kubelet logs in) and the server's (port 10250). When to ask
is decided in rotation.py; what goes wrong is logged and tried again, while the old certificate is in use.
Everything that a restart has to know lies in the store.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kubeclient.errors import KubeClientError
from kubeclient.rest import RestClient
from kubelet_py.errors import CertificateError
from kubelet_py.instruments import Instrument, Number
from kubelet_py.node import certificate_requests, key_maker, rotation
from kubelet_py.node.certificate_requests import Refused
from kubelet_py.node.certificate_store import CertificateStore, Pair
from kubelet_py.node.key_maker import Made, Subject
from kubelet_py.node.x509 import Certificate

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a certificate is for, in the words of logs and of requests."""

    name: str
    signer: str
    usages: tuple[str, ...]
    errors: str  # upstream's metric of failed renewals


CLIENT = Purpose(
    "client",
    certificate_requests.CLIENT_SIGNER,
    certificate_requests.CLIENT_USAGES,
    "kubelet_certificate_manager_client_expiration_renew_errors",
)
SERVING = Purpose(
    "serving",
    certificate_requests.SERVING_SIGNER,
    certificate_requests.SERVING_USAGES,
    "kubelet_server_expiration_renew_errors",
)


def obtain(
    purpose: Purpose,
    store: CertificateStore,
    client: RestClient,
    subject: Subject,
    *,
    stopping: threading.Event,
    clock: Callable[[], float] = time.time,
    make: Callable[..., Made] = key_maker.make,
) -> Pair:
    """Ask for a certificate and store it. Raises CertificateError, ApiError."""
    made = make(subject, key=store.pending_key())
    store.keep_key(made.key)
    words = f"{subject.common_name} {','.join((*subject.names, *subject.addresses))}"
    name = certificate_requests.request_name(made.key, words, purpose.signer)
    try:
        answered = certificate_requests.ask(
            client, name, made.document, signer=purpose.signer, usages=purpose.usages, stopping=stopping
        )
    except Refused:
        store.forget_key()  # another key makes another request
        raise
    return store.save(answered, made.key, clock())


class CertificateManager:
    """`subject` says who the certificate is for (None: not known yet), `changed` gets new pairs."""

    def __init__(
        self,
        purpose: Purpose,
        store: CertificateStore,
        *,
        present: Certificate | None,
        subject: Callable[[], Subject | None],
        client: Callable[[Certificate | None], RestClient],
        rotate: bool,
        changed: Callable[[Pair], None],
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        make: Callable[..., Made] = key_maker.make,
    ) -> None:
        self._purpose, self._store = purpose, store
        self._present = present
        self._subject, self._client = subject, client
        self._rotate, self._changed = rotate, changed
        self._clock, self._chance, self._make = clock, chance, make
        self._share = chance()
        self._failures = 0
        self._errors = Number(purpose.errors, "Counter of certificate renewal errors.")
        self.instruments: tuple[Instrument, ...] = (self._errors,)
        self._errors.add(by=0)  # alerts ask for its growth from the first scrape on
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{purpose.name}-certificate", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def expires(self) -> float:
        """The epoch second at which the certificate in use ends; infinite where there is none."""
        return self._present.not_after if self._present is not None else math.inf

    def look(self) -> None:
        """Something that the subject is made of has changed: decide anew."""
        self._wake.set()

    def step(self) -> float:
        """Do what is to be done now; seconds until the next look."""
        subject = self._subject()
        if subject is None:
            return 1.0
        decision = rotation.decide(
            self._present, subject, share=self._share, now=self._clock(), rotate=self._rotate
        )
        if not decision.ask:
            return decision.seconds
        log.info("Asked for a new %s certificate reason=%s", self._purpose.name, decision.reason)
        try:
            pair = obtain(
                self._purpose,
                self._store,
                self._client(self._present),
                subject,
                stopping=self._stopping,
                clock=self._clock,
                make=self._make,
            )
        except (CertificateError, KubeClientError) as error:
            if self._stopping.is_set():
                return 0.0
            self._failures += 1
            self._errors.add()
            wait = rotation.retry_delay(self._failures, self._chance())
            log.warning(
                "Failed to get a %s certificate error=%s retry=%.0fs", self._purpose.name, error, wait
            )
            return wait
        self._failures, self._present, self._share = 0, pair.certificate, self._chance()
        log.info("Got a new %s certificate file=%s", self._purpose.name, pair.file)
        self._changed(pair)
        return 0.0

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            self._wake.wait(self.step())


def serving_subject(node_name: str, addresses: Sequence[str]) -> Subject:
    """The subject of a node's serving certificate."""
    return Subject(f"system:node:{node_name}", ("system:nodes",), (node_name,), tuple(sorted(addresses)))


def client_subject(node_name: str) -> Subject:
    """The subject by which a kubelet logs in."""
    return Subject(f"system:node:{node_name}", ("system:nodes",))
