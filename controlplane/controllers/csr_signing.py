"""Signs approved certificate requests, and throws away those that nobody needs any more.

Approval says that the requestor may have it; whether the signer vouches for such a certificate at all is
looked at here, and a request that breaks its signer's rules gets the condition Failed. Requests are kept an
hour after they were decided upon and a day while they wait, as upstream
(pkg/controller/certificates/signer, pkg/controller/certificates/cleaner).
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable

from controlplane import signers
from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from controlplane.controllers.stamps import seconds
from controlplane.errors import AuthorityError
from controlplane.issuing import Issuer
from kubeclient.errors import ApiError, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import CERTIFICATE_SIGNING_REQUESTS
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

DECIDED_SECONDS = 3600.0
PENDING_SECONDS = 24 * 3600.0


def ends(request: Object) -> float:
    """PURE. When (seconds since 1970) a request has outlived its use."""
    for kind in ("Approved", "Denied", "Failed"):
        found = signers.condition(request, kind)
        if found is not None and (kind != "Approved" or signers.certificate(request)):
            since = found.get("lastUpdateTime") or request["metadata"]["creationTimestamp"]
            return seconds(since) + DECIDED_SECONDS
    return seconds(request["metadata"]["creationTimestamp"]) + PENDING_SECONDS


def certificate_expired(request: Object, now: float) -> bool:
    """Whether the certificate in the request is past its end."""
    from cryptography import x509

    encoded = signers.certificate(request)
    if not encoded:
        return False
    try:
        certificate = x509.load_pem_x509_certificate(base64.b64decode(encoded))
    except ValueError:
        return False
    return certificate.not_valid_after_utc.timestamp() <= now


class CsrSigning(Controller):
    name = "csrsigning"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        *,
        issuer: Issuer,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._issuer = issuer
        self._clock = clock
        self._requests = informers.of(CERTIFICATE_SIGNING_REQUESTS, self.enqueue)

    def sync(self, key: str) -> None:
        _, name = split_key(key)
        request = self._requests.get(name)
        if request is None or signers.certificate(request):
            return
        if signers.condition(request, "Approved") is None or signers.condition(request, "Failed") is not None:
            return
        spec, pem = request["spec"], base64.b64decode(request["spec"]["request"])
        signer = spec.get("signerName", "")
        if signer not in signers.OURS:
            return  # somebody else's
        problem = signers.problem(signer, signers.read(pem), spec.get("usages") or ())
        status = dict(request.get("status") or {})
        if problem:
            failed = {"type": "Failed", "status": "True", "reason": "SignerValidationFailure"}
            conditions = [*(status.get("conditions") or ()), {**failed, "message": problem}]
            status["conditions"] = conditions
            log.warning("Refused to sign request=%s reason=%s", name, problem)
        else:
            status["certificate"] = self._sign(pem, spec)
            log.info("Signed request=%s signer=%s user=%s", name, signer, spec.get("username"))
        self.client.update(CERTIFICATE_SIGNING_REQUESTS, {**request, "status": status}, subresource="status")

    def _sign(self, pem: bytes, spec: Object) -> str:
        asked = spec.get("expirationSeconds")
        try:
            signed = self._issuer.sign(pem, spec.get("usages") or (), asked, self._clock())
        except AuthorityError as error:
            raise ApiError({"message": str(error), "code": 500}) from error  # put back, with back-off
        return base64.b64encode(signed).decode()


class CsrCleaner(Controller):
    name = "csrcleaner"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._clock = clock
        self._requests = informers.of(CERTIFICATE_SIGNING_REQUESTS, self.enqueue)

    def sync(self, key: str) -> None:
        _, name = split_key(key)
        request = self._requests.get(name)
        if request is None:
            return
        now = self._clock()
        wait = ends(request) - now
        if wait > 0 and not certificate_expired(request, now):
            self.queue.add_after(key, min(wait, DECIDED_SECONDS))
            return
        try:
            self.client.delete(CERTIFICATE_SIGNING_REQUESTS, name, uid=request["metadata"]["uid"])
        except NotFound:
            return
        log.info("Removed old request=%s", name)
