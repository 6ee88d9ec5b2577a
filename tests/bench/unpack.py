"""`sudo ./hack/isolate .venv/bin/python -m tests.bench.unpack`: a 50 MB layer, unpacked beside GNU tar.

Both write to a tmpfs, on which the archive lies, too, and take turns. Ours also computes the layer's digest,
which tar does not, on a thread of its own, and records the layer's tape: where no core is idle, the processor
time shows what the wall clock will. Goal: at most 1.2 × GNU tar (issue 3); layers travel as gzip.
"""

from __future__ import annotations

import argparse
import gzip
import io
import random
import resource
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


def measure(times: int, folder: Path, *runs: Callable[[Path], None]) -> list[tuple[float, float]]:
    """Medians for each of `runs`, which take turns into fresh folders: seconds, and the processor's."""
    spans: list[list[tuple[float, float]]] = [[] for _ in runs]
    for _ in range(times):
        for number, run in enumerate(runs):
            target = folder / "target"
            target.mkdir()
            begun, used = time.perf_counter(), processor_seconds()
            run(target)
            spans[number].append((time.perf_counter() - begun, processor_seconds() - used))
            shutil.rmtree(target)
    columns = [list(zip(*taken, strict=True)) for taken in spans]
    return [(statistics.median(wall), statistics.median(cpu)) for wall, cpu in columns]


def processor_seconds() -> float:
    """What this process and its children, those that have ended, have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


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
        print(f"| {args.megabytes} MB layer | GNU tar (processor) | kubelet-py (processor) | ratio | goal |")
        print("|---|---|---|---|---|")
        for kind, data in (("plain", plain), ("gzip", gzip.compress(plain, 6, mtime=0))):
            archive = base / f"layer.{kind}"
            archive.write_bytes(data)
            theirs, own = measure(args.times, base, gnu_tar(archive), ours(archive))
            code |= own[0] > GOAL * theirs[0]
            cells = [f"{wall * 1e3:.0f} ms ({cpu * 1e3:.0f})" for wall, cpu in (theirs, own)]
            print(f"| {kind} | {cells[0]} | {cells[1]} | {own[0] / theirs[0]:.2f} | ≤ {GOAL} |")
    finally:
        subprocess.run(["umount", base], check=True)
        base.rmdir()
    return code


if __name__ == "__main__":
    sys.exit(main())
