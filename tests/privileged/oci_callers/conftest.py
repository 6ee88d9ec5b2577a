"""kubelet-py-oci as one executable file, which is what other people's engines ask for, and a busybox root."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bundle import Bundle

from runtime.oci_launcher import write

APPLETS = (
    "sh", "ls", "cat", "id", "echo", "sleep", "true", "tty", "pwd", "touch", "stat", "mount", "grep", "mkdir",
    "umount", "hostname", "wc", "httpd", "wget", "ip",
)  # fmt: skip


@pytest.fixture(scope="module")
def oci_binary(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bin") / "kubelet-py-oci"
    write(path, path.with_suffix(".code"))
    return str(path)


@pytest.fixture(scope="module")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not Path("/usr/bin/busybox").exists():
        pytest.skip("/usr/bin/busybox is missing")
    root = tmp_path_factory.mktemp("root")
    for folder in ("bin", "etc", "full"):
        (root / folder).mkdir()
    shutil.copy("/usr/bin/busybox", root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (root / "full/file").write_text("from the image\n")
    root.chmod(0o755)
    return root


@pytest.fixture(scope="module")
def layer(busybox_root: Path) -> bytes:
    """The root as an uncompressed layer."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in sorted(os.listdir(busybox_root)):
            archive.add(busybox_root / name, arcname=name)
    return file.getvalue()


@pytest.fixture
def bundle(tmp_path: Path, oci_binary: str, busybox_root: Path) -> Iterator[Bundle]:
    made = Bundle(tmp_path, oci_binary, busybox_root)
    yield made
    made("delete", "--force", made.identity)
