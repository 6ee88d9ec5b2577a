"""`sudo ./hack/isolate .venv/bin/python -m tests.bench.unpack`: a 50 MB layer, unpacked beside GNU tar.

Both write to a tmpfs, on which the archive lies, too. Ours also computes the layer's digest, which tar does
not, and records the layer's tape. Goal: at most 1.2 × GNU tar (issue 3); layers travel as gzip.
"""

from __future__ import annotations

import argparse
import gzip
import io
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

GOAL = 1.2


def make_layer(megabytes: int, seed: int = 1) -> bytes:
    """A distribution's mix: many small files, some large ones, links; half of the bytes compress well."""
    noise, out = random.Random(seed), io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        number = written = 0
        while written < megabytes << 20:
            if number % 20 == 0:
                folder = tarfile.TarInfo(f"usr/share/part{number // 20}")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(folder)
            size = noise.choice((300, 1500, 4000, 12_000, 40_000, 200_000))
            member = tarfile.TarInfo(f"usr/share/part{number // 20}/file{number}")
            member.size, member.mode, member.mtime = size, 0o644, 1_700_000_000 + number
            content = noise.randbytes(size // 2)
            archive.addfile(member, io.BytesIO(content + b"text " * (size // 10 + 1)))
            if number % 10 == 0:
                link = tarfile.TarInfo(f"usr/share/part{number // 20}/link{number}")
                link.type, link.linkname = tarfile.SYMTYPE, f"file{number}"
                archive.addfile(link)
            number, written = number + 1, written + size
    return out.getvalue()


def measure(times: int, folder: Path, run: Callable[[Path], None]) -> float:
    """The median of the seconds that `run` takes into a fresh folder."""
    spans = []
    for _ in range(times):
        target = folder / "target"
        target.mkdir()
        begun = time.perf_counter()
        run(target)
        spans.append(time.perf_counter() - begun)
        shutil.rmtree(target)
    return statistics.median(spans)


def ours(archive: Path) -> Callable[[Path], None]:
    from runtime.images.tape import TapeWriter
    from runtime.images.unpack import unpack_layer

    def run(target: Path) -> None:
        with open(archive, "rb") as source, open(target.with_name("tape"), "wb") as tape:
            unpack_layer(source, target, None, TapeWriter(tape))

    return run


def gnu_tar(archive: Path) -> Callable[[Path], None]:
    def run(target: Path) -> None:
        subprocess.run(["tar", "-C", target, "-xpf", archive, "--xattrs", "--numeric-owner"], check=True)

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="bench-unpack-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "bench-unpack", base], check=True)
    code = 0
    try:
        plain = make_layer(args.megabytes)
        print(f"| {args.megabytes} MB layer | GNU tar | kubelet-py | ratio | goal |\n|---|---|---|---|---|")
        for kind, data in (("plain", plain), ("gzip", gzip.compress(plain, 6, mtime=0))):
            archive = base / f"layer.{kind}"
            archive.write_bytes(data)
            theirs = measure(args.times, base, gnu_tar(archive))
            own = measure(args.times, base, ours(archive))
            code |= own > GOAL * theirs
            ratio = own / theirs
            print(f"| {kind} | {theirs * 1e3:.0f} ms | {own * 1e3:.0f} ms | {ratio:.2f} | ≤ {GOAL} |")
    finally:
        subprocess.run(["umount", base], check=True)
        base.rmdir()
    return code


if __name__ == "__main__":
    sys.exit(main())
