"""Clearing away what an agent left that was killed in between, with folders but without a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from kubelet_py.paths import NodePaths
from kubelet_py.pods.leftovers import Leftovers, remove_log
from runtime.cgroups.names import PlainNames
from runtime.errors import CgroupError

UID = "11111111-2222-4333-8444-555555555555"


class Cgroups:
    names = PlainNames()

    def __init__(self, *present: str, busy: bool = False) -> None:
        self.present, self.busy = set(present), busy

    def exists(self, path: str) -> bool:
        return path in self.present

    def remove(self, path: str, recursive: bool = False) -> None:
        if self.busy:
            raise CgroupError(f"Could not remove cgroup {path}: EBUSY")
        self.present.remove(path)


class Volumes:
    def __init__(self) -> None:
        self.torn: list[str] = []

    def tear_down(self, uid: str) -> None:
        self.torn.append(uid)


def leftovers(root: Path, cgroups: Cgroups, volumes: Volumes) -> Leftovers:
    return Leftovers(NodePaths(root), cast(Any, cgroups), cast(Any, volumes))


def logs_of(root: Path, uid: str) -> tuple[Path, Path]:
    paths = NodePaths(root)
    folder = paths.pod_logs / f"default_p_{uid}"
    folder.mkdir(parents=True)
    link = paths.container_logs / f"p_default_c-{uid}.log"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(folder / "c/0.log")
    return folder, link


def test_logs_links_cgroup_and_volumes_go_and_other_pods_keep_theirs(tmp_path: Path) -> None:
    folder, link = logs_of(tmp_path, UID)
    others = logs_of(tmp_path, "another")
    group = f"{NodePaths(tmp_path).cgroup_root}/kubepods/burstable/pod"
    cgroups, volumes = Cgroups(f"{group}{UID}", f"{group}another"), Volumes()
    leftovers(tmp_path, cgroups, volumes).clear(UID)
    assert not folder.exists() and not link.is_symlink()
    assert others[0].exists() and others[1].is_symlink()
    assert cgroups.present == {f"{group}another"}
    assert volumes.torn == [UID]


def test_the_folder_stays_while_something_cannot_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    group = f"{NodePaths(tmp_path).cgroup_root}/kubepods/pod{UID}"
    volumes = Volumes()
    leftovers(tmp_path, Cgroups(group, busy=True), volumes).clear(UID)
    assert volumes.torn == [] and "EBUSY" in caplog.text


def test_an_old_attempts_log_goes_with_its_rotated_files_and_its_link(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path)
    folder = paths.pod_logs / f"default_p_{UID}" / "c"
    folder.mkdir(parents=True)
    paths.container_logs.mkdir()
    for name in ("1.log", "1.log.20261127-000000", "1.log.20261126-000000.gz", "11.log", "2.log"):
        (folder / name).write_text("")
    links = [paths.container_logs / f"p_default_c-{name * 64}.log" for name in "ab"]
    links[0].symlink_to(folder / "1.log")
    links[1].symlink_to(folder / "2.log")
    remove_log(paths, "a" * 64, folder / "1.log")
    assert sorted(file.name for file in folder.iterdir()) == ["11.log", "2.log"]
    assert [link.is_symlink() for link in links] == [False, True]
