"""The empty mount namespace of which pauses get copies: there is nothing in it, and nothing can be made."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from runtime.empty_root import EmptyNamespace
from runtime.linux import LinuxKernel
from runtime.namespaces import CLONE_FS, FLAGS
from runtime.own_thread import in_thread_of_its_own
from tests.privileged.runtime_service.harness import Node

pytestmark = pytest.mark.privileged


def test_there_is_nothing_in_it_and_nothing_can_be_made() -> None:
    here, mounts = os.stat("/proc/thread-self/ns/mnt").st_ino, Path("/proc/self/mountinfo").read_text()
    namespace = EmptyNamespace(LinuxKernel())
    found: list[object] = []

    def look() -> None:
        kernel = LinuxKernel()
        held = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.unshare(CLONE_FS)
            kernel.setns(held, FLAGS["mount"])
            found.append(os.listdir("/"))
            found.append(os.listdir("/.."))
            try:
                os.mkdir("/made")
            except OSError as error:
                found.append(error.errno)
        finally:
            os.close(held)

    try:
        assert os.stat(namespace.path).st_ino != here
        in_thread_of_its_own(look)
        assert found == [[], [], errno.EROFS]
    finally:
        namespace.close()
    assert os.stat("/proc/thread-self/ns/mnt").st_ino == here
    assert Path("/proc/self/mountinfo").read_text() == mounts
    descriptor = int(namespace.path.rpartition("/")[2])
    assert not os.path.exists(f"/proc/self/fd/{descriptor}") or os.stat(namespace.path).st_ino != here


def test_each_pause_has_a_copy_of_its_own(node: Node) -> None:
    pauses = [node.sandbox(uid=uid).pid for uid in ("u1", "u2")]
    namespaces = {os.stat(f"/proc/{pid}/ns/mnt").st_ino for pid in (*pauses, "self")}
    assert len(namespaces) == 3
    for pid in pauses:
        (mount,) = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        assert mount.split()[3:6] == ["/", "/", "ro,nosuid,nodev,relatime"] and " - tmpfs " in mount
        assert os.listdir(f"/proc/{pid}/root/") == []
