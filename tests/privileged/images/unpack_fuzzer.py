"""Unpacks random and hostile archives in a jail and says what they broke; run by test_unpack_fuzz.py.

`unpack_fuzzer.py JAIL SEED CASES [weak]`, in a mount namespace of its own: JAIL becomes a tmpfs and then
the root folder, so that even an unpacker that has been weakened on purpose cannot reach a file of the host.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import runtime.images.unpack as subject
from runtime.images.errors import UnpackError
from runtime.images.tape import TapeWriter, play
from runtime.images.unpack import Limits, unpack_layer

PARTS = [b"a", b"b", b"c", b"d", b".", b"", b"..", b".wh.a", b".wh..wh..opq", b".wh..", b"dev", b"\xff\n"]
WEIGHTS = [9, 9, 9, 4, 1, 1, 1, 2, 2, 1, 1, 1]
TARGETS = [b"/outside", b"/secret", b"../../secret", b"..", b"/", b"a", b"b/c", b"/proc/self/root/secret"]
KINDS = b"0000000111222222555556347SLKxg\0" + bytes([0x7A])
ENTRIES = 14


def name(rng: random.Random) -> bytes:
    parts = rng.choices(PARTS, WEIGHTS, k=rng.randint(1, 4))
    text = b"/".join(parts)
    return (b"/" if rng.random() < 0.1 else b"") + text + (b"x" * 250 if rng.random() < 0.02 else b"")


def header(rng: random.Random, kind: int, size: int) -> bytes:
    block = bytearray(512)
    text = name(rng)[:100]
    block[0 : len(text)] = text
    owner = rng.choice((0, 0, 0, 1000, 2**21 - 1))
    mode = rng.choice((0o755, 0o644, 0o4755, 0))
    fields = ((100, 8, mode), (108, 8, owner), (116, 8, owner), (124, 12, size), (136, 12, 1_700_000_000))
    for offset, width, value in fields:
        block[offset : offset + width] = f"{value:0{width - 1}o}\0".encode()
    block[156] = kind
    target = rng.choice((rng.choice(TARGETS), name(rng)))[:100]
    block[157 : 157 + len(target)] = target
    block[257:265] = b"ustar\x0000"
    if kind in b"34":
        block[329:337], block[337:345] = b"0000001\0", rng.choice((b"0000001\0", b"0000003\0"))
    if rng.random() < 0.03:
        block[rng.randrange(512)] = rng.randrange(256)
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 2
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def archive(rng: random.Random) -> bytes:
    out = []
    for _ in range(rng.randint(1, ENTRIES)):
        kind = rng.choice(KINDS)
        if kind in b"xg":
            choices = [
                (b"path", name(rng)),
                (b"linkpath", rng.choice(TARGETS)),
                (b"size", b"%d" % rng.randint(-5, 999)),
                (b"mtime", b"-1.5"),
                (b"uid", b"%d" % rng.choice((5, -1, 2**33))),
                (b"SCHILY.xattr.user.k", b"v"),
                (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
                (b"GNU.sparse.map", b"0,5,9,%d" % rng.randint(0, 9)),
                (b"GNU.sparse.size", b"50"),
            ]
            body = b"".join(record(*rng.choice(choices)) for _ in range(rng.randint(1, 2)))
        elif kind in b"LK":
            body = rng.choice((name(rng), rng.choice(TARGETS), b"n" * rng.randint(90, 300))) + b"\0"
        elif kind in b"07S\0":
            body = rng.randbytes(rng.choice((0, 5, 5, 512, 512, 1500, 70_000)))
        else:
            body = b""
        out.append(header(rng, kind, len(body)) + body + bytes(-len(body) % 512))
    data = bytearray(b"".join(out) + bytes(1024))
    if rng.random() < 0.15:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.05:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def outside() -> list[tuple[object, ...]]:
    """Everything in the jail but the layer."""
    found: list[tuple[object, ...]] = []
    for folder, folders, files in os.walk("/"):
        folders[:] = [item for item in folders if os.path.join(folder, item) not in ("/proc", "/work/layer")]
        for item in (*folders, *files):
            path = os.path.join(folder, item)
            status = os.lstat(path)
            content = Path(path).read_bytes() if stat.S_ISREG(status.st_mode) else b""
            attributes = tuple(os.listxattr(path, follow_symlinks=False))
            numbers = (status.st_mode, status.st_uid, status.st_nlink, status.st_mtime_ns)
            found.append((path, *numbers, content, attributes))
    return sorted(found, key=str)


def case(rng: random.Random) -> str:
    """Unpack one archive; how it ended."""
    data = archive(rng)
    layer = Path("/work/layer")
    layer.mkdir()
    tape_file = io.BytesIO()
    tape = TapeWriter(tape_file)
    try:
        found = unpack_layer(io.BytesIO(data), layer, Limits(entries=100, bytes=1 << 20), tape)
    except UnpackError:
        return "refused"
    assert found.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}", "wrong digest"
    if tape.broken:
        return "unpacked, not to be played back"
    Path("/tape").write_bytes(tape_file.getvalue())
    again = b"".join(play(Path("/tape"), layer))
    Path("/tape").unlink()
    assert again == data, "the tape does not give the archive back"
    return "unpacked and played back"


def enter(jail: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "fuzz", jail], check=True)
    (jail / "proc").mkdir()
    subprocess.run(["mount", "-t", "proc", "-o", "ro", "proc", jail / "proc"], check=True)
    os.chroot(jail)
    os.chdir("/")
    Path("/outside").write_text("untouched")
    Path("/secret/folder").mkdir(parents=True)
    Path("/secret/file").write_text("untouched")
    Path("/work").mkdir()


def main() -> int:
    jail, seed, cases = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if sys.argv[4:] == ["weak"]:
        # What a naive unpacker does: let symbolic links lead where they like.
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        subject.open_in_root = lambda root, path: os.open(path, flags, dir_fd=root)  # type: ignore[assignment]
    random.Random(0).choices(PARTS)  # everything is loaded before the jail hides the libraries
    enter(jail)
    before = outside()
    counts: dict[str, int] = {}
    for number in range(1, cases + 1):
        try:
            ended = case(random.Random(f"{seed}/{number}"))
        except BaseException as error:
            print(f"case {seed}/{number}: {type(error).__name__}: {error}")
            return 1
        counts[ended] = counts.get(ended, 0) + 1
        os.utime("/work", ns=(0, 0))
        shutil.rmtree("/work/layer")
        if number == 1:
            before = outside()
        now = outside()
        changed = [item for item in now if item not in before and item[0] not in ("/work", "/")]
        gone = {item[0] for item in before} - {item[0] for item in now}
        if changed or gone:
            print(f"case {seed}/{number} reached out of the layer: {changed[:2]} {sorted(gone)[:2]}")
            return 2
    print(cases, counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
