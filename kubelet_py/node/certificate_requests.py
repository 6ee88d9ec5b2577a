"""Asks the API server for a certificate: posts a CertificateSigningRequest and waits for what becomes of it.

The request's name follows from the key, so asking again after a restart finds the same request instead of
leaving a pile of them to whoever approves by hand. Source: upstream's client-go/util/certificate/csr.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from kubeclient.errors import AlreadyExists, ApiError, NotFound, ServerUnavailable
from kubeclient.resources import CERTIFICATE_SIGNING_REQUESTS
from kubeclient.rest import RestClient
from kubelet_py.errors import CertificateError

log = logging.getLogger(__name__)

Object = dict[str, Any]

CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client-kubelet"
SERVING_SIGNER = "kubernetes.io/kubelet-serving"
CLIENT_USAGES = ("digital signature", "client auth")
SERVING_USAGES = ("digital signature", "server auth")
ANSWER_SECONDS = 900.0
FIRST_LOOK, LONGEST_LOOK = 0.05, 2.0


class Refused(CertificateError):
    """The request was denied, or its signer could not sign it: asking again with this key is of no use."""


def request_name(key: bytes, subject: str, signer: str) -> str:
    """Always the same for one key, subject and signer; tells nothing about the key."""
    digest = hashlib.sha256(b"\0".join((hashlib.sha256(key).digest(), subject.encode(), signer.encode())))
    return f"node-csr-{digest.hexdigest()[:40]}"


def answer_of(request: Object) -> bytes | None:
    """PURE. The certificate once it is there, None while there is no answer. Raises Refused."""
    status, name = request.get("status") or {}, request["metadata"]["name"]
    for condition in status.get("conditions") or ():
        if condition.get("type") in ("Denied", "Failed"):
            said = ": ".join(part for part in (condition.get("reason"), condition.get("message")) if part)
            word = "denied" if condition["type"] == "Denied" else "not signed"
            raise Refused(f"Certificate request {name} was {word}: {said or 'no reason was given'}")
    encoded = status.get("certificate")
    return base64.b64decode(encoded) if encoded else None


def ask(
    client: RestClient,
    name: str,
    pem: bytes,
    *,
    signer: str,
    usages: Sequence[str],
    stopping: threading.Event,
    clock: Callable[[], float] = time.monotonic,
) -> bytes:
    """The signed certificate as PEM. Raises CertificateError (also Refused) and ApiError."""
    spec = {"request": base64.b64encode(pem).decode(), "signerName": signer, "usages": list(usages)}
    body = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": spec,
    }
    try:
        client.create(CERTIFICATE_SIGNING_REQUESTS, body)
        log.info("Asked for a certificate request=%s signer=%s", name, signer)
    except AlreadyExists:
        log.info("Found the certificate request of an earlier try request=%s", name)
    deadline, delay = clock() + ANSWER_SECONDS, FIRST_LOOK
    while clock() < deadline:
        try:
            found = answer_of(client.get(CERTIFICATE_SIGNING_REQUESTS, name))
        except NotFound as error:
            raise Refused(f"Certificate request {name} was deleted before it was answered") from error
        except ServerUnavailable as error:
            log.debug("Waiting for the API server error=%s", error)
            found = None
        if found is not None:
            return found
        if stopping.wait(delay):
            raise CertificateError("Could not wait for the certificate: the agent is ending")
        delay = min(LONGEST_LOOK, delay * 1.5)
    raise CertificateError(
        f"Nobody answered certificate request {name} within {ANSWER_SECONDS / 60:.0f} minutes "
        f"(approve it: kubectl certificate approve {name})"
    )


def explain(error: ApiError) -> str:
    """What to do when the API server does not let us ask."""
    if error.code == 401:
        return (
            f"{error} (the bootstrap token may have expired: make a new one with `kubelet-py token create`)"
        )
    return str(error)
