"""/logs/?query=: what is asked of the journal, what is taken from files, and what may not be asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pytest

from kubelet_py.server import log_query
from kubelet_py.server.errors import HttpError
from kubelet_py.server.handlers import Handlers
from kubelet_py.server.log_query import LogQuery, answer, command, parse
from tests.unit.server.live_server import Node


class Journal:
    """Knows the unit `sshd`; tells what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def run(self, argv: Sequence[str]) -> Iterator[bytes]:
        self.asked.append([*argv])
        yield b"sshd.service\ncron.service\n" if "--field" in argv else b"Nov 27 sshd: in\n"


def shown(query: LogQuery, folder: Path, journal: Journal) -> str:
    return b"".join(answer(query, folder, journal.run)).decode()


def test_a_unit_is_read_from_the_journal_and_another_service_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web/web.log").write_text("of its folder\n")
    (tmp_path / "plain").write_text("plain\n")
    (tmp_path / "syslog.log").write_text("with an end\n")
    journal = Journal()
    for name, text in (
        ("sshd", "Nov 27 sshd: in\n"), ("web", "of its folder\n"), ("plain", "plain\n"),
        ("syslog", "with an end\n"), ("none", "\nlog not found for none\n"),
    ):  # fmt: skip
        assert shown(LogQuery(services=(name,)), tmp_path, journal) == text
    (tmp_path / "out.log").symlink_to("/etc/hostname")
    assert "not found" in shown(LogQuery(services=("out",)), tmp_path, journal), "it leads outside"
    both = shown(LogQuery(services=("web", "sshd"), tail=3), tmp_path, journal)
    assert both.startswith("Nov 27") and "try without specifying options" in both


def test_without_a_journal_files_are_read(tmp_path: Path) -> None:
    def run(argv: Sequence[str]) -> Iterator[bytes]:
        raise FileNotFoundError(argv[0])

    (tmp_path / "sshd.log").write_text("x\n")
    assert b"".join(answer(LogQuery(services=("sshd",)), tmp_path, run)) == b"x\n"


def test_options_become_those_of_journalctl() -> None:
    found = parse(
        {
            "query": ["kubelet"], "sinceTime": ["2026-11-27T10:00:00+01:00"], "tailLines": ["10"],
            "untilTime": ["2026-11-27T12:00:00Z"], "boot": ["-1"], "pattern": ["a b; $(x)"],
        }
    )  # fmt: skip
    assert found is not None
    assert command(found, found.services) == [
        "journalctl", "--utc", "--no-pager", "--output=short-precise", "--since=2026-11-27 09:00:00",
        "--until=2026-11-27 12:00:00", "--pager-end", "--lines=10", "--unit=kubelet", "--grep=a b; $(x)",
        "--boot", "-1",
    ]  # fmt: skip
    assert parse({"other": ["x"]}) is None


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        ("query=", 400, "query cannot be empty"),
        ("query=%20%20", 400, "query cannot be empty"),
        ("query=a&sinceTime=yesterday", 400, "sinceTime: Invalid value: 'yesterday': invalid time format"),
        ("query=a&sinceTime=0001-01-01T00:00:00%2B10:00", 400, "invalid time format"),
        ("query=a&pattern=b%00c", 400, "pattern: Invalid value: 'b\\x00c': it holds a NUL"),
        ("query=a&tailLines=x", 400, "tailLines"),
        ("tailLines=3", 406, "query: Required value: cannot be empty with options"),
        ("query=a&query=/b", 406, "cannot specify a file and service"),
        ("query=/a&query=/b", 406, "cannot specify more than one file"),
        ("query=/a&tailLines=3", 406, "cannot specify file with options"),
        ("query=a&boot=1", 406, "must be less than 1"),
        ("query=a&tailLines=100001", 406, "must be between 0 and 100000"),
        ("query=a&sinceTime=2026-01-02T00:00:00Z&untilTime=2026-01-01T00:00:00Z", 406, "must be after"),
        ("query=a%3Brm", 406, "unsupported characters"),
        ("query=--root", 406, "unsupported characters"),
        ("query=a&query=b&query=c&query=d&query=e", 406, "Too many: 5"),
        ("query=/gone.log", 404, "404 page not found"),
        ("query=/../etc/passwd", 404, "404 page not found"),
    ],
)
def test_what_may_not_be_asked_is_refused_by_name(queried: Node, asked: str, code: int, says: str) -> None:
    status, text = queried.get(f"/logs/?{asked}")
    assert status == code and says in text


@pytest.fixture
def queried(node: Node) -> Iterator[Node]:
    node.server.handlers = Handlers(log_query=True)
    yield node
    node.server.handlers = Handlers()


def test_the_port_answers_queries_where_that_is_switched_on(queried: Node) -> None:
    folder = queried.server.log_folder
    folder.mkdir(exist_ok=True)
    (folder / "of-a-service.log").write_text("one\ntwo\n")
    assert queried.get("/logs/?query=of-a-service") == (200, "one\ntwo\n")
    assert queried.get(f"/logs/?query={quote('/of-a-service.log')}") == (200, "one\ntwo\n")
    assert queried.get("/logs/pods?query=of-a-service")[0] == 406
    assert queried.get("/logs/of-a-service.log") == (200, "one\ntwo\n")
    assert "of-a-service.log" in queried.get("/logs/")[1]
    queried.server.handlers = Handlers()
    assert queried.get("/logs/?query=of-a-service")[0] == 403


def test_a_program_is_ended_when_nobody_reads_on() -> None:
    output = log_query.run(["sh", "-c", "echo begun; exec sleep 1000"])
    assert next(output) == b"begun\n"
    output.close()  # type: ignore[attr-defined]
    with pytest.raises(FileNotFoundError):
        next(log_query.run(["no-such-program-anywhere"]))


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HttpError, match="length must be less"):
        LogQuery(services=("a" * 257,)).check(tmp_path)
