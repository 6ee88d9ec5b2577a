"""The rehearsal of a shim's life, where programs can be prepared and where they cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PLAY = """
import os, sys
from runtime import program, rehearsal
from runtime.linux import LinuxKernel
from runtime.machine import this_machine
from runtime.pages import Pages
rehearsal.LONGEST_WAIT = 100
program.LOWEST = int(sys.argv[2]) or program.LOWEST
folder = os.open(sys.argv[1], os.O_RDONLY)  # the way of a socket may not be longer than 107 bytes
rehearsal.play(f"/proc/self/fd/{folder}", LinuxKernel(), Pages(this_machine().name), ahead=True)
"""


@pytest.mark.parametrize("lowest", [0, 1 << 62], ids=["prepared", "beyond what can be addressed"])
def test_a_life_is_played_to_its_end(tmp_path: Path, lowest: int) -> None:
    """User-mode Linux and many kernels of arm64 have 39 bits for addresses: no program runs there."""
    command = [sys.executable, "-c", PLAY, str(tmp_path), str(lowest)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
