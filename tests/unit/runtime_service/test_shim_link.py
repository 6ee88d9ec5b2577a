"""The first words to the shims that an agent finds."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from runtime import shim_link
from runtime.errors import ShimError
from runtime.streams import REQUEST, RESPONSE, Stream, pack


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
