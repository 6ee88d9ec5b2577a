"""Archives that we export are loaded and run by podman, and those that podman saves are imported here."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.images.export import FORMATS, export_images
from runtime.images.store import ImageStore
from tests.privileged.oci_callers.test_podman import Podman

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(shutil.which("podman") is None, reason="podman is missing"),
    pytest.mark.skipif(not Path("/usr/bin/busybox").exists(), reason="/usr/bin/busybox is missing"),
]
NAME = "docker.io/team/busybox:v1"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    made = ImageStore(tmp_path / "store")
    made.from_binary(Path("/usr/bin/busybox"), NAME)
    return made


@pytest.fixture
def podman(oci_binary: str) -> Iterator[Podman]:
    folder = Path(tempfile.mkdtemp(prefix="kpy-", dir="/tmp"))  # podman wants a short path
    made = Podman(folder, oci_binary)
    yield made
    made("rm", "--all", "--force", "-t", "0")
    for root, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
        if made.parent in root:
            os.rmdir(root)
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split()[4] for line in file if str(folder) in line.split()[4]]
    for mount in reversed(mounts):
        subprocess.run(["umount", mount], check=True)
    shutil.rmtree(folder)


@pytest.mark.parametrize("form", FORMATS)
def test_podman_loads_and_runs_what_we_export_and_we_import_what_it_saves(
    form: str, store: ImageStore, podman: Podman, tmp_path: Path
) -> None:
    file, back = tmp_path / "out.tar", tmp_path / "back.tar"
    with open(file, "wb") as handle:
        [image] = export_images(store, [NAME], handle, form)
    loaded = podman("load", "-i", str(file))
    assert loaded.returncode == 0, loaded.stderr
    listed = podman("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").stdout
    assert listed.split() == [NAME, image.id]
    # The image's own command is sh, and its environment has the PATH that finds the applets.
    ran = podman("run", "--rm", "-i", *podman.flags(), NAME, input="cat /etc/passwd | wc -l; exit 4")
    assert (ran.stdout, ran.returncode) == ("5\n", 4), ran.stderr
    saved = podman("save", "--format", form, "-o", str(back), NAME)
    assert saved.returncode == 0, saved.stderr
    other = ImageStore(tmp_path / "other")
    with open(back, "rb") as handle:
        [again] = other.import_archive(handle)
    assert (again.id, again.repo_tags) == (image.id, (NAME,))
    assert store.diff_ids(image.id) == other.diff_ids(again.id)
