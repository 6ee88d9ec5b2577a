"""Approves the certificate requests of kubelets, if the requestor has the right to have them approved.

A new node asks with a bootstrap token (`nodeclient`), a node that renews asks as itself (`selfnodeclient`).
Whether that is enough is a matter of rights: may the requestor create certificatesigningrequests/nodeclient?
Serving certificates are left to people or to other approvers upstream, because a node may announce any
address. Here they are approved too (`selfnodeserver`) when every name in the request is announced by the
Node itself, and no address by another Node; who thinks otherwise takes the subjects out of the binding
kubelet-py:node-autoapprove-serving. Source: upstream's pkg/controller/certificates/approver/sarapprove.go.
"""

from __future__ import annotations

import base64
import logging
from dataclasses import dataclass

from controlplane import signers
from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from kubeclient.errors import ApiError
from kubeclient.events import EventRecorder
from kubeclient.resources import CERTIFICATE_SIGNING_REQUESTS, NODES, SUBJECT_ACCESS_REVIEWS
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Recognized:
    """A kind of request that may be approved without a person, and what is said then."""

    permission: str
    message: str


SELF_CLIENT = Recognized(
    "selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."
)
CLIENT = Recognized("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.")
SELF_SERVER = Recognized(
    "selfnodeserver", "Auto approving kubelet serving certificate after SubjectAccessReview."
)


def recognize(spec: Object, wanted: signers.Wanted) -> tuple[Recognized, ...]:
    """PURE. What the request could be approved as, the narrowest first; () for none of our business."""
    signer, usages = spec.get("signerName", ""), spec.get("usages") or ()
    if signer not in (signers.KUBELET_CLIENT, signers.KUBELET_SERVING):
        return ()
    if signers.problem(signer, wanted, usages):
        return ()
    by_itself = spec.get("username") == wanted.common_name
    if signer == signers.KUBELET_SERVING:
        return (SELF_SERVER,) if by_itself else ()
    return (SELF_CLIENT, CLIENT) if by_itself else (CLIENT,)


class CsrApproving(Controller):
    name = "csrapproving"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._requests = informers.of(CERTIFICATE_SIGNING_REQUESTS, self.enqueue)
        self._nodes = informers.of(NODES)

    def sync(self, key: str) -> None:
        _, name = split_key(key)
        request = self._requests.get(name)
        if request is None or not signers.pending(request):
            return
        spec = request["spec"]
        try:
            wanted = signers.read(base64.b64decode(spec["request"]))
        except signers.BadRequestError:
            return
        candidates = recognize(spec, wanted)
        if not candidates:
            return
        if candidates[0] is SELF_SERVER:
            problem = self._serving_problem(wanted)
            if problem:
                log.info("Left serving request to others request=%s reason=%s", name, problem)
                self.queue.add_after(key, RETRY_SECONDS)  # the Node may announce it a moment later
                return
        for candidate in candidates:
            if self._allowed(spec, candidate.permission):
                self._approve(request, candidate.message)
                return
        log.info("Left request to others request=%s user=%s reason=not permitted", name, spec.get("username"))

    def _serving_problem(self, wanted: signers.Wanted) -> str:
        name = wanted.common_name.removeprefix(signers.NODE_PREFIX)
        try:
            node = self.client.get(NODES, name)  # not the copy: the Node may be younger than it
        except ApiError as error:
            return str(error)
        foreign = signers.foreign_names(wanted, node)
        if foreign:
            return f"the Node does not announce {', '.join(foreign)}"
        taken = signers.announced_by_others(wanted.addresses, name, self._nodes.list())
        return f"another Node announces {', '.join(taken)} too" if taken else ""

    def _allowed(self, spec: Object, permission: str) -> bool:
        attributes = {
            "group": "certificates.k8s.io",
            "resource": "certificatesigningrequests",
            "verb": "create",
            "subresource": permission,
        }
        asked = {"user": spec.get("username", ""), "groups": spec.get("groups") or []}
        for field in ("uid", "extra"):
            if spec.get(field):
                asked[field] = spec[field]
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {**asked, "resourceAttributes": attributes},
        }
        answer = self.client.create(SUBJECT_ACCESS_REVIEWS, review)
        return bool((answer.get("status") or {}).get("allowed"))

    def _approve(self, request: Object, message: str) -> None:
        condition = {"type": "Approved", "status": "True", "reason": "AutoApproved", "message": message}
        approved = {**request, "status": {"conditions": [condition]}}
        self.client.update(CERTIFICATE_SIGNING_REQUESTS, approved, subresource="approval")
        log.info("Approved request=%s user=%s", request["metadata"]["name"], request["spec"].get("username"))
