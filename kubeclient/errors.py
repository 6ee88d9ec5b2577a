"""What the API server's refusals look like to our code.

The API answers a failure with a Status object; its `reason` is the machine's word for it and its HTTP code
the fallback. Callers need to tell a handful of them apart (retry on Conflict, relist on Gone, wait on
ServerUnavailable), so each of those is a class:

    KubeClientError
    ├── ConfigError               a kubeconfig that cannot be used
    └── ApiError                  any Status with code ≥ 400
        ├── BadRequest            400
        ├── Unauthorized          401
        ├── Forbidden             403
        ├── NotFound              404
        ├── AlreadyExists         409, reason AlreadyExists
        ├── Conflict              409, any other reason
        ├── Gone                  410, reasons Gone and Expired: the watch window is past, list again
        ├── Invalid               422
        ├── TooManyRequests       429, with retry_after seconds
        └── ServerUnavailable     502, 503, 504; and no answer at all: refused, reset, timed out
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson


class KubeClientError(Exception):
    """Anything that this package raises on purpose."""


class ConfigError(KubeClientError):
    """A kubeconfig that is missing, malformed, or asks for a way to log in that we do not have."""


class ApiError(KubeClientError):
    """A Status with code ≥ 400; `status` is the whole Status object as received."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        self.status: dict[str, Any] = dict(status)
        self.code: int = int(status.get("code") or 500)
        self.reason: str = str(status.get("reason") or "")
        self.message: str = str(status.get("message") or f"the server answered {self.code}")
        super().__init__(self.message)

    @property
    def causes(self) -> list[dict[str, Any]]:
        """`details.causes`: one entry per field that was refused."""
        return list((self.status.get("details") or {}).get("causes") or [])


class BadRequest(ApiError):
    pass


class Unauthorized(ApiError):
    pass


class Forbidden(ApiError):
    pass


class NotFound(ApiError):
    pass


class AlreadyExists(ApiError):
    pass


class Conflict(ApiError):
    pass


class Gone(ApiError):
    pass


class Invalid(ApiError):
    pass


class TooManyRequests(ApiError):
    """`retry_after`: seconds to wait, as the server asked (1 when it did not say)."""

    @property
    def retry_after(self) -> float:
        return float((self.status.get("details") or {}).get("retryAfterSeconds") or 1)


class ServerUnavailable(ApiError):
    """No usable answer; the request may or may not have been carried out."""

    @classmethod
    def unreachable(cls, message: str) -> ServerUnavailable:
        return cls({"status": "Failure", "message": message, "reason": "ServiceUnavailable", "code": 503})


_BY_CODE: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
    502: ServerUnavailable,
    503: ServerUnavailable,
    504: ServerUnavailable,
}


def from_status(status: Mapping[str, Any]) -> ApiError:
    """The error for a Status object."""
    if status.get("reason") == "AlreadyExists":
        return AlreadyExists(status)
    if status.get("reason") == "Expired":
        return Gone(status)
    return _BY_CODE.get(int(status.get("code") or 500), ApiError)(status)


def from_response(code: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The error for an HTTP answer; a body that is no Status (a proxy's page) becomes its message."""
    status: dict[str, Any] = {}
    try:
        parsed = orjson.loads(body)
        if isinstance(parsed, dict) and parsed.get("kind") == "Status":
            status = parsed
    except orjson.JSONDecodeError:
        pass
    if not status:
        text = body[:1024].decode(errors="replace").strip()
        status = {"status": "Failure", "message": text or f"the server answered {code}"}
    status.setdefault("code", code)
    retry_after = headers.get("retry-after", "")
    if retry_after.isdigit():
        details = dict(status.get("details") or {})
        details.setdefault("retryAfterSeconds", int(retry_after))
        status["details"] = details
    return from_status(status)
