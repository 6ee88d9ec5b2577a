"""Which of the host's device nodes a privileged container gets."""

from __future__ import annotations

import os
from pathlib import Path

from kubelet_py.pods.host_devices import host_devices


def test_the_hosts_own_devices_are_found() -> None:
    found = {device["path"]: device for device in host_devices()}
    null = os.stat("/dev/null")
    assert found["/dev/null"] == {
        "path": "/dev/null",
        "type": "c",
        "major": 1,
        "minor": 3,
        "fileMode": null.st_mode & 0o7777,
        "uid": null.st_uid,
        "gid": null.st_gid,
    }
    assert not {path for path in found if path.startswith("/dev/pts/")} | {"/dev/ptmx", "/dev/console"} & set(
        found
    )


def test_what_is_no_device_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    (tmp_path / "cdrom").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "initctl")
    (tmp_path / "mapper").mkdir()
    assert host_devices(tmp_path) == []
    assert host_devices(tmp_path / "missing") == []
