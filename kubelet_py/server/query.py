"""What paths and query strings of streaming requests say.

The kubelet's own names are input, output, error and port; the API server's are stdin, stdout, stderr and
ports. Both are understood, so that the server can also be asked directly with either.
"""

from __future__ import annotations

from collections.abc import Sequence

from kubelet_py.server.errors import HttpError
from kubelet_py.server.streaming import StreamOptions

_MOST_PORTS = 128  # each has two channels, whose number is one byte


def container_path(parts: list[str]) -> tuple[str, str, str | None, str]:
    if len(parts) == 3:
        return parts[0], parts[1], None, parts[2]
    if len(parts) == 4:
        return parts[0], parts[1], parts[2], parts[3]
    raise HttpError(404, "404 page not found\n")


def stream_options(query: dict[str, list[str]]) -> StreamOptions:
    def asked(*names: str) -> bool:
        return any(query.get(name, [""])[0].lower() in ("1", "true") for name in names)

    tty = asked("tty")
    options = StreamOptions(
        stdin=asked("input", "stdin"),
        stdout=asked("output", "stdout"),
        stderr=asked("error", "stderr") and not tty,  # a terminal mixes both
        tty=tty,
    )
    if not (options.stdin or options.stdout or options.stderr):
        raise HttpError(400, "you must specify at least 1 of stdin, stdout, stderr")
    return options


def ports(query: dict[str, list[str]]) -> list[int]:
    found = []
    for text in listed([*query.get("port", []), *query.get("ports", [])]):
        plain = text.isascii() and text.isdigit() and len(text) <= 5
        if not plain or not 0 < int(text) < 65536:
            raise HttpError(400, f"invalid port {text!r}: must be between 1 and 65535")
        found.append(int(text))
    if len(found) > _MOST_PORTS:
        raise HttpError(400, f"too many ports: {len(found)}, at most {_MOST_PORTS} can be forwarded")
    return found


def listed(values: Sequence[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]
