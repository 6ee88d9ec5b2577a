"""What GNU tar packs, in each of its formats: we unpack what it would unpack, and can write it again."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.images.store import ImageStore
from runtime.images.unpack import unpack_layer
from tests.unit.images.build import docker_archive, tar_file

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="layers are unpacked by root"),
    pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed"),
]

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep


ATTRIBUTES = ("--xattrs", "--xattrs-include=*")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Long names, links, attributes, times before 1970, a pipe, a device, files with holes everywhere."""
    root = tmp_path / "tree"
    deep = root.joinpath(*["folder-" + "x" * 60] * 5)
    deep.mkdir(parents=True)
    (deep / ("long" * 50)).write_text("deep")
    os.link(deep / ("long" * 50), root / "linked")
    (root / "symbolic").symlink_to("t" * 150)
    os.mkfifo(root / "pipe", 0o620)
    os.mknod(root / "random", 0o020640, os.makedev(1, 8))
    (root / "ping").write_bytes(b"\x7fELF")
    os.setxattr(root / "ping", "security.capability", CAPABILITY)
    os.chown(root / "ping", 70_000, 3_000_000)
    os.chmod(root / "linked", 0o6755)
    os.utime(root / "symbolic", ns=(-5 * 10**9, -5 * 10**9), follow_symlinks=False)
    (root / "ümläut\n").write_text("odd")
    noise = random.Random(3)
    for number in range(4):
        with open(root / f"sparse{number}", "wb") as handle:
            for _ in range(number * 20):
                handle.seek(noise.randrange(64) * 65_536)
                handle.write(noise.randbytes(4096))
            handle.truncate(64 * 65_536 + number)
    return root


def described(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for file in sorted(root.rglob("*")):
        status = file.lstat()
        content: object = None
        if file.is_symlink():
            content = os.readlink(file)
        elif file.is_file():
            content = hashlib.sha256(file.read_bytes()).hexdigest()
        attributes = (
            ()
            if file.is_symlink()
            else tuple((name, os.getxattr(file, name)) for name in sorted(os.listxattr(file)))
        )
        found[str(file.relative_to(root))] = (
            oct(status.st_mode), status.st_rdev, status.st_uid, status.st_gid,
            status.st_nlink * (not file.is_dir()), status.st_mtime_ns // 10**9, content, attributes,
        )  # fmt: skip
    return found


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=gnu", "--sparse"],
        ["--format=posix", *ATTRIBUTES],
        ["--format=posix", "--sparse", "--sparse-version=0.1", *ATTRIBUTES],
        ["--format=posix", "--sparse", "--sparse-version=1.0", *ATTRIBUTES],
    ],
    ids=["gnu", "gnu sparse", "pax", "pax sparse 0.1", "pax sparse 1.0"],
)
def test_the_tree_comes_out_as_gnu_tar_would_have_it(tree: Path, tmp_path: Path, options: list[str]) -> None:
    archive = tmp_path / "layer.tar"
    subprocess.run(["tar", "-C", tree, "-cf", archive, *options, "."], check=True)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder in (theirs, ours):
        folder.mkdir()
    subprocess.run(["tar", "-C", theirs, "--xattrs", "--xattrs-include=*", "-xpf", archive], check=True)
    with open(archive, "rb") as handle:
        unpack_layer(handle, ours)
    assert described(ours) == described(theirs)
    if "--sparse" in options:
        assert (ours / "sparse0").stat().st_blocks == 0, "holes stay holes"
    data = archive.read_bytes()
    store = ImageStore(tmp_path / "store")
    [image] = store.import_archive(io.BytesIO(tar_file(docker_archive([data]))))
    assert b"".join(store.read_layer(store.diff_ids(image.id)[0])) == data
