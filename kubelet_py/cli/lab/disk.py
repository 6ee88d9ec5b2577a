"""A machine's file tree, made in its own mount namespace by the process that becomes its process 1.

The programs are the host's: over each of the host's top folders lies an overlay, so that what the machine
writes stays on its own disk. /var and /tmp are its own altogether (the agent's overlays need a real file
system below), /run is new at every boot, /proc, /sys and the cgroup trees are those of its namespaces. A
program that lies where the machine has folders of its own (a checkout below /tmp, say) is shown to it at the
same place, read-only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kubelet_py.cli.lab.errors import LabError
from runtime.kernel import Kernel
from runtime.mounting import MS_BIND, MS_PRIVATE, MS_RDONLY, MS_REC

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 2, 4, 8, 32
MNT_DETACH = 2
OWN = ("proc", "sys", "dev", "run", "var", "tmp")
LEFT_OUT = ("lost+found", "boot")
VAR = ("lib", "log", "cache", "spool", "tmp", "opt")
NODE = ("kubelet-py", "cni/net.d")  # below /etc: what is there is of a node of the host's own
OPAQUE = "trusted.overlay.opaque"  # of a folder in an overlay's upper layer: shows nothing of the lower one


@dataclass(frozen=True, slots=True)
class Tree:
    """Where the machine's parts are on the host; `cgroups`: mount points and this machine's folders there."""

    disk: Path
    work: Path
    root: Path
    cgroups: tuple[tuple[str, str], ...]
    programs: tuple[str, ...]


def program_folders() -> tuple[str, ...]:
    """Where Python, its packages and our own code lie."""
    import kubelet_py

    package = str(Path(kubelet_py.__file__).resolve().parents[1])
    found = [os.path.realpath(sys.base_prefix), sys.prefix, package]
    return tuple(dict.fromkeys(folder for folder in found if folder != "/"))


def prepare(tree: Tree) -> None:
    """The folders on the host that a machine's mounts need; kept from one boot to the next."""
    for folder in (tree.disk, tree.work, tree.root):
        folder.mkdir(parents=True, exist_ok=True)
    for name in VAR:
        (tree.disk / "var" / name).mkdir(parents=True, exist_ok=True)
    (tree.disk / "tmp").mkdir(exist_ok=True)
    for folder in (tree.disk / "tmp", tree.disk / "var/tmp"):
        folder.chmod(0o1777)
    for name, target in (("run", "/run"), ("lock", "/run/lock")):
        with contextlib.suppress(FileExistsError):
            (tree.disk / "var" / name).symlink_to(target)


