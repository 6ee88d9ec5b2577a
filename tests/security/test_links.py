"""Links and mounts that would lead a container's start elsewhere: checklist "Escapes", E04 to E11. Each test
is the attack."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.volumes.subpath import open_beneath
from runtime.capabilities import NAMES
from runtime.errors import LaunchError
from runtime.linux import LinuxKernel
from runtime.mounting import make_inside, open_inside
from runtime.namespaces import CLONE_FS, FLAGS, OpenHost, SetSysctl
from runtime.own_thread import in_thread_of_its_own
from runtime.plan import NO_STDIO, Context
from tests.privileged.runtime_service.harness import Node, wait_for

pytestmark = pytest.mark.privileged

RENAME_EXCHANGE = 2
TRIES = 3000
LOOK_UPS = 50_000  # a second or so, in which the other process has its turns


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_E04_an_image_with_proc_or_sys_as_symlink_is_refused(box: Any, name: str) -> None:
    """E04, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642."""
    (box.root / "tmp" / name).mkdir()
    (box.root / name).symlink_to(f"tmp/{name}")
    with pytest.raises(LaunchError, match="symlink"):
        box.start("true")


@pytest.mark.parametrize("destination", ["/proc", "/proc/self/attr", "/proc/1", "/proc/../proc/sys"])
def test_E05_a_volume_over_proc_is_refused(box: Any, tmp_path: Path, destination: str) -> None:
    """E05, CVE-2019-16884."""
    mount = {"destination": destination, "type": "bind", "source": str(tmp_path), "options": ["bind"]}
    with pytest.raises(LaunchError, match="proc"):
        box.start("true", mounts=[mount])


def test_E06_symlinks_of_the_image_cannot_lead_a_mount_outside(box: Any, tmp_path: Path) -> None:
    """E06, E10: resolved inside the root, and what is missing is made inside too."""
    outside, source = tmp_path / "outside", tmp_path / "source"
    outside.mkdir()
    source.mkdir()
    (source / "file").write_text("content")
    (box.root / "evil").symlink_to(str(outside))
    mount = {"destination": "/evil/new/deep", "type": "bind", "source": str(source), "options": ["bind"]}
    try:
        running = box.start("cat /evil/new/deep/file", mounts=[mount])
    except LaunchError:
        pass
    else:
        assert running.wait()[1] == "content"
    assert list(outside.iterdir()) == []


def swapper(first: Path, second: Path, stop: threading.Event) -> None:
    libc = ctypes.CDLL(None)
    while not stop.is_set():
        libc.renameat2(-100, bytes(first), -100, bytes(second), RENAME_EXCHANGE)


@pytest.mark.parametrize("folder", [True, False])
def test_E06_E10_a_swapped_symlink_never_leads_outside(tmp_path: Path, folder: bool) -> None:
    """CVE-2021-30465 and CVE-2024-45310: rename exchange against look-up and against mkdir -p."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "volume/real").mkdir(parents=True)
    outside.mkdir()
    (root / "volume/link").symlink_to(f"../../../../../../../../{outside}")
    stop = threading.Event()
    thread = threading.Thread(target=swapper, args=(root / "volume/real", root / "volume/link", stop))
    kernel = LinuxKernel()
    root_fd = os.open(root, os.O_PATH)
    thread.start()
    reached, refused = 0, 0
    try:
        for number in range(TRIES):
            try:
                fd = make_inside(kernel, root_fd, f"/volume/real/sub{number % 50}/deep", folder=folder)
            except OSError:
                refused += 1
                continue
            target = os.readlink(f"/proc/self/fd/{fd}")
            os.close(fd)
            assert target.startswith(str(root)), target
            reached += 1
    finally:
        stop.set()
        thread.join()
        os.close(root_fd)
    assert list(outside.iterdir()) == []
    assert reached > 0


