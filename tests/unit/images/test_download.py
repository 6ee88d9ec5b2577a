"""What a server says of the part of a blob that it sends: runtime/images/download.py."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.images import download
from runtime.images.errors import DigestMismatch
from runtime.images.manifest import Descriptor, digest_of

LONG = "9" * 5000  # more digits than int() takes


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("bytes 5-9/10", (5, 10)),
        ("bytes 5-9/*", (5, None)),
        ("bytes */10", (None, 10)),
        ("", (None, None)),
        (f"bytes {LONG}-9/10", (None, None)),
        (f"bytes 5-9/{LONG}", (None, None)),
    ],
)
def test_where_a_part_lies(said: str, found: tuple[int | None, int | None]) -> None:
    response: Any = SimpleNamespace(headers={"Content-Range": said}, status_code=206)
    assert download._place(response) == found


@pytest.mark.parametrize(("length", "whole"), [("7", True), ("8", False), ("", False), (LONG, False)])
def test_whether_a_body_ended_where_it_should(length: str, whole: bool) -> None:
    response: Any = SimpleNamespace(headers={"Content-Length": length}, raw=SimpleNamespace(tell=lambda: 7))
    assert download._told_its_end(response) is whole


@pytest.mark.parametrize(("length", "found"), [("7", 7), ("", None), (LONG, None)])
def test_how_long_a_whole_answer_is(length: str, found: int | None) -> None:
    response: Any = SimpleNamespace(headers={"Content-Length": length}, status_code=200)
    assert download._place(response) == (0, found)


@pytest.mark.parametrize("size", [1, 9])
def test_a_manifest_with_a_wrong_size_takes_no_whole_blob_from_other_pulls(size: int) -> None:
    """They may have it open, to unpack it."""
    shared = io.BytesIO(b"layer")
    descriptor = Descriptor("", digest_of(b"layer"), size)
    with pytest.raises(DigestMismatch, match=f"has 5 bytes, the manifest says {size}$"):
        download.Download(descriptor, shared, None, threading.Event())
    assert shared.getvalue() == b"layer"


def test_a_part_that_is_too_long_is_thrown_away() -> None:
    part = io.BytesIO(b"wrong")
    download.Download(Descriptor("", digest_of(b"w"), 1), part, None, threading.Event())
    assert part.getvalue() == b""
