"""/logs/?query=: the log of a service of the node, from systemd's journal or from a file below its var/log.

It is off unless enableSystemLogQuery says true. A query with a slash is a file, any other a service: where
the journal knows a unit of that name its lines are shown, with all that journalctl can choose by; else the
first of NAME, NAME.log and NAME/NAME.log that is there, whole. What reaches journalctl's command line was
checked first (names of units have no sign that could be an option or a pattern), and no shell sees it.
Source: upstream's pkg/kubelet/kubelet_server_journal.go.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kubelet_py.server import host_logs
from kubelet_py.server.errors import HttpError

SECONDS = 30.0
MOST_LINES, MOST_SERVICES, LONGEST_NAME = 100_000, 4, 256
_UNSAFE = re.compile(r"[^a-zA-Z\-_0-9@]")
Query = Mapping[str, Sequence[str]]
Run = Callable[[Sequence[str]], Iterator[bytes]]
"""Runs a program and gives its output; OSError where there is none of that name."""


@dataclass(frozen=True, slots=True)
class LogQuery:
    """What is asked for. The options are journalctl's (None or "" where they were not given), in UTC."""

    services: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    tail: int | None = None
    boot: int | None = None
    pattern: str = ""

    @property
    def chooses(self) -> bool:
        """Whether it asks for a part of the log."""
        return (
            any(o is not None for o in (self.since, self.until, self.tail, self.boot)) or self.pattern != ""
        )

    def check(self, folder: Path) -> None:
        """Raises HttpError (406)."""
        for problem in self._problems(folder):
            raise HttpError(406, f"{problem}\n")

    def _problems(self, folder: Path) -> Iterator[str]:
        for name in self.services:
            if len(name) > LONGEST_NAME:
                yield _invalid("query", name, f"length must be less than {LONGEST_NAME}")
            if _UNSAFE.search(name) or name.startswith("-"):
                yield _invalid("query", name, "input contains unsupported characters")
        if len(self.services) > MOST_SERVICES:
            yield f"query: Too many: {len(self.services)}: must have at most {MOST_SERVICES} items"
        if not self.services and not self.files:
            yield "query: Required value: cannot be empty with options"
        if self.files and self.services:
            yield _invalid("query", self.files, "cannot specify a file and service")
        elif len(self.files) > 1:
            yield _invalid("query", self.files, "cannot specify more than one file")
        elif self.files and self.chooses:
            yield _invalid("query", self.files, "cannot specify file with options")
        if self.since and self.until and self.since > self.until:
            yield _invalid("untilTime", self.until.isoformat(), "must be after `sinceTime`")
        if self.boot is not None and self.boot > 0:
            yield _invalid("boot", self.boot, "must be less than 1")
        if self.tail is not None and not 0 <= self.tail <= MOST_LINES:
            yield _invalid("tailLines", self.tail, f"must be between 0 and {MOST_LINES}, inclusive")


def parse(query: Query) -> LogQuery | None:
    """PURE. None where nothing of it is asked for. Raises HttpError (400) for what cannot be read."""
    asked = query.get("query")
    names = [name for name in asked or () if name.strip()]
    if asked is not None and not names:
        raise HttpError(400, f"{_invalid('query', list(asked), 'query cannot be empty')}\n")
    found = LogQuery(
        services=tuple(name for name in names if "/" not in name and "\\" not in name),
        files=tuple(name for name in names if "/" in name or "\\" in name),
        since=_moment(query, "sinceTime"),
        until=_moment(query, "untilTime"),
        tail=_number(query, "tailLines"),
        boot=_number(query, "boot"),
        pattern=(query.get("pattern") or [""])[0],
    )
    if "\0" in found.pattern:
        raise HttpError(400, f"{_invalid('pattern', found.pattern, 'it holds a NUL')}\n")
    return found if found != LogQuery() else None


def answer(query: LogQuery, folder: Path, run: Run) -> Iterator[bytes]:
    """The logs of its services; what cannot be had is told among them, as upstream does."""
    try:
        units = b"".join(run(["journalctl", "--field", "_SYSTEMD_UNIT"])).decode("utf-8", "replace").split()
    except OSError:
        units = []
    native = [name for name in query.services if f"{name}.service" in units]
    if native:
        yield from run(command(query, native))
    others = [name for name in query.services if name not in native]
    if others and query.chooses:
        text = f"options present and query resolved to log files for {others}\ntry without specifying options"
        yield f"\n{text}\n".encode()
        return
    for name in others:
        yield from _of_file(folder, name)


def command(query: LogQuery, services: Sequence[str]) -> list[str]:
    """PURE. How to ask journalctl for it."""
    argv = ["journalctl", "--utc", "--no-pager", "--output=short-precise"]
    for flag, moment in (("since", query.since), ("until", query.until)):
        if moment is not None:
            argv.append(f"--{flag}={moment:%Y-%m-%d %H:%M:%S}")
    if query.tail is not None:
        argv += ["--pager-end", f"--lines={query.tail}"]
    argv += [f"--unit={service}" for service in services]
    if query.pattern:
        argv.append(f"--grep={query.pattern}")
    if query.boot is not None:
        argv += ["--boot", str(query.boot)]
    return argv


def _of_file(folder: Path, service: str) -> Iterator[bytes]:
    for name in (service, f"{service}.log", f"{service}/{service}.log"):
        try:
            found = host_logs.open_below(folder, name.split("/"))
        except HttpError:
            continue
        if isinstance(found, str):
            continue  # a folder
        try:
            yield from found.pieces()
        finally:
            os.close(found.descriptor)
        return
    yield f"\nlog not found for {service}\n".encode()


def run(argv: Sequence[str]) -> Iterator[bytes]:
    """Its output as it comes, for SECONDS; who stops reading ends it."""
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), host_logs.CHUNK):
            yield piece
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _moment(query: Query, name: str) -> datetime | None:
    text = (query.get(name) or [""])[0]
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # no time, or before the first or after the last that there is
    raise HttpError(400, f"{_invalid(name, text, 'invalid time format')}\n")


def _number(query: Query, name: str) -> int | None:
    text = (query.get(name) or [""])[0]
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise HttpError(400, f"{_invalid(name, text, 'it is no number')}\n") from error


def _invalid(name: str, value: object, why: str) -> str:
    return f"{name}: Invalid value: {value!r}: {why}"
