"""A lab's folder on file systems of other kinds than the usual one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubelet_py.cli.lab.down import remove
from kubelet_py.cli.lab.layout import LabPaths

pytestmark = pytest.mark.privileged

ENTER = """
import sys
from pathlib import Path
from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.lab import disk
from runtime.linux import LinuxKernel
top = Path(sys.argv[1])
tree = disk.Tree(top / "disk", top / "work", top / "root", (), ())
disk.prepare(tree)
try:
    disk._over(LinuxKernel(), tree, "etc")
except CommandError as error:
    print(error)
else:
    Path(tree.root, "etc/written").write_text("kept")
    print((tree.disk / "etc/written").read_text())
"""

NODE = """
import subprocess, sys
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "etc-test", "/etc"], check=True)
for name in ("kubelet-py/node.json", "cni/net.d/10-host.conflist", "cni/kept", "kept"):
    Path("/etc", name).parent.mkdir(parents=True, exist_ok=True)
    Path("/etc", name).write_text("the host's")
""" + ENTER.replace(
    '    Path(tree.root, "etc/written")',
    """    etc = Path(tree.root, "etc")
    print(sorted(str(path.relative_to(etc)) for path in etc.rglob("*") if path.is_file()))
    Path(tree.root, "etc/written")""",
)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "lab-test", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def enter(folder: Path, program: str = ENTER) -> str:
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_machine_writes_to_its_own_disk(mounted: Path) -> None:
    assert enter(mounted) == "kept\n"


def test_a_machine_does_not_see_the_certificates_and_the_network_of_the_hosts_own_node(mounted: Path) -> None:
    assert enter(mounted, NODE) == "['cni/kept', 'kept']\nkept\n"


def test_a_folder_on_an_overlay_is_refused_with_what_to_do(mounted: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (mounted / name).mkdir()
    merged = mounted / "merged"
    layers = f"lowerdir={mounted}/lower,upperdir={mounted}/upper,workdir={mounted}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, merged], check=True)
    try:
        said = enter(merged)
    finally:
        subprocess.run(["umount", merged], check=True)
    assert said.startswith(f"Could not write layers to {merged}/disk: EINVAL ")
    assert "lab --root DIR up" in said


def test_a_folder_that_is_a_mount_point_is_emptied_and_stays(mounted: Path) -> None:
    paths = LabPaths(mounted)
    paths.disk("node1").mkdir(parents=True)
    paths.lock.touch()
    remove(paths)
    assert mounted.is_mount() and list(mounted.iterdir()) == []


def test_a_folder_of_the_usual_kind_goes(tmp_path: Path) -> None:
    paths = LabPaths(tmp_path / "lab")
    paths.disk("node1").mkdir(parents=True)
    remove(paths)
    assert not paths.root.exists()
