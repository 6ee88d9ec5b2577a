"""Which parameters of a LIST or WATCH go together.

A client that asks for a state "not older than" something and is answered from another one believes what is
not so; therefore combinations that mean nothing are refused and not read as something near
(apimachinery pkg/apis/meta/internalversion/validation).
"""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.apiserver.errors import FORBIDDEN, NOT_SUPPORTED, Cause, invalid
from controlplane.apiserver.routing import Request

EXACT, NOT_OLDER = "Exact", "NotOlderThan"
_MATCH, _INITIAL = "resourceVersionMatch", "sendInitialEvents"


def check(request: Request) -> None:
    """Raises StatusError (422)."""
    query = request.query
    if _MATCH not in query and _INITIAL not in query:
        return
    causes = list(_of_watch(request) if request.verb == "watch" else _of_list(request))
    if causes:
        raise invalid("ListOptions", "meta.k8s.io", "", causes)


def _of_list(request: Request) -> Iterator[Cause]:
    match, version = request.query.get(_MATCH, ""), request.query.get("resourceVersion", "")
    if match:
        if not version:
            yield _forbidden(_MATCH, f"{_MATCH} is forbidden unless resourceVersion is provided")
        yield from _with_continue(request)
        if match not in (EXACT, NOT_OLDER):
            yield _unsupported(match, EXACT, NOT_OLDER, "")
        if match == EXACT and version == "0":
            yield _forbidden(_MATCH, f'{_MATCH} "exact" is forbidden for resourceVersion "0"')
    if _INITIAL in request.query:
        yield _forbidden(_INITIAL, f"{_INITIAL} is forbidden for list")


def _of_watch(request: Request) -> Iterator[Cause]:
    match, initial = request.query.get(_MATCH, ""), _INITIAL in request.query
    if initial and match != NOT_OLDER:
        yield _forbidden(_MATCH, f"{_INITIAL} requires setting {_MATCH} to {NOT_OLDER}")
    if match:
        if not initial:
            yield _forbidden(_MATCH, f"{_MATCH} is forbidden for watch unless {_INITIAL} is provided")
        if match != NOT_OLDER:
            yield _unsupported(match, NOT_OLDER)
        yield from _with_continue(request)


def _with_continue(request: Request) -> Iterator[Cause]:
    if request.query.get("continue"):
        yield _forbidden(_MATCH, f"{_MATCH} is forbidden when continue is provided")


def _forbidden(field: str, text: str) -> Cause:
    return Cause(FORBIDDEN, field, f"Forbidden: {text}")


def _unsupported(match: str, *served: str) -> Cause:
    listed = ", ".join(f'"{name}"' for name in sorted(served))
    return Cause(NOT_SUPPORTED, _MATCH, f'Unsupported value: "{match}": supported values: {listed}')
