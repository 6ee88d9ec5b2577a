"""CertificateSigningRequests: what a new one must have, and what nobody may change of a stored one.

Upstream: pkg/apis/certificates/validation. The request itself is parsed, so that no signer ever meets one
that cannot be read.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from controlplane import signers
from controlplane.apiserver.validation_fields import Causes, dns_subdomain

Object = dict[str, Any]

_LEAST_SECONDS = 600
_SEGMENT = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def signing_request(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    try:
        signers.read(base64.b64decode(spec.get("request") or ""))
    except signers.BadRequestError as error:
        causes.invalid("spec.request", spec.get("request") or "", str(error))
    _usages(causes, spec.get("usages") or [])
    name = spec.get("signerName") or ""
    if not name:
        causes.required("spec.signerName")
    else:
        _signer_name(causes, name)
    seconds = spec.get("expirationSeconds")
    if seconds is not None and seconds < _LEAST_SECONDS:
        detail = "may not specify a duration less than 600 seconds (10 minutes)"
        causes.invalid("spec.expirationSeconds", seconds, detail)
    _conditions(causes, obj)


def _usages(causes: Causes, usages: list[str]) -> None:
    if not usages:
        causes.required("spec.usages")
    for index, usage in enumerate(usages):
        if usage not in signers.USAGES:
            causes.not_supported(f"spec.usages[{index}]", usage, ())
        if usage in usages[:index]:
            causes.duplicate(f"spec.usages[{index}]", usage)


def _signer_name(causes: Causes, name: str) -> None:
    where = "spec.signerName"
    domain, slash, path = name.partition("/")
    if not slash or "/" in path:
        detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'"
        causes.invalid(where, name, detail)
        return
    causes.each(where, domain, dns_subdomain(domain))
    if "." not in domain:
        causes.invalid(where, domain, "should be a domain with at least two segments separated by dots")
    if not _SEGMENT.fullmatch(path) or len(path) > 253:
        causes.invalid(where, path, "a lowercase RFC 1123 subdomain is needed after the slash")


def _conditions(causes: Causes, obj: Object) -> None:
    seen: set[str] = set()
    for index, item in enumerate((obj.get("status") or {}).get("conditions") or ()):
        where = f"status.conditions[{index}]"
        kind, status = item.get("type") or "", item.get("status") or ""
        if not kind:
            causes.required(f"{where}.type")
        if not status:
            causes.required(f"{where}.status")
        elif status not in ("True", "False", "Unknown"):
            causes.not_supported(f"{where}.status", status, ("False", "True", "Unknown"))
        elif kind in ("Approved", "Denied", "Failed") and status != "True":
            causes.not_supported(f"{where}.status", status, ("True",))
        if kind in seen:
            causes.duplicate(f"{where}.type", kind)
        seen.add(kind)
        other = {"Approved": "Denied", "Denied": "Approved"}.get(kind)
        if other in seen:
            causes.invalid(f"{where}.type", kind, "Approved and Denied conditions are mutually exclusive")


def signing_request_update(causes: Causes, new: Object, old: Object) -> None:
    """Approval and denial are final, and so is a certificate."""
    for kind in ("Approved", "Denied", "Failed"):
        before, after = signers.condition(old, kind), signers.condition(new, kind)
        if before is not None and after is None:
            causes.forbidden("status.conditions", f'updates may not remove a condition of type "{kind}"')
        elif before is not None and kind != "Failed" and before != after:
            causes.forbidden("status.conditions", f'updates may not modify a condition of type "{kind}"')
    if signers.certificate(old) and signers.certificate(new) != signers.certificate(old):
        causes.forbidden("status.certificate", "updates may not modify an existing certificate")
