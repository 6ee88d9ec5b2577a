"""The first words to the shims that an agent finds."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from runtime import shim_link
from runtime.errors import ShimError, StartError
from runtime.streams import EXIT, REQUEST, RESPONSE, STDOUT, Stream, pack


def listening(folder: Path) -> socket.socket:
    folder.mkdir()
    return shim_link.listen(str(folder))


def test_every_shim_is_asked_before_the_first_is_waited_for(tmp_path: Path) -> None:
    listeners = [listening(tmp_path / name) for name in ("a", "b")]
    asked: list[bytes] = []

    def answer_in_reverse() -> None:
        connections = [listener.accept()[0] for listener in listeners]
        for connection in reversed(connections):
            channel, text = Stream(connection).receive() or (0, b"")
            assert channel == REQUEST
            asked.append(text)
            connection.sendall(pack(RESPONSE, b'{"id": 1}'))
            connection.close()

    shims = threading.Thread(target=answer_in_reverse)
    shims.start()
    greetings = shim_link.greet([str(tmp_path / name) for name in ("a", "b")])
    links = [shim_link.greeted(greeting, 30.0) for greeting in greetings]
    shims.join()
    assert [json.loads(text)["op"] for text in asked] == ["hello", "hello"]
    for opened in (*links, *listeners):
        opened.close()


def test_a_shim_that_is_gone_or_silent_costs_the_others_nothing(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    listener = listening(tmp_path / "silent")
    gone, silent = shim_link.greet([str(tmp_path / "gone"), str(tmp_path / "silent")])
    with pytest.raises(FileNotFoundError):
        shim_link.greeted(gone, 0.01)
    with pytest.raises(ShimError, match="did not answer in time"):
        shim_link.greeted(silent, 0.01)
    assert isinstance(silent, socket.socket) and silent.fileno() == -1, "closed"
    listener.close()


def ran(timeout: float | None, *frames: bytes) -> tuple[dict[str, object], list[tuple[int, bytes]], bytes]:
    """How a command ended, what it wrote, and what its shim was asked."""
    ours, theirs = socket.socketpair()
    got: list[tuple[int, bytes]] = []
    with theirs:
        for frame in frames:
            theirs.sendall(frame)
        theirs.shutdown(socket.SHUT_WR)
        stream = Stream(ours)
        try:
            ended = shim_link.run(stream, 60, timeout, lambda *piece: got.append(piece), "c1", ["true"])
            return ended, got, (Stream(theirs).receive() or (0, b""))[1]
        finally:
            stream.close()


STARTED, ENDED = pack(RESPONSE, b'{"id": 1, "pid": 7}'), pack(EXIT, b'{"exitCode": 3}')


def test_a_command_with_a_timeout_is_told_of_once() -> None:
    ended, got, asked = ran(5.0, pack(STDOUT, b"out"), ENDED)
    assert ended == {"exitCode": 3} and got == [(STDOUT, b"out")]
    request = json.loads(asked)
    assert (request["quiet"], request["timeout"], request["argv"]) == (True, 5.0, ["true"])


def test_a_shim_that_is_older_says_that_it_has_started() -> None:
    assert ran(5.0, STARTED, pack(STDOUT, b"out"), ENDED)[:2] == ({"exitCode": 3}, [(STDOUT, b"out")])


def test_a_command_without_a_timeout_has_one_for_its_start() -> None:
    ended, _, asked = ran(None, STARTED, ENDED)
    assert ended == {"exitCode": 3} and "quiet" not in json.loads(asked)


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_a_command_that_was_not_started_and_a_shim_that_is_gone(timeout: float | None) -> None:
    with pytest.raises(StartError, match="no such program"):
        ran(timeout, pack(RESPONSE, b'{"id": 1, "error": "no such program"}'))
    with pytest.raises(ShimError, match="has gone"):
        ran(timeout, STARTED)


def test_a_command_that_does_not_end_in_time() -> None:
    ours, theirs = socket.socketpair()
    stream = Stream(ours)
    with pytest.raises(TimeoutError):
        shim_link.run(stream, 0.02, 0.02, lambda *piece: None, "c1", ["true"])
    stream.close()
    theirs.close()
