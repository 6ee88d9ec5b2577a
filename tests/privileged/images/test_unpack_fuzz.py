"""Thousands of hostile archives: refused or unpacked, never a crash, never a change outside of the layer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="the fuzzer mounts and changes its root folder"),
]

ROOT = Path(__file__).parents[3]


def fuzz(jail: Path, seed: int, cases: int, *extra: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(__file__).with_name("unpack_fuzzer.py"))
    command = [sys.executable, program, str(jail), str(seed), str(cases)]
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "--", *command, *extra],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_random_archives_neither_crash_the_unpacker_nor_reach_out_of_the_layer(
    tmp_path: Path, seed: int
) -> None:
    done = fuzz(tmp_path, seed, 1000)
    assert done.returncode == 0, done.stdout + done.stderr
    for ending in ("refused", "unpacked and played back", "unpacked, not to be played back"):
        assert ending in done.stdout, "the generator does not get that far"


def test_the_fuzzer_catches_an_unpacker_that_follows_links(tmp_path: Path) -> None:
    done = fuzz(tmp_path, 1, 10_000, "weak")
    assert done.returncode == 2 and "reached out of the layer" in done.stdout, done.stdout + done.stderr
