from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator

import pytest
import zstandard

from runtime.images.errors import UnpackError
from runtime.images.plain import CHUNK, Hashed, decompress
from runtime.images.sparse import SparseMap
from runtime.images.tarstream import Entry, TarReader
from tests.unit.images.build import digest, info, tar_of

LONG = "d/" * 60 + "name"


def read(data: bytes, step: int = 1000) -> list[tuple[Entry, bytes]]:
    """Entries with content, fed in odd pieces so that every border falls somewhere."""
    reader = TarReader(data[i : i + step] for i in range(0, len(data), step))
    return [(entry, b"".join(reader.content())) for entry in reader]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("step", [1, 511, 512, 100_000])
def test_every_dialect_is_read(form: int, step: int) -> None:
    data = tar_of(
        [
            (info("a/", tarfile.DIRTYPE, mode=0o755), b""),
            (info(LONG, mtime=7, uid=1000, gid=10), b"x" * 513),
            (info("s", tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
            (info("h", tarfile.LNKTYPE, linkname="a/b"), b""),
        ],
        form,
    )
    found = read(data, step)
    assert [entry.kind for entry, _ in found] == ["dir", "file", "symlink", "link"]
    assert found[1][0].name == LONG.encode() and found[1][1] == b"x" * 513
    assert (found[1][0].uid, found[1][0].gid, found[1][0].mtime) == (1000, 10, 7 * 10**9)
    assert found[2][0].target == b"/etc/passwd"


def test_pax_carries_long_links_large_owners_fractions_and_attributes() -> None:
    member = info("f", uid=2**31, mtime=1.5)
    member.pax_headers = {"SCHILY.xattr.user.note": "hello"}
    entry, _ = read(tar_of([(member, b"")]))[0]
    assert (entry.uid, entry.mtime, entry.xattrs) == (2**31, 1_500_000_000, {"user.note": b"hello"})


def test_gnu_numbers_larger_than_octal_fields_are_read() -> None:
    entry, _ = read(tar_of([(info("f", uid=2**30, mtime=-5), b"")], tarfile.GNU_FORMAT))[0]
    assert (entry.uid, entry.mtime) == (2**30, -5 * 10**9)


def test_content_that_is_not_read_is_skipped() -> None:
    reader = TarReader(iter([tar_of([(info("a"), b"1" * 5000), (info("b"), b"2")])]))
    assert [entry.name for entry in reader] == [b"a", b"b"]


def pax(records: dict[str, str], content: bytes = b"") -> bytes:
    member = info("f")
    member.pax_headers = records
    return tar_of([(member, content)])


MAP = "GNU.sparse."
ONE = {MAP + "major": "1", MAP + "minor": "0", MAP + "realsize": "100", MAP + "name": "real"}


def test_sparse_maps_of_both_pax_formats_are_read() -> None:
    [(entry, content)] = read(pax(ONE, b"2\n0\n3\n90\n4\n".ljust(512, b"\0") + b"abcdefg"))
    assert entry.sparse == SparseMap(100, ((0, 3), (90, 4)))
    assert (entry.name, content, entry.size) == (b"real", b"abcdefg", 7)
    older = {MAP + "size": "9", MAP + "numblocks": "1", MAP + "map": "2,3", MAP + "name": "n"}
    [(entry, content)] = read(pax(older, b"abc"))
    assert entry.sparse == SparseMap(9, ((2, 3),)) and content == b"abc"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"x" * 512, "not octal"),
        (b"7" * 1024, "checksum"),
        (tar_of([(info("f"), b"1" * 600)])[:700], "middle"),
        (tar_of([(info("f"), b"")])[:300], "middle"),
        (pax({MAP + "offset": "1", MAP + "size": "9"}), "unknown format"),
        (pax({MAP + "map": "5,5,0,1", MAP + "size": "99"}, b"123456"), "overlaps"),
        (pax({MAP + "map": "0,6", MAP + "size": "5"}, b"123456"), "does not fit"),
        (pax({MAP + "map": "0,5", MAP + "size": "9"}, b"123456"), "does not fit"),
        (pax({MAP + "map": "0,-5", MAP + "size": "9"}, b"123456"), "bad number"),
        (pax({MAP + "map": "0", MAP + "size": "9"}, b"123456"), "cut short"),
        (pax(ONE, b"1\n"), "cut short"),
        (pax(ONE, b"9999999\n".ljust(512, b"1")), "more than 100000"),
        (pax(ONE, b"1" * 2048), "bad number"),
    ],
)
def test_damaged_and_unsupported_archives_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(UnpackError, match=why):
        read(data)


PLAIN = tar_of([(info("f"), b"content" * 100_000)])


@pytest.mark.parametrize(
    "packed",
    [
        PLAIN,
        gzip.compress(PLAIN),
        gzip.compress(PLAIN[:5000]) + gzip.compress(PLAIN[5000:]) + bytes(100),
        zstandard.compress(PLAIN),
        zstandard.compress(PLAIN[:5000]) + zstandard.compress(PLAIN[5000:]),
    ],
    ids=["plain", "gzip", "gzip members and padding", "zstd", "zstd frames"],
)
def test_compression_is_recognised_and_the_digest_is_of_the_plain_bytes(packed: bytes) -> None:
    hashed = Hashed(decompress(io.BytesIO(packed)), 1 << 30)
    assert b"".join(hashed) == PLAIN
    assert hashed.digest == digest(PLAIN) and hashed.length == len(PLAIN)


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        (gzip.compress(PLAIN)[:-20], "cut short|damaged"),
        (b"\x1f\x8b" + b"junk" * 20, "damaged"),
        (b"\x28\xb5\x2f\xfd" + b"junk" * 20, "damaged"),
        (b"BZh9" + b"junk", "bzip2"),
    ],
)
def test_damaged_compression_is_refused(packed: bytes, why: str) -> None:
    with pytest.raises(UnpackError, match=why):
        for _ in decompress(io.BytesIO(packed)):
            pass


def test_a_bomb_is_stopped_at_the_limit() -> None:
    """I01: gzip shrinks zeros a thousandfold; memory and disk must not pay for it."""
    largest = 0

    def watched() -> Iterator[bytes]:
        nonlocal largest
        for chunk in decompress(io.BytesIO(gzip.compress(bytes(20 << 20)))):
            largest = max(largest, len(chunk))
            yield chunk

    hashed = Hashed(watched(), 1 << 20)
    with pytest.raises(UnpackError, match="more than 1048576 bytes"):
        for _ in hashed:
            pass
    assert largest <= CHUNK and hashed.length <= (1 << 20) + largest
