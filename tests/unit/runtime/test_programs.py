"""Compiled filters on disk: only what was made of exactly this profile, by this compiler, is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import SeccompError
from runtime.seccomp import filter, programs

PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}],
}


def test_a_profile_is_compiled_once(tmp_path: Path) -> None:
    folder = tmp_path / "root/.seccomp"
    seen: list[Any] = []

    def compiled(profile: Any) -> tuple[bytes, int]:
        seen.append(profile)
        return filter.compiled(profile)

    first = programs.Programs(str(folder), compiled).compiled(PROFILE)
    assert programs.Programs(str(folder), compiled).compiled(PROFILE) == first == filter.compiled(PROFILE)
    assert len(seen) == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]


def test_another_profile_is_another_program(tmp_path: Path) -> None:
    kept = programs.Programs(str(tmp_path))
    log = {**PROFILE, "flags": ["SECCOMP_FILTER_FLAG_LOG"]}
    assert kept.compiled(PROFILE) != kept.compiled(log)
    # One file for both: as two profiles with one checksum.
    one, two = sorted(tmp_path.iterdir())
    two.write_bytes(one.read_bytes())
    assert kept.compiled(PROFILE) == filter.compiled(PROFILE)
    assert kept.compiled(log) == filter.compiled(log)


@pytest.mark.parametrize("spoilt", [b"", b"\0", b"half"])
def test_a_broken_file_is_made_anew(tmp_path: Path, spoilt: bytes) -> None:
    kept = programs.Programs(str(tmp_path))
    kept.compiled(PROFILE)
    path = next(tmp_path.iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:20] if spoilt == b"half" else spoilt)
    assert kept.compiled(PROFILE) == filter.compiled(PROFILE)
    assert path.read_bytes() == whole


def test_the_folder_does_not_grow_for_ever(tmp_path: Path) -> None:
    kept = programs.Programs(str(tmp_path))
    for number in range(programs.KEPT + 5):
        kept.compiled({**PROFILE, "defaultErrnoRet": number})
    assert len(os.listdir(tmp_path)) <= programs.KEPT


def test_a_profile_that_cannot_be_compiled_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SeccompError):
        programs.Programs(str(tmp_path)).compiled({"defaultAction": "SCMP_ACT_DREAM"})
    assert not os.listdir(tmp_path)
