"""Status answers: every refusal of the API server, in the words that clients match on.

Clients do not only read the HTTP code: kubectl switches on `reason`, `details.causes` and `details.kind`,
and some clients compare the whole body byte for byte. So the body is built here and nowhere else: compact
JSON, the field order of Go's metav1.Status, a newline at the end (apimachinery pkg/api/errors and
pkg/apis/meta/v1/types.go).

    StatusError              anything the server refuses; `code`, `reason`, `message`, `details`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

REQUIRED = "FieldValueRequired"
INVALID = "FieldValueInvalid"
NOT_SUPPORTED = "FieldValueNotSupported"
DUPLICATE = "FieldValueDuplicate"
FORBIDDEN = "FieldValueForbidden"
NOT_FOUND = "FieldValueNotFound"
TOO_LONG = "FieldValueTooLong"
TOO_MANY = "FieldValueTooMany"
TYPE_INVALID = "FieldValueTypeInvalid"


class Named(Protocol):
    """What an error needs to know of a resource; ResourceInfo satisfies it."""

    @property
    def group(self) -> str: ...
    @property
    def plural(self) -> str: ...
    @property
    def kind(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason of a refusal: `type` is upstream's cause reason, `field` a path such as
    spec.containers[0].image.

    `message` does not repeat the path; `text` does, as `field: message`.
    """

    type: str
    field: str
    message: str

    @property
    def text(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    def to_object(self) -> dict[str, str]:
        out = {"reason": self.type, "message": self.message}
        if self.field:
            out["field"] = self.field
        return out


class StatusError(Exception):
    """A refused request. `details` is None (no such key) or the ready-made dict, in Go's field order."""

    def __init__(self, code: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    @property
    def retry_after(self) -> int | None:
        """Seconds for a Retry-After header, or None."""
        value = (self.details or {}).get("retryAfterSeconds")
        return int(value) if value is not None else None

    def to_object(self) -> dict[str, Any]:
        out: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        out["message"] = self.message
        if self.reason:
            out["reason"] = self.reason
        if self.details is not None:
            out["details"] = self.details
        out["code"] = self.code
        return out

    def body(self) -> bytes:
        """The answer's bytes: compact JSON and a newline."""
        return orjson.dumps(self.to_object()) + b"\n"


def success_body(*, details: dict[str, Any] | None = None, code: int | None = None) -> bytes:
    """A Status that says Success: deletes answer with `details` and no code, bindings and evictions with
    code 201.
    """
    out: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if details is not None:
        out["details"] = details
    if code is not None:
        out["code"] = code
    return orjson.dumps(out) + b"\n"


def qualified(group: str, name: str) -> str:
    """`pods` or `deployments.apps`: how upstream writes a resource or kind in a sentence."""
    return f"{name}.{group}" if group else name


def resource_details(
    *,
    name: str = "",
    group: str = "",
    kind: str = "",
    uid: str = "",
    causes: Iterable[Cause] = (),
    retry_after: int | None = None,
) -> dict[str, Any]:
    """metav1.StatusDetails without empty fields; `kind` is the plural for most errors, as upstream has it."""
    out: dict[str, Any] = {}
    for key, value in (("name", name), ("group", group), ("kind", kind), ("uid", uid)):
        if value:
            out[key] = value
    listed = [cause.to_object() for cause in causes]
    if listed:
        out["causes"] = listed
    if retry_after is not None:
        out["retryAfterSeconds"] = retry_after
    return out


def _of(info: Named, name: str, causes: Iterable[Cause] = ()) -> dict[str, Any]:
    return resource_details(name=name, group=info.group, kind=info.plural, causes=causes)


def not_found(info: Named, name: str) -> StatusError:
    message = f'{qualified(info.group, info.plural)} "{name}" not found'
    return StatusError(404, "NotFound", message, _of(info, name))


def unknown_resource() -> StatusError:
    """A path that no resource serves."""
    return StatusError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(info: Named, name: str) -> StatusError:
    message = f'{qualified(info.group, info.plural)} "{name}" already exists'
    return StatusError(409, "AlreadyExists", message, _of(info, name))


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def conflict(info: Named, name: str, text: str = MODIFIED) -> StatusError:
    message = f'Operation cannot be fulfilled on {qualified(info.group, info.plural)} "{name}": {text}'
    return StatusError(409, "Conflict", message, _of(info, name))


def uid_mismatch(info: Named, name: str, asked: str, stored: str) -> StatusError:
    """A failed uid precondition of DELETE."""
    return conflict(
        info,
        name,
        f"the UID in the precondition ({asked}) does not match the UID in record ({stored}). "
        "The object might have been deleted and then recreated",
    )


def apply_conflict(causes: Sequence[Cause]) -> StatusError:
    """Server-side apply met fields of other managers; each cause is FieldManagerConflict with a path like
    .data.a.
    """
    managers: dict[str, list[str]] = {}
    for cause in causes:
        managers.setdefault(cause.message, []).append(cause.field)
    plural = "conflict" if len(causes) == 1 else "conflicts"
    parts = []
    for text, fields in managers.items():
        separator = ": " if len(fields) == 1 else ":\n- "
        parts.append(text + separator + "\n- ".join(fields))
    joined = "\n".join(parts)
    lead = f"Apply failed with {len(causes)} {plural}: "
    return StatusError(409, "Conflict", lead + joined, resource_details(causes=causes))


def invalid(kind: str, group: str, name: str, causes: Sequence[Cause]) -> StatusError:
    """422 with every cause; the sentence lists each distinct one, in brackets when there are several."""
    texts = list(dict.fromkeys(cause.text for cause in causes))
    joined = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    message = f'{qualified(group, kind)} "{name}" is invalid: {joined}'
    return StatusError(
        422, "Invalid", message, resource_details(name=name, group=group, kind=kind, causes=causes)
    )


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def cannot_decode(kind: str, version: str, text: str) -> StatusError:
    """A body that does not fit the type: wrong JSON types, or unknown fields under fieldValidation=Strict."""
    return bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: {text}')


def strict_decoding(kind: str, version: str, problems: Sequence[str]) -> StatusError:
    """fieldValidation=Strict: `problems` are phrases such as `unknown field "spec.x"`."""
    return cannot_decode(kind, version, "strict decoding error: " + ", ".join(problems))


def method_not_allowed() -> StatusError:
    message = "the server does not allow this method on the requested resource"
    return StatusError(405, "MethodNotAllowed", message, {})


def unsupported_media_type(accepted: Sequence[str] = ()) -> StatusError:
    listed = ", ".join(
        accepted or ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")
    )
    message = f"the body of the request was in an unknown format - accepted media types include: {listed}"
    return StatusError(415, "UnsupportedMediaType", message)


def not_acceptable(accepted: Sequence[str] = ()) -> StatusError:
    listed = ", ".join(accepted or ("application/json", "application/yaml"))
    return StatusError(406, "NotAcceptable", f"only the following media types are accepted: {listed}")


def expired(message: str = "The resourceVersion for the provided watch is too old.") -> StatusError:
    """410 for a watch or a continue token older than the history that is kept."""
    return StatusError(410, "Expired", message)


def continue_expired() -> StatusError:
    """410 for a list token whose snapshot is gone."""
    return expired(
        "The provided continue parameter is too old to display a consistent list result. "
        "You can start a new list without the continue parameter."
    )


def too_large_resource_version(asked: int, current: int) -> StatusError:
    """504 for a read at a revision that does not exist yet."""
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return StatusError(504, "Timeout", message, details)


def timed_out() -> StatusError:
    """504 for a request that was not whole in time."""
    text = "Timeout: request did not complete within the allotted timeout"
    return StatusError(504, "Timeout", text)


def unauthorized() -> StatusError:
    return StatusError(401, "Unauthorized", "Unauthorized")


def forbidden(info: Named, name: str, text: str, causes: Iterable[Cause] = ()) -> StatusError:
    """403 about one object, e.g. a create in a namespace that is being deleted."""
    subject = f'{qualified(info.group, info.plural)} "{name}"' if name else qualified(info.group, info.plural)
    return StatusError(403, "Forbidden", f"{subject} is forbidden: {text}", _of(info, name, causes))


def namespace_terminating(info: Named, name: str, namespace: str) -> StatusError:
    cause = Cause("NamespaceTerminating", "metadata.namespace", f"namespace {namespace} is being terminated")
    text = f"unable to create new content in namespace {namespace} because it is being terminated"
    return forbidden(info, name, text, [cause])


def access_denied(
    user: str, verb: str, info: Named | None, *, name: str = "", namespace: str = "", path: str = ""
) -> StatusError:
    """The authorizer's 403: names the user, the verb and the place, as RBAC's users know it."""
    if info is None:
        message = f'forbidden: User "{user}" cannot {verb} path "{path}"'
        return StatusError(403, "Forbidden", message, {})
    scope = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    text = f'User "{user}" cannot {verb} resource "{info.plural}" in API group "{info.group}" {scope}'
    return forbidden(info, name, text)


def too_many_requests(
    message: str, *, retry_after: int | None = None, causes: Iterable[Cause] = ()
) -> StatusError:
    """429: an eviction that a PodDisruptionBudget refuses, or a server that is busy."""
    details = resource_details(causes=causes, retry_after=retry_after)
    return StatusError(429, "TooManyRequests", message, details)


def request_entity_too_large(limit: int) -> StatusError:
    message = f"Request entity too large: limit is {limit}"
    return StatusError(413, "RequestEntityTooLarge", message)


def unprocessable_patch(
    text: str = "the server rejected our request due to an error in our request",
) -> StatusError:
    """A JSON patch whose test fails or whose path is absent."""
    return StatusError(422, "Invalid", text, {})


def internal(text: str) -> StatusError:
    details = {"causes": [{"message": text}]}
    return StatusError(500, "InternalError", f"Internal error occurred: {text}", details)


def service_unavailable(message: str, *, retry_after: int | None = None) -> StatusError:
    details = resource_details(retry_after=retry_after) if retry_after is not None else None
    return StatusError(503, "ServiceUnavailable", message, details)
