"""Folders whose subfolders the file system is told to keep apart: flags read, flags written, refusals."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from kubelet_py.spreading import GET_FLAGS, SET_FLAGS, TOP_OF_HIERARCHY, spread

NO_DUMP = 0x40  # stands for whatever else is set


class FileSystem:
    """Keeps the flags of folders as ioctl(2) would."""

    def __init__(self, flags: dict[str, int], refuses: int = 0) -> None:
        self.flags = flags
        self.refuses = refuses
        self.writes = 0

    def control(self, descriptor: int, request: int, argument: bytes) -> bytes:
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        if request == GET_FLAGS:
            return struct.pack("II", self.flags.get(name, 0), 0)
        assert request == SET_FLAGS
        self.writes += 1
        self.flags[name] = struct.unpack_from("I", argument)[0]
        return argument


def test_missing_folders_are_made_and_marked(tmp_path: Path) -> None:
    disk = FileSystem({})
    spread([tmp_path / "pods", tmp_path / "log/pods-of-logs"], disk.control)
    assert disk.flags == {"pods": TOP_OF_HIERARCHY, "pods-of-logs": TOP_OF_HIERARCHY}
    assert (tmp_path / "log/pods-of-logs").is_dir()


def test_other_flags_stay(tmp_path: Path) -> None:
    disk = FileSystem({"pods": NO_DUMP})
    spread([tmp_path / "pods"], disk.control)
    assert disk.flags == {"pods": NO_DUMP | TOP_OF_HIERARCHY}


def test_a_marked_folder_is_not_written_again(tmp_path: Path) -> None:
    disk = FileSystem({"pods": TOP_OF_HIERARCHY})
    spread([tmp_path / "pods"], disk.control)
    assert disk.writes == 0


def test_a_file_system_without_the_flag_is_used_as_it_is(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    spread([tmp_path / "pods", tmp_path / "logs"], FileSystem({}, refuses=errno.EOPNOTSUPP).control)
    assert (tmp_path / "pods").is_dir() and (tmp_path / "logs").is_dir()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_real_file_system_takes_or_refuses_it(tmp_path: Path) -> None:
    spread([tmp_path / "pods"])
    (tmp_path / "pods/one").mkdir()
