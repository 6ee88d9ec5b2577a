"""Which of the host's device nodes a privileged container gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kubelet_py.pods.container_spec import Facts, Mount, oci_spec
from kubelet_py.pods.host_devices import host_devices
from runtime.users import User


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


@pytest.mark.parametrize("place", ["/dev/net", "dev/net/", "//dev//net", "/dev/./net", "/opt/../dev/net"])
def test_no_node_is_made_in_a_volume_however_its_path_is_written(place: str, tmp_path: Path) -> None:
    found = ("/dev/net/tun", "/dev/kvm")
    facts = Facts(
        argv=["x"],
        environment={},
        user=User(0, 0),
        image_config={},
        mounts=[Mount(str(tmp_path), place)],
        resources={},
        oom_score_adj=0,
        hostname="h",
        shm="/dev/shm",
        devices=[{"path": path, "type": "c", "major": 10, "minor": 200} for path in found],
    )
    container = {"name": "c", "securityContext": {"privileged": True}}
    spec = oci_spec({"metadata": {}, "spec": {"containers": [container]}}, container, facts)
    assert [device["path"] for device in spec["linux"]["devices"]] == ["/dev/kvm"]
