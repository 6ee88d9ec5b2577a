"""What the manager counts when volumes come and go, and that nothing is left; no mounts here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.errors import VolumeError, VolumesError
from kubelet_py.volumes.manager import VolumeManager
from kubelet_py.volumes.plugin import Context

Object = dict[str, Any]
MAP = {"metadata": {"name": "m", "namespace": "default"}, "data": {"a": "1"}}


def context(*volumes: Object) -> Context:
    body = {
        "metadata": {"name": "p", "namespace": "default", "uid": "uid"},
        "spec": {"containers": [{"name": "c"}], "volumes": [*volumes]},
    }
    return Context(body, lambda kind, name: MAP if name == "m" else None, lambda *_: "")


def counts(manager: VolumeManager) -> dict[tuple[str, str, str], int]:
    (durations,) = manager.instruments
    return {
        (row["volume_plugin"], row["operation_name"], row["status"]): found.count  # type: ignore[union-attr]
        for row, found in durations.rows()
    }


def test_each_volume_is_counted_as_it_comes_and_as_it_goes(tmp_path: Path) -> None:
    manager = VolumeManager(tmp_path)
    volumes = ({"name": "d", "emptyDir": {}}, {"name": "e", "emptyDir": {}})
    found = manager.set_up(context(*volumes, {"name": "m", "configMap": {"name": "m"}}))
    (found["d"].path / "file").write_text("x")
    manager.give_up("uid")
    assert not (tmp_path / "uid/volumes").exists() and (tmp_path / "uid").is_dir()
    empty, maps = "kubernetes.io/empty-dir", "kubernetes.io/configmap"
    wanted = {
        (empty, "volume_mount", "success"): 2,
        (maps, "volume_mount", "success"): 1,
        (empty, "volume_unmount", "success"): 2,
        (maps, "volume_unmount", "success"): 1,
    }
    assert counts(manager) == wanted
    manager.tear_down("uid")
    assert not (tmp_path / "uid").exists()
    manager.tear_down("uid")
    assert counts(manager) == wanted, "what is gone does not go again"


def test_a_failed_one_is_counted_as_such(tmp_path: Path) -> None:
    manager = VolumeManager(tmp_path)
    with pytest.raises(VolumeError):
        manager.set_up(context({"name": "m", "configMap": {"name": "missing"}}))
    assert counts(manager) == {("kubernetes.io/configmap", "volume_mount", "fail-unknown"): 1}


def test_every_volume_that_lacks_something_is_told(tmp_path: Path) -> None:
    manager = VolumeManager(tmp_path)
    volumes = [{"name": name, "configMap": {"name": what}} for name, what in (("a", "x"), ("b", "m"))]
    asked = context(*volumes, {"name": "c", "configMap": {"name": "y"}})
    with pytest.raises(VolumesError) as raised:
        manager.set_up(asked)
    assert raised.value.texts == tuple(
        f'MountVolume.SetUp failed for volume "{name}" : configmap "{what}" not found'
        for name, what in (("a", "x"), ("c", "y"))
    )


def test_what_the_kernel_refuses_is_told_in_words(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(VolumesError) as raised:
        source = {"path": str(link), "type": "File"}
        VolumeManager(tmp_path).set_up(context({"name": "h", "hostPath": source}))
    told = f"Could not use {link}: ELOOP (Too many levels of symbolic links)"
    assert raised.value.texts == (f'MountVolume.SetUp failed for volume "h" : {told}',)


def test_volumes_go_where_the_folder_of_pods_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "pods").symlink_to(tmp_path / "real")
    manager = VolumeManager(tmp_path / "pods")
    manager.set_up(context({"name": "d", "emptyDir": {}}))
    manager.tear_down("uid")
    assert [*(tmp_path / "real").iterdir()] == []


def test_a_key_that_is_no_files_name_is_told_of_and_keeps_no_other_volume_back(tmp_path: Path) -> None:
    data = {"m": {"a": "1"}, "n": {"a": "1"}}
    maps = [{"name": name, "configMap": {"name": name}} for name in data]
    told = replace(context(*maps), lookup=lambda kind, name: {**MAP, "data": data[name]})
    manager = VolumeManager(tmp_path)
    manager.set_up(told)
    data.update(m={"../a": "2"}, n={"a": "2"})
    with pytest.raises(VolumesError, match="invalid path"):
        manager.refresh(told)
    found = tmp_path / "uid/volumes/kubernetes.io~configmap"
    assert (found / "n/a").read_text() == "2" and (found / "m/a").read_text() == "1"
