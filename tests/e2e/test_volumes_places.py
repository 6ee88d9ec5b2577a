"""Volumes that are places of the node or come from elsewhere: hostPath, claims, images, shares, sub-paths."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from e2e_node import Node
from volume_pods import event, holding, looking, over

pytestmark = pytest.mark.e2e

Object = dict[str, Any]


@pytest.fixture(scope="module")
def host(node: Node) -> Path:
    """A folder of the host with one of each kind of file."""
    folder = node.root / "home/host"
    (folder / "folder").mkdir(parents=True)
    (folder / "file").write_text("from the host\n")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(folder, os.O_PATH)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    return folder


TYPES = [
    ("Directory", "folder", ""),
    ("Directory", "file", "is not a directory"),
    ("Directory", "missing", "is not a directory"),
    ("DirectoryOrCreate", "made-folder", ""),
    ("File", "file", ""),
    ("File", "folder", "is not a file"),
    ("FileOrCreate", "made-file", ""),
    ("Socket", "socket", ""),
    ("Socket", "file", "is not a socket file"),
    ("CharDevice", "file", "is not a character device"),
    ("BlockDevice", "file", "is not a block device"),
]


def test_host_paths_of_every_type(node: Node, host: Path) -> None:
    pods = {}
    for kind, name, _ in TYPES:
        volume = {"name": "v", "hostPath": {"path": str(host / name), "type": kind}}
        pods[kind, name] = looking(f"host-{kind.lower()}-{name}", "ls -d /v", [volume])
    node.apply(*pods.values())
    for kind, name, refusal in TYPES:
        title = pods[kind, name]["metadata"]["name"]
        if refusal:
            text = f"hostPath type check failed: {host / name} {refusal}"
            wanted = f'MountVolume.SetUp failed for volume "v" : {text}'
            assert event(node, title, "FailedMount") == wanted
        else:
            assert over(node, title) == ["/v"]
    assert (host / "made-folder").is_dir() and (host / "made-file").is_file()
    assert not (host / "missing").exists()


def test_a_host_path_may_be_a_link(node: Node, host: Path) -> None:
    (host / "target").mkdir()
    (host / "target" / "inside").write_text("seen through the link\n")
    (host / "link").symlink_to(host / "target")
    volume = {"name": "v", "hostPath": {"path": str(host / "link")}}
    node.apply(looking("host-link", "cat /v/inside", [volume]))
    assert over(node, "host-link") == ["seen through the link"]


def local_volume(name: str, folder: Path, host: str, class_name: str) -> list[Object]:
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": class_name,
        "local": {"path": str(folder)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
    }
    return [{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}]


def claim(name: str, class_name: str) -> Object:
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": class_name,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def test_a_local_volume_is_claimed_by_its_first_pod_and_outlives_it(node: Node, host: Path) -> None:
    hostname = node.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}").out
    folder = host / "disk"
    folder.mkdir()
    waits = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "local"},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    node.apply(waits, *local_volume("disk", folder, hostname, "local"), claim("data", "local"))
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": "data"}}
    script, group = "echo kept > /v/file; stat -c %g /v/file", {"fsGroup": 4000}
    node.apply(looking("writer", script, [volume], securityContext=group))
    assert over(node, "writer") == ["4000"]
    listed = node.kubectl("get", "pvc", "data", "--no-headers").out.split()
    assert listed[:5] == ["data", "Bound", "disk", "1Gi", "RWO"]
    assert "default/data" in node.kubectl("get", "pv", "disk").out
    node.kubectl("delete", "pod", "writer")
    read_only = {"name": "v", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}}
    node.apply(looking("reader", "cat /v/file; touch /v/x 2>&1 || true", [read_only]))
    assert over(node, "reader") == ["kept", "touch: /v/x: Read-only file system"]


def test_a_host_path_volume_and_one_whose_folder_is_missing(node: Node, host: Path) -> None:
    hostname = node.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}").out
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "host",
        "hostPath": {"path": str(host / "pv"), "type": "DirectoryOrCreate"},
    }
    plain = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "plain"}, "spec": spec}
    nowhere = local_volume("nowhere", host / "not-there", hostname, "nowhere")
    node.apply(plain, *nowhere, claim("plain", "host"), claim("nowhere", "nowhere"))

    def uses(name: str) -> Object:
        volume = {"name": "v", "persistentVolumeClaim": {"claimName": name}}
        return looking(f"uses-{name}", "echo x > /v/file", [volume])

    node.apply(uses("plain"), uses("nowhere"))
    assert over(node, "uses-plain") == [] and (host / "pv/file").read_text() == "x\n"
    text = f'path "{host / "not-there"}" does not exist'
    wanted = f'MountVolume.NewMounter initialization failed for volume "nowhere" : {text}'
    assert event(node, "uses-nowhere", "FailedMount") == wanted


def test_the_volume_of_one_pod_is_kept_from_another_that_names_its_node(node: Node, host: Path) -> None:
    hostname = node.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}").out
    folder = host / "sole"
    folder.mkdir()
    volume, wanted = local_volume("sole", folder, hostname, "sole")[0], claim("sole", "sole")
    for one in (volume, wanted):
        one["spec"]["accessModes"] = ["ReadWriteOncePod"]
    node.apply(volume, wanted)
    source = {"name": "v", "persistentVolumeClaim": {"claimName": "sole"}}
    node.apply(holding("sole-first", source, nodeName=hostname))
    node.wait_running("sole-first")
    node.apply(looking("sole-second", "echo mine > /v/file", [source], nodeName=hostname))
    text = "volume uses the ReadWriteOncePod access mode and is already in use by another pod"
    assert event(node, "sole-second", "FailedMount") == f'MountVolume.SetUp failed for volume "sole" : {text}'
    assert not (folder / "file").exists()
    node.kubectl("delete", "pod", "sole-first", "--grace-period=0", "--force")
    assert over(node, "sole-second") == [] and (folder / "file").read_text() == "mine\n"


def test_an_image_as_a_volume(node: Node) -> None:
    volume = {"name": "v", "image": {"reference": "busybox", "pullPolicy": "Never"}}
    script = "ls /v/bin | grep -x busybox; /v/bin/busybox true 2>&1; touch /v/x 2>&1 || true"
    missing = {"name": "v", "image": {"reference": "absent:1", "pullPolicy": "Never"}}
    below = [{"name": "v", "mountPath": "/tools", "subPath": "bin"}]
    node.apply(
        looking("image", script, [volume]),
        looking("image-below", "ls /tools | grep -x busybox", [volume], mounts=below),
        holding("image-missing", missing),
    )
    said = over(node, "image")
    assert said[0] == "busybox" and "Permission denied" in said[1]
    assert said[2] == "touch: /v/x: Read-only file system"
    assert over(node, "image-below") == ["busybox"]

    def waiting() -> str:
        statuses = node.get("pod", "image-missing").get("status", {}).get("containerStatuses") or [{}]
        return str(((statuses[0].get("state") or {}).get("waiting") or {}).get("reason"))

    node.until("ErrImageNeverPull", lambda: waiting() == "ErrImageNeverPull")


def test_a_share_without_a_client_says_what_is_missing(node: Node) -> None:
    if shutil.which("mount.nfs", path="/usr/sbin:/sbin"):
        pytest.skip("this host has mount.nfs")
    node.apply(holding("share", {"name": "v", "nfs": {"server": "192.0.2.1", "path": "/export"}}))
    text = "mount failed: this node has no mount.nfs, which nfs volumes need (install nfs-common)"
    assert event(node, "share", "FailedMount") == f'MountVolume.SetUp failed for volume "v" : {text}'