def test_E06_a_rename_elsewhere_refuses_no_look_up(tmp_path: Path) -> None:
    """E06: the kernel cannot tell where ".." of a link leads while something is renamed, anywhere on a host:
    a container's loop of renames must not keep its neighbours from starting (var/run -> ../run)."""
    root, kernel = tmp_path / "root", LinuxKernel()
    for name in ("root/run/secrets", "root/var", "one", "other"):
        (tmp_path / name).mkdir(parents=True)
    (root / "var/run").symlink_to("../run")
    here, *elsewhere = sorted(os.sched_getaffinity(0))
    begun, begin = os.pipe()
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, elsewhere or {here})  # or it may wait for the processor until all is over
        os.write(begin, b"1")
        swapper(tmp_path / "one", tmp_path / "other", threading.Event())
        os._exit(1)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {here})
    os.read(begun, 1)
    root_fd = os.open(root, os.O_PATH)
    try:
        for _ in range(LOOK_UPS):
            os.close(open_inside(kernel, root_fd, "/var/run/secrets"))
            os.close(open_beneath(root, "var/run/secrets"))
    finally:
        os.sched_setaffinity(0, before)
        for descriptor in (root_fd, begun, begin):
            os.close(descriptor)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_E07_masks_do_not_come_from_the_images_null(box: Any) -> None:
    """E07, CVE-2025-31133: an image whose /dev/null is a link to a setting, without a /dev of our own."""
    (box.root / "dev").mkdir()
    (box.root / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    config = box.spec("stat -c %t:%T /proc/keys")
    assert box.start("", spec=config).wait()[1] == "1:3\n"
    config["mounts"] = [m for m in config["mounts"] if not m["destination"].startswith("/dev")]
    with pytest.raises(LaunchError, match="another device"):
        box.start("", spec=config)


CHANGE = "busybox chmod 666 {0}; busybox chown 0:0 {0}"
OWNER = {"bounding": ["CAP_FOWNER", "CAP_CHOWN"], "effective": ["CAP_FOWNER", "CAP_CHOWN"],
         "permitted": ["CAP_FOWNER", "CAP_CHOWN"]}  # fmt: skip


def test_E07_the_hosts_null_cannot_be_changed_through_a_mask(pods: Any) -> None:
    """E07: a mask is the host's /dev/null, and 000 for its mode would be for everybody."""
    before = os.stat("/dev/null").st_ctime_ns
    assert pods.run(CHANGE.format("/proc/keys") + " 2>&1").count("Read-only file system") == 2
    assert os.stat("/dev/null").st_ctime_ns == before


def test_E07_nor_through_one_of_a_pods_container(node: Node) -> None:
    before = os.stat("/dev/null").st_ctime_ns
    script = ["sh", "-c", CHANGE.format("/proc/keys") + "; sleep 60"]
    container = node.run(node.sandbox(), script, masked=["/proc/keys"], capabilities=OWNER)
    wait_for(lambda: node.log(container).count(b"Read-only file system") == 2)
    assert os.stat("/dev/null").st_ctime_ns == before


def test_E07_nor_through_the_standard_input(node: Node) -> None:
    """A container without stdin has the null device there, and so has an exec."""
    before = os.stat("/dev/null").st_ctime_ns
    script = CHANGE.format("/proc/self/fd/0")
    container = node.run(node.sandbox(), ["sh", "-c", f"{script}; sleep 60"], capabilities=OWNER)
    wait_for(lambda: node.log(container).count(b"Read-only file system") == 2)
    for _ in range(2):  # the second one is a compiled exec
        done = node.service.exec_sync(container, ["sh", "-c", f"{script}; cat; echo read"], 30)
        assert done.stderr.count(b"Read-only file system") == 2 and done.stdout == b"read\n"
    assert os.stat("/dev/null").st_ctime_ns == before


def test_E08_exec_refuses_a_terminal_of_the_containers_making(box: Any) -> None:
    """E08, CVE-2025-52565."""
    running = box.start(
        "umount /dev/pts; rm -r /dev/pts; mkdir /dev/pts; ln -s /dev/null /dev/pts/ptmx; echo up; sleep 60",
        capabilities=NAMES,
        linux={"seccomp": None},
    )
    running.read_until("up")
    with pytest.raises(LaunchError, match="terminal"):
        box.exec(running, "tty", terminal=True)
    running.cgroup.kill()


def test_E08_the_console_is_no_link(box: Any, tmp_path: Path) -> None:
    """E08, CVE-2025-52565: an image's /dev/console that is a link must not get the terminal mounted."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (box.root / "dev").mkdir()
    (box.root / "dev/console").symlink_to(str(victim))
    config = box.spec("echo done")
    config["mounts"] = [m for m in config["mounts"] if m["destination"] != "/dev"]
    with pytest.raises(LaunchError, match="console"):
        box.start("", spec=config, terminal=True)


def test_E09_a_sysctl_is_written_to_a_real_procfs(tmp_path: Path) -> None:
    """E09, CVE-2025-52881: something mounted over the setting must not receive the write."""
    kernel, fake = LinuxKernel(), tmp_path / "fake"
    fake.write_text("")
    setting = "/proc/sys/kernel/shm_rmid_forced"
    context = Context(NO_STDIO, False)
    kernel.mount(str(fake), setting, "", 0x1000, "")
    try:
        OpenHost().run(kernel, context)
        with pytest.raises(OSError):
            SetSysctl("kernel.shm_rmid_forced", "1").run(kernel, context)
    finally:
        context.close(kernel)
        kernel.umount(setting, 2)
    assert fake.read_text() == ""


def test_E09_a_proc_that_is_none_is_not_written_to() -> None:
    """E09, CVE-2019-16884, CVE-2025-52881: labels and sysctls are written below the descriptor of the host's
    /proc; in another file system they would be mere files."""
    kernel = LinuxKernel()
    outcome: list[BaseException | None] = []

    def attempt() -> None:
        kernel.unshare(CLONE_FS | FLAGS["mount"])
        kernel.mount("", "/", "", 1 << 18 | 0x4000, "")
        kernel.mount("tmpfs", "/proc", "tmpfs", 0, "")
        context = Context(NO_STDIO, False)
        try:
            OpenHost().run(kernel, context)
            outcome.append(None)
        except OSError as error:
            outcome.append(error)
        finally:
            context.close(kernel)

    in_thread_of_its_own(attempt)
    assert "not a procfs" in str(outcome[0])


def test_E11_links_and_devices_are_not_made_outside(box: Any, tmp_path: Path) -> None:
    """E11, CVE-2026-41579: an image whose /dev is a link to a folder of the host."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (box.root / "dev").symlink_to(str(outside))
    config = box.spec("true")
    config["mounts"] = [m for m in config["mounts"] if not m["destination"].startswith("/dev")]
    try:
        box.start("", spec=config).wait()
    except LaunchError:
        pass
    assert list(outside.iterdir()) == []
