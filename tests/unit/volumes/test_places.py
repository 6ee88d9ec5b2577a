"""Volumes that are places on the host: sizes, claims, types, and what a container is given of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.errors import VolumeError
from kubelet_py.volumes import claim, empty_dir, host_path, nfs, ownership, subpath
from kubelet_py.volumes.container_mounts import container_mounts
from kubelet_py.volumes.disk_usage import used
from kubelet_py.volumes.exclusive import Exclusive
from kubelet_py.volumes.manager import VolumeManager
from kubelet_py.volumes.plugin import Context, Volume
from runtime.removal import remove_tree

Object = dict[str, Any]
GI = 1 << 30


def pod(*limits: Object, init: Sequence[Object] = (), **spec: Any) -> Object:
    def container(number: int, amounts: Object) -> Object:
        return {"name": f"c{number}", "resources": {"limits": amounts}}

    return {
        "metadata": {"name": "p", "namespace": "default", "uid": "uid"},
        "spec": {
            "containers": [container(n, amounts) for n, amounts in enumerate(limits)],
            "initContainers": list(init),
            **spec,
        },
    }


def context(body: Object | None = None, node: Object | None = None, **objects: Object) -> Context:
    return Context(body or pod(), lambda kind, name: objects.get(kind), lambda *_: "", node=node or {})


@pytest.mark.parametrize(
    ("body", "limit", "wanted"),
    [
        (pod({}), None, 8 * GI),
        (pod({}), "1Gi", GI),
        (pod({}), "16Gi", 8 * GI),
        (pod({"memory": "2Gi"}), None, 2 * GI),
        (pod({"memory": "2Gi"}), "1Gi", GI),
        (pod({"memory": "2Gi"}), "4Gi", 2 * GI),
        (pod({"memory": "1Gi"}, {"memory": "1Gi"}), None, 2 * GI),
        (pod({"memory": "1Gi"}, init=[{"resources": {"limits": {"memory": "3Gi"}}}]), None, 3 * GI),
        (pod({"memory": "16Gi"}), None, 8 * GI),
    ],
)
def test_an_empty_dir_in_memory_is_no_larger_than_its_pod_may_be(
    body: Object, limit: str | None, wanted: int
) -> None:
    source = {"medium": "Memory", **({"sizeLimit": limit} if limit else {})}
    assert empty_dir.memory_size(body, source, {"memory": "8Gi"}) == wanted


def test_nothing_bounds_the_size_where_nothing_is_known() -> None:
    assert empty_dir.memory_size(pod({}), {}, {}) == 0


@pytest.mark.parametrize(
    ("medium", "limits", "wanted"),
    [
        ("HugePages-2Mi", {"hugepages-1Gi": "1Gi", "hugepages-2Mi": "2Mi"}, 2 << 20),
        ("HugePages", {"hugepages-1Gi": "1Gi"}, GI),
        ("HugePages", {"hugepages-1Gi": "1Gi", "hugepages-2Mi": "2Mi"},
         "medium: HugePages can't be used if container requests multiple huge page sizes"),
        ("HugePages", {}, "medium HugePages: hugePages storage requested, but there is no"),
        ("HugePages-2Mi", {"hugepages-1Gi": "1Gi"}, "medium HugePages-2Mi: hugePages storage requested, but"),
        ("HugePages-many", {"hugepages-1Gi": "1Gi"}, 'unknown storage medium "HugePages-many"'),
        ("HugePages2Mi", {"hugepages-2Mi": "2Mi"}, 'unknown storage medium "HugePages2Mi"'),
        ("Floppy", {}, 'unknown storage medium "Floppy"'),
    ],
)  # fmt: skip
def test_the_size_of_huge_pages(tmp_path: Path, medium: str, limits: Object, wanted: int | str) -> None:
    if isinstance(wanted, int):
        assert empty_dir.page_size(pod(limits), medium) == wanted
        return
    with pytest.raises(VolumeError) as raised:
        empty_dir.set_up(context(pod(limits)), {"medium": medium}, tmp_path / "v")
    assert str(raised.value).startswith(wanted)
    assert not (tmp_path / "v").exists()


def test_usage_counts_each_file_once_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 100_000)
    volume = tmp_path / "volume"
    (volume / "deep").mkdir(parents=True)
    (volume / "deep/file").write_bytes(b"x" * 8192)
    os.link(volume / "deep/file", volume / "again")
    (volume / "link").symlink_to(outside)
    found = used(volume)
    assert found.inodes == 4, "the volume, deep, its file under two names, the link"
    assert 8192 <= found.bytes < 50_000


@pytest.mark.parametrize(
    ("kind", "made", "refusal"),
    [
        ("Directory", "folder", None),
        ("Directory", "file", "is not a directory"),
        ("Directory", None, "is not a directory"),
        ("DirectoryOrCreate", None, None),
        ("DirectoryOrCreate", "file", "is not a directory"),
        ("File", "file", None),
        ("File", "folder", "is not a file"),
        ("File", None, "is not a file"),
        ("FileOrCreate", None, None),
        ("FileOrCreate", "folder", "is not a file"),
        ("Socket", "socket", None),
        ("Socket", "file", "is not a socket file"),
        ("CharDevice", "file", "is not a character device"),
        ("BlockDevice", "file", "is not a block device"),
        ("", None, None),
        ("", "file", None),
        ("Nonsense", "file", "Nonsense is an invalid volume type"),
    ],
)
def test_host_path_types(tmp_path: Path, kind: str, made: str | None, refusal: str | None) -> None:
    path = tmp_path / "it"
    if made == "folder":
        path.mkdir()
    elif made == "file":
        path.write_text("")
    elif made == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    source = {"path": str(path), "type": kind}
    if refusal is None:
        assert host_path.set_up(context(), source) == path
        assert path.exists()
        return
    with pytest.raises(VolumeError) as raised:
        host_path.set_up(context(), source)
    expected = refusal if kind == "Nonsense" else f"hostPath type check failed: {path} {refusal}"
    assert str(raised.value) == expected
    assert path.exists() == (made is not None), "nothing was made"


def test_char_devices_are_recognised() -> None:
    assert host_path.set_up(context(), {"path": "/dev/null", "type": "CharDevice"}) == Path("/dev/null")


def bound(path: str = "/tmp", **more: Any) -> dict[str, Object]:
    """A claim and the volume that it is bound to."""
    return {
        "persistentvolumeclaim": {
            "metadata": {"name": "c", "uid": "claim"},
            "spec": {"volumeName": "pv"},
            "status": {"phase": "Bound"},
        },
        "persistentvolume": {
            "metadata": {"name": "pv"},
            "spec": {"claimRef": {"uid": "claim"}, "local": {"path": path}, **more},
        },
    }


VOLUME = {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}


def set_up(context: Context, volume: Object, folder: Path) -> Volume:
    return claim.set_up(context, volume, folder / "x", Exclusive(folder / "pods"))


HERE = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["here"]}
AFFINITY = {"required": {"nodeSelectorTerms": [{"matchExpressions": [HERE]}]}}


def node(name: str) -> Object:
    return {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}


def test_a_bound_claim_leads_to_its_volume(tmp_path: Path) -> None:
    objects = bound(str(tmp_path), nodeAffinity=AFFINITY)
    assert set_up(context(None, node("here"), **objects), VOLUME, tmp_path) == Volume(tmp_path)
    read_only = {"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}}
    found = set_up(context(None, node("here"), **objects), read_only, tmp_path)
    assert found == Volume(tmp_path, read_only=True)


WHOLE = (
    "Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], failed to process "
    "volumes=[v]: error processing PVC default/c: "
)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda o: o.pop("persistentvolumeclaim"),
            WHOLE + 'failed to fetch PVC from API server: persistentvolumeclaims "c" not found',
        ),
        (lambda o: o["persistentvolumeclaim"]["status"].update(phase="Pending"), WHOLE + "PVC is not bound"),
        (
            lambda o: o["persistentvolumeclaim"]["metadata"].update(deletionTimestamp="now"),
            WHOLE + "PVC is being deleted",
        ),
        (
            lambda o: o.pop("persistentvolume"),
            WHOLE + 'failed to fetch PV pv from API server: persistentvolumes "pv" not found',
        ),
        (
            lambda o: o["persistentvolume"]["spec"]["claimRef"].update(uid="another"),
            WHOLE + 'found PV object "pv" with unexpected pvcUID',
        ),
        (
            lambda o: o["persistentvolume"]["spec"].update(volumeMode="Block"),
            WHOLE + "PV pv has volumeMode Block, which this node does not offer",
        ),
        (
            lambda o: o["persistentvolume"]["spec"].update(nodeAffinity=AFFINITY),
            'MountVolume.NodeAffinity check failed for volume "pv" : no matching NodeSelectorTerms',
        ),
        (
            lambda o: o["persistentvolume"]["spec"]["local"].update(path="/nowhere"),
            'MountVolume.NewMounter initialization failed for volume "pv" : path "/nowhere" does not exist',
        ),
        (
            lambda o: o["persistentvolume"]["spec"]["local"].update(path="/etc/passwd"),
            'MountVolume.NewMounter initialization failed for volume "pv" : path "/etc/passwd" is not '
            "a directory",
        ),
        (
            lambda o: o["persistentvolume"]["spec"].update(local=None, csi={"driver": "x"}),
            'MountVolume.SetUp failed for volume "pv" : no volume plugin matched: persistent volumes of csi '
            "are not supported",
        ),
    ],
)
def test_what_keeps_a_claim_from_being_used(tmp_path: Path, change: Any, text: str) -> None:
    objects = bound(str(tmp_path))
    change(objects)
    spec = (objects.get("persistentvolume") or {}).get("spec") or {}
    if spec.get("local", 1) is None:
        del spec["local"]
    with pytest.raises(claim.ClaimError) as raised:
        set_up(context(None, node("there"), **objects), VOLUME, tmp_path)
    assert str(raised.value) == text


def test_a_volume_of_one_pod_is_refused_to_another_until_that_is_over(tmp_path: Path) -> None:
    objects = bound(str(tmp_path), accessModes=["ReadWriteOncePod"])
    objects["persistentvolume"]["metadata"]["uid"] = "pv-uid"
    first, second = (context(None, node("here"), **objects) for _ in range(2))
    second = replace(second, pod={**second.pod, "metadata": {**second.pod["metadata"], "uid": "second"}})
    assert set_up(first, VOLUME, tmp_path).path == tmp_path
    assert set_up(first, VOLUME, tmp_path).path == tmp_path, "the pod that has it may look again"
    with pytest.raises(claim.ClaimError) as raised:  # also by an agent that begins anew, as set_up here does
        set_up(second, VOLUME, tmp_path)
    assert str(raised.value) == (
        'MountVolume.SetUp failed for volume "pv" : volume uses the ReadWriteOncePod access mode and is '
        "already in use by another pod"
    )
    VolumeManager(tmp_path / "pods").give_up(str(first.pod["metadata"]["uid"]))
    assert set_up(second, VOLUME, tmp_path).path == tmp_path


def test_a_volume_of_one_pod_is_free_when_it_could_not_be_had(tmp_path: Path) -> None:
    objects = bound("/nowhere", accessModes=["ReadWriteOncePod"])
    objects["persistentvolume"]["metadata"]["uid"] = "pv-uid"
    with pytest.raises(claim.ClaimError, match="does not exist"):
        set_up(context(None, node("here"), **objects), VOLUME, tmp_path)
    assert not list(tmp_path.glob("pods/*/exclusive-volumes/*"))


def test_an_ephemeral_claim_must_be_the_pods_own(tmp_path: Path) -> None:
    objects = bound(str(tmp_path))
    volume: Object = {"name": "v", "ephemeral": {"volumeClaimTemplate": {}}}
    with pytest.raises(claim.ClaimError, match="PVC default/p-v was not created for pod default/p"):
        set_up(context(None, node("here"), **objects), volume, tmp_path)
    objects["persistentvolumeclaim"]["metadata"]["ownerReferences"] = [{"controller": True, "uid": "uid"}]
    assert set_up(context(None, node("here"), **objects), volume, tmp_path).path == tmp_path


def test_a_share_is_mounted_with_its_options(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def run(command: Sequence[str]) -> tuple[int, str]:
        asked.append(list(command))
        return 0, ""

    source = {"server": "files", "path": "/export", "readOnly": True}
    nfs.set_up(source, tmp_path / "share", ["vers=4.1"], run=run)
    wanted = ["mount", "-t", "nfs", "-o", "vers=4.1,ro", "files:/export", str(tmp_path / "share")]
    assert asked == [wanted]


def test_a_share_that_cannot_be_mounted_says_what_mount_said(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="mount failed: exit status 32\nMounting command") as raised:
        nfs.set_up({"server": "s", "path": "/e"}, tmp_path / "x", run=lambda _: (32, "access denied\n"))
    assert str(raised.value).endswith("Output: access denied")


def test_without_a_client_the_error_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"no mount\.nfs.*install nfs-common"):
        nfs.set_up({"server": "s", "path": "/e"}, tmp_path / "x", places=str(tmp_path))


def test_a_group_gets_the_tree_and_nothing_beyond_its_links(tmp_path: Path) -> None:
    group = os.getgid()
    outside, volume = tmp_path / "outside", tmp_path / "volume"
    outside.write_text("")
    outside.chmod(0o600)
    (volume / "deep").mkdir(parents=True)
    (volume / "deep/file").write_text("")
    (volume / "deep/file").chmod(0o600)
    (volume / "link").symlink_to(outside)
    ownership.give_to_group(volume, group)
    given = (volume, volume / "deep", volume / "deep/file")
    modes = [path.stat().st_mode & 0o7777 for path in (*given, outside)]
    assert modes == [0o2775, 0o2775, 0o660, 0o600]


def test_a_root_that_is_right_vouches_for_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    file.chmod(0o600)
    tmp_path.chmod(0o2770)
    ownership.give_to_group(tmp_path, tmp_path.stat().st_gid, "OnRootMismatch")
    assert file.stat().st_mode & 0o777 == 0o600
    tmp_path.chmod(0o770)
    ownership.give_to_group(tmp_path, tmp_path.stat().st_gid, "OnRootMismatch")
    assert file.stat().st_mode & 0o777 == 0o660


PLACE = {"v": Volume(Path("/data"))}


def mounted(entry: Object, privileged: bool = False, kinds: set[str] | None = None) -> list[Any]:
    container: Object = {"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v", **entry}]}
    container["securityContext"] = {"privileged": privileged}
    host = ("/", kinds or set())
    return container_mounts(container, PLACE, {"A": "x", "B": "/x", "C": ".."}, Path("/sub"), lambda _: host)


@pytest.mark.parametrize(
    ("entry", "read_only", "recursive"),
    [
        ({}, False, False),
        ({"readOnly": True}, True, False),
        ({"readOnly": True, "recursiveReadOnly": "Disabled"}, True, False),
        ({"readOnly": True, "recursiveReadOnly": "IfPossible"}, True, True),
        ({"readOnly": True, "recursiveReadOnly": "Enabled"}, True, True),
    ],
)
def test_read_only_mounts(entry: Object, read_only: bool, recursive: bool) -> None:
    mount = mounted(entry)[0]
    assert (mount.read_only, mount.recursive_read_only) == (read_only, recursive)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"name": "w"}, "volumeMount 'w' names no volume of the pod"),
        ({"subPath": "/etc"}, "error SubPath `/etc` must not be an absolute path"),
        ({"subPath": "a/../b"}, "unable to provision SubPath `a/../b`: must not contain '..'"),
        ({"subPathExpr": "$(B)"}, "error SubPath `/x` must not be an absolute path"),
        ({"subPathExpr": "$(C)/y"}, "unable to provision SubPath `../y`: must not contain '..'"),
        ({"subPathExpr": "$(A)/$(NO)"}, 'missing value for "NO"'),
        (
            {"mountPropagation": "Bidirectional"},
            "Bidirectional mount propagation is available only to privileged containers",
        ),
        (
            {"mountPropagation": "HostToContainer"},
            'path "/data" is mounted on "/" but it is not a shared or slave mount',
        ),
    ],
)
def test_mounts_that_are_refused(entry: Object, text: str) -> None:
    with pytest.raises(VolumeError) as raised:
        mounted(entry)
    assert str(raised.value) == text


def test_propagation_needs_a_host_that_shares() -> None:
    with pytest.raises(VolumeError, match='path "/data" is mounted on "/" but it is not a shared mount'):
        mounted({"mountPropagation": "Bidirectional"}, privileged=True, kinds={"master"})
    both = mounted({"mountPropagation": "Bidirectional"}, privileged=True, kinds={"shared"})
    one = mounted({"mountPropagation": "HostToContainer"}, kinds={"master"})
    assert [mount.propagation for mount in (*both, *one)] == ["rshared", "rslave"]


def test_a_sub_path_that_is_missing_gets_the_mode_of_the_volumes_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o2777)
    before = os.umask(0o077)
    try:
        os.close(subpath.open_beneath(tmp_path, "a/b"))
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o7777 for name in ("a", "a/b")]
    assert modes == [0o2777, 0o2777]


def test_what_lies_deeper_than_a_path_is_long_is_counted(tmp_path: Path) -> None:
    """Or a container would hide there what it takes of the disk."""
    held = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=held)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=held)
        os.close(held)
        held = inner
    file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=held)
    os.write(file, bytes(1 << 20))
    os.close(file)
    os.close(held)
    before = len(os.listdir("/proc/self/fd"))
    found = used(tmp_path)
    assert found.bytes >= 1 << 20 and found.inodes == 32
    assert len(os.listdir("/proc/self/fd")) == before
    remove_tree(tmp_path / ("d" * 200))


def test_a_tree_deeper_than_the_stack_is_given_to_a_group(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o600)
    (tmp_path / "link").symlink_to("/etc/passwd")
    held = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", 0o700, dir_fd=held)
        os.mkdir("beside", 0o700, dir_fd=held)
        inner = os.open("d", os.O_RDONLY, dir_fd=held)
        os.close(held)
        held = inner
    before = len(os.listdir("/proc/self/fd"))
    ownership.give_to_group(tmp_path, os.getgid())
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.fstat(held).st_mode & 0o7777 == 0o2770
    assert (tmp_path / "d/d/beside").stat().st_mode & 0o7777 == 0o2770
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o660
    os.close(held)
    for name in ("d", "beside"):
        remove_tree(tmp_path / name)


def test_a_folder_that_is_moved_away_leads_the_group_nowhere_else(tmp_path: Path) -> None:
    for name in ("volume/one/inner", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    walk = ownership._folders(tmp_path / "volume")
    for _ in range(3):
        next(walk)
    (tmp_path / "volume/one/inner").rename(tmp_path / "elsewhere/inner")
    with pytest.raises(OSError, match="a folder was moved"):
        next(walk)
