"""Who asked for a certificate, who may approve it, and who may hand it out.

The server itself writes down who sent a request: approvers decide by that, so no client may say it for
itself. Approving and signing are rights of their own (verbs `approve` and `sign` on signers), because
whoever may merely update the object must not become anybody by it. Source: upstream's
pkg/registry/certificates/certificates/strategy.go and the admission plugins CertificateApproval,
CertificateSigning, CertificateSubjectRestriction and NodeRestriction.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from controlplane import signers
from controlplane.apiserver.errors import forbidden
from controlplane.apiserver.resources import ResourceInfo
from controlplane.apiserver.users import MASTERS, User

Object = dict[str, Any]
May = Callable[[User, str, str], bool]
"""(user, verb, signer's name) → allowed"""

KEY = ("certificates.k8s.io", "certificatesigningrequests")


def record_requestor(obj: Object, user: User) -> None:
    """The four fields of spec that say who sent the request."""
    spec = obj.setdefault("spec", {})
    for name in ("username", "uid", "groups", "extra"):
        spec.pop(name, None)
    spec["username"], spec["groups"] = user.name, list(user.groups)
    if user.uid:
        spec["uid"] = user.uid
    if user.extra:
        spec["extra"] = {name: list(values) for name, values in user.extra.items()}


def admit_create(info: ResourceInfo, obj: Object, user: User) -> None:
    """Raises StatusError (403)."""
    spec, name = obj["spec"], obj["metadata"].get("name", "")
    signer = spec.get("signerName")
    kubelets = signer in (signers.KUBELET_CLIENT, signers.KUBELET_SERVING)
    if signer != signers.CLIENT and not (kubelets and user.node_name):
        return
    try:
        wanted = signers.read(base64.b64decode(spec.get("request") or ""))
    except signers.BadRequestError:
        return  # validation says so better
    if signer == signers.CLIENT and MASTERS in wanted.organizations:
        text = f"use of {signers.CLIENT} signer with system:masters group is not allowed"
        raise forbidden(info, name, text)
    own = signers.NODE_PREFIX + user.node_name
    if kubelets and wanted.common_name != own:
        raise forbidden(info, name, f"can only create a node CSR with CN={own}")


def admit_update(
    info: ResourceInfo, new: Object, old: Object, user: User, subresource: str, may: May
) -> None:
    """Raises StatusError (403)."""
    signer = old["spec"].get("signerName", "")
    status, before = new.get("status") or {}, old.get("status") or {}
    verb, doing = {"approval": ("approve", "approve"), "status": ("sign", "sign")}.get(subresource, ("", ""))
    if not verb:
        return
    if subresource == "status" and (
        status.get("certificate") == before.get("certificate")
        and status.get("conditions") == before.get("conditions")
    ):
        return
    if not may(user, verb, signer):
        text = f'user not permitted to {doing} requests with signerName "{signer}"'
        raise forbidden(info, new["metadata"]["name"], text)


def keep_parts(new: Object, old: Object, subresource: str, now: str) -> None:
    """What a write to the object, /approval or /status may change: nothing, conditions, the rest of status.

    `now` stamps conditions that came without times.
    """
    new["spec"] = old["spec"]
    if not subresource:
        return
    before = old.get("status") or {}
    conditions = list((new.get("status") or {}).get("conditions") or ())
    if subresource == "status":
        decided = [item for item in before.get("conditions") or () if item["type"] in ("Approved", "Denied")]
        conditions = decided + [item for item in conditions if item.get("type") not in ("Approved", "Denied")]
    else:
        new["status"] = dict(before)
    known = {item["type"]: item for item in before.get("conditions") or ()}
    stamped = [_stamped(item, known.get(item.get("type", "")), now) for item in conditions]
    status = new.setdefault("status", {})
    if stamped:
        status["conditions"] = stamped
    else:
        status.pop("conditions", None)


def _stamped(item: Object, before: Object | None, now: str) -> Object:
    item = dict(item)
    if not item.get("lastUpdateTime"):
        item["lastUpdateTime"] = now
    if not item.get("lastTransitionTime"):
        same = before is not None and before.get("status") == item.get("status")
        item["lastTransitionTime"] = before["lastTransitionTime"] if before is not None and same else now
    return item
