"""Somebody swaps folders for symlinks while we resolve: we must never end up outside (E06, E10)."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import pytest

from runtime.linux import LinuxKernel
from runtime.mounting import make_inside

pytestmark = pytest.mark.privileged

RENAME_EXCHANGE = 2
TRIES = 3000


def swapper(first: Path, second: Path, stop: threading.Event) -> None:
    libc = ctypes.CDLL(None)
    while not stop.is_set():
        libc.renameat2(-100, bytes(first), -100, bytes(second), RENAME_EXCHANGE)


@pytest.mark.parametrize("folder", [True, False])
def test_a_swapped_symlink_never_leads_outside(tmp_path: Path, folder: bool) -> None:
    """CVE-2021-30465 and CVE-2024-45310: rename exchange against look-up and against mkdir -p."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "volume/real").mkdir(parents=True)
    outside.mkdir()
    (root / "volume/link").symlink_to(f"../../../../../../../../{outside}")
    stop = threading.Event()
    thread = threading.Thread(target=swapper, args=(root / "volume/real", root / "volume/link", stop))
    kernel = LinuxKernel()
    root_fd = os.open(root, os.O_PATH)
    thread.start()
    reached, refused = 0, 0
    try:
        for number in range(TRIES):
            try:
                fd = make_inside(kernel, root_fd, f"/volume/real/sub{number % 50}/deep", folder=folder)
            except OSError:
                refused += 1
                continue
            target = os.readlink(f"/proc/self/fd/{fd}")
            os.close(fd)
            assert target.startswith(str(root)), target
            reached += 1
    finally:
        stop.set()
        thread.join()
        os.close(root_fd)
    assert list(outside.iterdir()) == []
    assert reached > 0