def enter(kernel: Kernel, tree: Tree) -> None:
    """Build the tree in this process's new mount namespace and make it the root. Raises OSError."""
    kernel.mount("", "/", "", MS_PRIVATE | MS_REC, "")
    root = str(tree.root)
    kernel.mount("lab", root, "tmpfs", MS_NOSUID, "mode=755,size=1m")
    for entry in sorted(os.scandir("/"), key=lambda entry: entry.name):
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), f"{root}/{entry.name}")
        elif entry.is_dir() and entry.name not in (*OWN, *LEFT_OUT):
            _over(kernel, tree, entry.name)
    for name in OWN:
        os.mkdir(f"{root}/{name}")
    for name in ("var", "tmp"):
        kernel.mount(str(tree.disk / name), f"{root}/{name}", "", MS_BIND, "")
    kernel.mount("run", f"{root}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for name in ("lock", "netns"):
        os.mkdir(f"{root}/run/{name}")
    kernel.mount("/dev", f"{root}/dev", "", MS_BIND | MS_REC, "")
    kernel.mount("shm", f"{root}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    _proc(kernel, root)
    _sys(kernel, root, tree.cgroups)
    _programs(kernel, root, tree)
    old = f"{root}/.host"
    os.mkdir(old)
    kernel.pivot_root(root, old)
    os.chdir("/")
    kernel.umount("/.host", MNT_DETACH)
    os.rmdir("/.host")


def _over(kernel: Kernel, tree: Tree, name: str) -> None:
    """The host's folder, with this machine's changes to it; read-only where the lab itself lies in it."""
    source, target = f"/{name}", f"{tree.root}/{name}"
    os.mkdir(target)
    if tree.disk.is_relative_to(source):
        _show(kernel, source, target)
        return
    upper, work = tree.disk / name, tree.work / name
    if not upper.exists():
        upper.mkdir()
        status = os.stat(source)
        os.chown(upper, status.st_uid, status.st_gid)
        upper.chmod(status.st_mode & 0o7777)
    work.mkdir(exist_ok=True)
    try:
        if name == "etc":
            _without_node(upper)
        kernel.mount("overlay", target, "overlay", 0, f"lowerdir={source},upperdir={upper},workdir={work}")
    except OSError as error:
        _require_layers(kernel, tree, error)
        _show(kernel, source, target)  # it is the host's folder that gives no layer (some network folders)


def _without_node(etc: Path) -> None:
    """A machine that saw the certificates and settings of the host's node would take them for its own."""
    for name in NODE:
        (etc / name).mkdir(parents=True, exist_ok=True)
        os.setxattr(etc / name, OPAQUE, b"y")


def _require_layers(kernel: Kernel, tree: Tree, failed: OSError) -> None:
    """Raise LabError where the lab's own folder is what overlayfs cannot write layers to."""
    lower, upper, work, target = (tree.work / ".trial" / name for name in ("lower", "upper", "work", "all"))
    for folder in (lower, upper, work, target):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        kernel.mount(
            "overlay", str(target), "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}"
        )
    except OSError:
        raise LabError(
            f"Could not write layers to {tree.disk}: {errno.errorcode.get(failed.errno or 0, failed)} "
            f"(it may be an overlay itself; give the lab a folder elsewhere: kubelet-py lab --root DIR up)"
        ) from failed
    kernel.umount(str(target), MNT_DETACH)


def _show(kernel: Kernel, source: str, target: str, more: int = 0) -> None:
    kernel.mount(source, target, "", MS_BIND | more, "")
    kernel.mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY, "")


def _proc(kernel: Kernel, root: str) -> None:
    """A boot of its own has an id of its own: a node that was rebooted is known by it."""
    kernel.mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "")
    boot = Path(f"{root}/run/boot-id")
    boot.write_text(f"{uuid.uuid4()}\n")
    kernel.mount(str(boot), f"{root}/proc/sys/kernel/random/boot_id", "", MS_BIND, "")


def _sys(kernel: Kernel, root: str, cgroups: Sequence[tuple[str, str]]) -> None:
    kernel.mount("sysfs", f"{root}/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "")
    if len(cgroups) > 1:
        top = os.path.commonpath([point for point, _ in cgroups])
        kernel.mount(
            "cgroups", f"{root}{top}", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=64k"
        )
    for point, folder in cgroups:
        os.makedirs(f"{root}{point}", exist_ok=True)
        kernel.mount(folder, f"{root}{point}", "", MS_BIND, "")


def _programs(kernel: Kernel, root: str, tree: Tree) -> None:
    for folder in tree.programs:
        first = Path(folder).parts[1]
        if first not in OWN:
            continue
        os.makedirs(f"{root}{folder}", exist_ok=True)
        _show(kernel, folder, f"{root}{folder}", MS_REC)


def name_machine(name: str, addresses: Sequence[tuple[str, str]]) -> None:
    """Write who this machine and its neighbours are into /etc, which is its own by now."""
    machine_id = Path("/var/lib/machine-id")
    if not machine_id.exists():
        machine_id.write_text(f"{uuid.uuid4().hex}\n")
    for file, text in (
        ("hostname", f"{name}\n"),
        ("machine-id", machine_id.read_text()),
        ("hosts", "127.0.0.1 localhost\n" + "".join(f"{address} {host}\n" for host, address in addresses)),
    ):
        Path("/etc", file).write_text(text)
