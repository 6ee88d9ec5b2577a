"""How the kubelet's HTTPS server refuses a request."""

from __future__ import annotations


class HttpError(Exception):
    """An answer of plain text with a status code, as the kubelet gives them."""

    def __init__(self, code: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.code, self.message, self.headers = code, message, headers
