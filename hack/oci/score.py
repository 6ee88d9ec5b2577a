"""Runs the validation programs against several runtimes and prints what each scored.

Each program prints the Test Anything Protocol. It passes when it ends by itself with code 0, has no result
that is "not ok", and has one that was not skipped, or plans none and tells of no error (the programs about
hooks do so). A runtime that does nothing (/bin/true) shows how
much of a score is worth nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SECONDS = 90
RESULT = re.compile(r"^(not )?ok\b(.*)$", re.MULTILINE)
# crun 1.8 refuses a host with both cgroup trees unless it cannot see the second one.
CRUN = """#!/bin/sh
exec unshare --mount --propagation slave -- sh -c '
grep -q "/unified cgroup2" /proc/self/mounts && mount -t tmpfs none /sys/fs/cgroup/unified
exec crun "$@"' crun "$@"
"""


@dataclass(frozen=True, slots=True)
class Score:
    """One program against one runtime."""

    passed: bool
    good: int
    bad: int
    skipped: int
    words: str

    def text(self) -> str:
        if self.passed:
            return f"{self.good}" if self.good else "passed"
        if not self.bad and not self.good and self.skipped:
            return "skipped"
        return f"{self.good}, {self.bad} not" if self.bad else f"{self.good}, with an error"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binaries", type=Path)
    parser.add_argument("ours")
    parser.add_argument("--only", default="")
    parser.add_argument("--runtime", action="append", default=[])
    parser.add_argument("--show", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oci-validation-", ignore_cleanup_errors=True) as folder:
        runtimes = available(Path(folder), wanted.ours)
        if wanted.runtime:
            runtimes = {name: path for name, path in runtimes.items() if name in wanted.runtime}
        programs = sorted(p for p in (wanted.binaries / "validation").iterdir() if wanted.only in p.name)
        scores: dict[tuple[str, str], Score] = {}
        for program in programs:
            for name, path in runtimes.items():
                score = scores[program.name, name] = measured(program, path, wanted.binaries, Path(folder))
                print(f"{program.name} {name}: {score.text()}", file=sys.stderr, flush=True)
        unmount_below(folder)
    report([program.name for program in programs], list(runtimes), scores, wanted.show)
    return 0


def unmount_below(folder: str) -> None:
    """What a runtime has left mounted of a root (linux_ns_itype without a mount namespace): no file of procfs
    can be removed, and the score would be lost with the error."""
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split()[4] for line in file]
    for mount in reversed(mounts):
        if mount.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", mount], check=True)


def available(folder: Path, ours: str) -> dict[str, str]:
    """Name → program; those that are not installed are left out, and said."""
    found = {"kubelet-py-oci": ours}
    for name in ("runc", "crun"):
        path = shutil.which(name)
        if path is None:
            print(f"{name} is not installed", file=sys.stderr)
        elif name == "crun":
            wrapper = folder / "crun"
            wrapper.write_text(CRUN)
            wrapper.chmod(0o755)
            found[name] = str(wrapper)
        else:
            found[name] = path
    return {**found, "/bin/true": "/bin/true"}


def measured(program: Path, runtime: str, binaries: Path, folder: Path) -> Score:
    environment = {**os.environ, "RUNTIME": runtime, "TMPDIR": str(folder)}
    process = subprocess.Popen(
        [str(program)], cwd=binaries, env=environment, text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = (process.communicate()[0] or "") + f"\nended after {SECONDS} s"
    return scored(output, process.returncode)


def scored(output: str, code: int) -> Score:
    """TAP and an exit code → score. Results marked TODO are expected to fail and do not count."""
    good = bad = skipped = 0
    for match in RESULT.finditer(output):
        rest = match.group(2)
        if "# SKIP" in rest:
            skipped += 1
        elif "# TODO" not in rest:
            good, bad = (good, bad + 1) if match.group(1) else (good + 1, bad)
    silent = "1..0" in output and '"error"' not in output
    passed = code == 0 and bad == 0 and (good > 0 or silent)
    return Score(passed, good, bad, skipped, output)


def report(
    programs: list[str], runtimes: list[str], scores: dict[tuple[str, str], Score], show: bool
) -> None:
    print(f"| program | {' | '.join(runtimes)} |\n|{'---|' * (len(runtimes) + 1)}")
    for program in programs:
        print(f"| {program} | {' | '.join(scores[program, name].text() for name in runtimes)} |")
    total = len(programs)
    counts = [sum(scores[program, name].passed for program in programs) for name in runtimes]
    good = [sum(scores[program, name].good for program in programs) for name in runtimes]
    bad = [sum(scores[program, name].bad for program in programs) for name in runtimes]
    print(f"| **programs passed, of {total}** | {' | '.join(f'**{count}**' for count in counts)} |")
    print(f"| results ok / not ok | {' | '.join(f'{g} / {b}' for g, b in zip(good, bad, strict=True))} |")
    if show:
        for (program, name), score in scores.items():
            if not score.passed:
                print(f"\n=== {program} {name}\n{score.words.strip()}")


if __name__ == "__main__":
    sys.exit(main())
