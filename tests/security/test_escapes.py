"""The ways out that others have found: checklist "Escapes", E01 to E21. Each test is the attack."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.pods import last_words
from kubelet_py.server import logs
from kubelet_py.volumes.subpath import open_beneath
from runtime import prepared
from runtime.capabilities import DEFAULT, NAMES
from runtime.errors import LaunchError
from runtime.linux import LinuxKernel
from runtime.mounting import MNT_DETACH, make_inside, open_inside
from runtime.namespaces import CLONE_FS, FLAGS, OpenHost, SetSysctl
from runtime.operations import exec_plan
from runtime.own_thread import in_thread_of_its_own
from runtime.plan import NO_STDIO, Context
from runtime.spec import parse, parse_process
from tests.privileged.runtime.entered import Entered
from tests.privileged.runtime_service.harness import Node, shims, wait_for

pytestmark = pytest.mark.privileged

RENAME_EXCHANGE = 2
TRIES = 3000
LOOK_UPS = 50_000  # a second or so, in which the other process has its turns
PR_GET_DUMPABLE = 3


# -- E01, E03: the starter's own program and memory ---------------------------------------------------------


@pytest.mark.parametrize("way", ["start", "exec"])
def test_E01_an_image_cannot_run_the_starters_own_program(box: Any, way: str) -> None:
    """E01, CVE-2019-5736: a program that is a link to /proc/self/exe would be our interpreter, run with a
    loader of the image's making (here busybox), which then has a descriptor to overwrite it by."""
    for folder in ("lib", "lib64"):
        (box.root / folder).mkdir()
        for name in ("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"):
            shutil.copy("/usr/bin/busybox", box.root / folder / name)
    (box.root / "bin/ls").unlink()
    (box.root / "bin/ls").symlink_to("/proc/self/exe")
    script = ["/bin/ls", "-l", "/proc/self/exe"]
    with pytest.raises(LaunchError, match="symbolic links"):
        if way == "start":
            box.start(script).wait()
        else:
            running = box.start("echo up; exec sleep 60")
            running.read_until("up")
            box.exec(running, script).wait()
    assert box.run("readlink /proc/self/exe; readlink /proc/1/exe")[1].split() == ["/bin/busybox"] * 2


def test_E01_the_shims_program_cannot_be_written(node: Node) -> None:
    """E01, CVE-2019-5736: not even root of the host can through /proc/<pid>/exe: a read-only mount of it."""
    node.sandbox()
    for pid in (*shims(node.folder), node.service._forkserver._pid):
        program = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
        try:
            assert os.fstatvfs(program).f_flag & os.ST_RDONLY
            with pytest.raises(OSError):
                os.open(f"/proc/self/fd/{program}", os.O_WRONLY)
        finally:
            os.close(program)


def test_E01_a_compiled_exec_does_not_run_the_starters_own_program(box: Any) -> None:
    """E01, CVE-2019-5736: neither one that was such a link when it was compiled, nor one that becomes one."""
    entered = Entered(box, {})
    root = Path(f"/proc/{entered.running.pid}/root")
    argv = ["/bin/ls", "-l", "/proc/self/exe"]
    assert entered.compile(argv) and "/bin/busybox" in (entered.by_program(argv) or "")
    (root / "bin/ls").unlink()
    (root / "bin/ls").symlink_to("/proc/self/exe")
    assert entered.by_program(argv) is None
    assert not entered.compile(argv) or entered.by_program(argv) is None
    with pytest.raises(LaunchError, match="symbolic links"):
        entered.executed(argv)


@pytest.mark.parametrize("way", ["start", "exec"])
def test_E03_nobody_can_look_into_a_process_that_enters(box: Any, way: str) -> None:
    """E03, CVE-2016-9962: the child shares our memory until its execve; it is not dumpable by then."""
    libc, seen = ctypes.CDLL(None), []

    class Watching(LinuxKernel):
        def spawn(self, *arguments: Any, **options: Any) -> Any:
            seen.append(libc.prctl(PR_GET_DUMPABLE))
            return super().spawn(*arguments, **options)

    running = box.start("echo up; exec sleep 60")
    running.read_until("up")
    libc.prctl(4, 1)
    if way == "start":
        box.start("true", kernel=Watching()).wait()
    else:
        box.kernel = Watching()
        box.exec(running, "true").wait()
    assert seen == [0]


# -- E02, E04, E05: descriptors, /proc, /sys ----------------------------------------------------------------


def test_E02_nothing_is_inherited(box: Any) -> None:
    """E02, CVE-2024-21626: no descriptor above 2, whoever opened it, inheritable or not."""
    leak = os.open("/", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        _, text = box.run("for f in /proc/self/fd/*; do echo $f; done")
    finally:
        os.close(leak)
    numbers = {line.rpartition("/")[2] for line in text.split()}
    assert (numbers <= {"0", "1", "2", "3"} and "3" not in numbers) or len(numbers) == 4
    _, text = box.run(["ls", "-l", "/proc/1/fd"])
    assert " -> /" not in text.replace("-> /dev/null", "").replace("-> /proc/1/fd", "")


@pytest.mark.parametrize("number", range(7, 12))
def test_E02_a_working_directory_behind_a_descriptor_is_refused(box: Any, number: int) -> None:
    """E02, CVE-2024-21626: also when the image has a symlink to it."""
    for path in (f"/proc/self/fd/{number}", "/tmp/link"):
        (box.root / "tmp/link").unlink(missing_ok=True)
        (box.root / "tmp/link").symlink_to(f"/proc/self/fd/{number}")
        try:
            running = box.start("readlink /proc/self/cwd", process={"cwd": path})
        except LaunchError:
            continue
        assert "unreachable" not in running.wait()[1]


def test_E02_an_exec_cannot_work_in_a_folder_of_the_host(box: Any) -> None:
    """E02, CVE-2024-21626: in a running container /proc is there, and so are our descriptors in it."""
    running = box.start("echo up; exec sleep 60")
    running.read_until("up")
    leak = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(LaunchError, match="working directory"):
            box.exec(running, "ls", cwd=f"/proc/self/fd/{leak}").wait()
    finally:
        os.close(leak)


def test_E02_a_compiled_exec_inherits_nothing_and_works_inside(box: Any) -> None:
    """E02, CVE-2024-21626: as one that is executed; the program was compiled when the leak was not there."""
    entered = Entered(box, {})
    assert entered.compile(["ls"])
    leak = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(leak, True)
    try:
        listed = (entered.by_program(["ls", "-l", "/proc/self/fd"]) or "").splitlines()
        cwd = {"cwd": f"/proc/self/fd/{leak}"}
        assert not entered.compile(["pwd"], **cwd) or entered.by_program(["pwd"]) is None
    finally:
        os.close(leak)
    assert [line.split()[-3] for line in listed if "->" in line] == ["0", "1", "2"]


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


def test_E12_no_writable_v1_cgroup_or_release_agent(box: Any) -> None:
    """E12, CVE-2022-0492."""
    _, text = box.run(
        "grep -c ' cgroup ' /proc/mounts; ls /sys/fs/cgroup/release_agent; cat /proc/self/cgroup"
    )
    assert text.startswith("0\n") and "No such file" in text
    assert {line.rpartition(":")[2] for line in text.splitlines() if line[:1].isdigit() and ":" in line} <= {
        "/"
    }


@pytest.mark.parametrize("kinds", ["-U", "-Ur", "-Urm"])
def test_E12_no_namespace_is_made_in_which_cgroups_could_be_mounted(pods: Any, kinds: str) -> None:
    """E12, CVE-2022-0492: the way to a writable release_agent, by a user namespace of the container's own."""
    text = pods.run(f"busybox unshare {kinds} echo made", security={"runAsUser": 1000, "runAsGroup": 1000})
    assert "Operation not permitted" in text and "made" not in text


def test_E14_the_terminal_is_a_new_one_and_controlling(box: Any) -> None:
    """E14, CVE-2017-5226."""
    running = box.start(
        "tty; stty size; ls -l /dev/console; (true < /dev/tty) && echo controls; echo done",
        terminal=True,
        process={"consoleSize": {"height": 30, "width": 100}, "user": {"uid": 1000, "gid": 1000}},
    )
    text = b""
    while b"done" not in text:
        text += os.read(running.process.console, 4096)
    lines = text.decode().split("\r\n")
    assert lines[:2] == ["/dev/pts/0", "30 100"]
    assert lines[2].startswith("crw") and lines[3] == "controls"
    running.cgroup.kill()


def test_E15_mounts_of_the_container_do_not_reach_the_host(box: Any) -> None:
    """E15: and the old root is gone."""
    before = Path("/proc/self/mounts").read_text()
    options: dict[str, Any] = {"capabilities": NAMES, "linux": {"seccomp": None}}
    _, text = box.run("mount -t tmpfs mine /tmp; wc -l < /proc/mounts; grep -c mine /proc/mounts", **options)
    assert text.split()[1] == "1"
    assert Path("/proc/self/mounts").read_text() == before
    _, text = box.run("cat /proc/self/mountinfo")
    assert str(box.folder) not in text.replace("lowerdir", "").split(" - ")[0]
    assert all("shared:" not in line for line in text.splitlines())


def test_E15_a_shared_host_mount_is_cut_off(box: Any) -> None:
    """E15: with the host's mounts shared, as systemd makes them, nothing of the container appears there."""
    folder = str(box.folder)
    box.kernel.mount(folder, folder, "", 0x1000, "")
    box.kernel.mount("", folder, "", 1 << 20, "")
    try:
        before = Path("/proc/self/mounts").read_text()
        running = box.start("echo up; sleep 60")
        running.read_until("up")
        assert Path("/proc/self/mounts").read_text() == before
        running.cgroup.kill()
        running.wait()
    finally:
        box.kernel.umount(folder, 2)


def test_E17_pause_reaps_and_cannot_be_killed_from_a_shared_pid_namespace(box: Any) -> None:
    """E17."""
    running = box.sandbox()
    join = {"pid": f"/proc/{running.pid}/ns/pid"}
    script = "(sleep 0.05 & ) ; sleep 0.3; cat /proc/[0-9]*/status | grep -c zombie; ls -d /proc/1; "
    script += "kill -9 1; kill 1"
    code, text = box.start(script, join=join, process={"user": {"uid": 1000, "gid": 1000}}).wait()
    assert text.split("\n")[:2] == ["0", "/proc/1"]
    weaker = [name for name in DEFAULT if name != "CAP_KILL"]
    box.start("kill 1; kill -2 1", join=join, capabilities=weaker).wait()
    assert not select.select([running.process.pidfd], [], [], 0.1)[0]
    os.kill(running.pid, 0)
    states = [
        line for line in Path(f"/proc/{running.pid}/status").read_text().splitlines() if "State" in line
    ]
    assert "S (sleeping)" in states[0], (code, text)


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


# -- E13 to E19: sockets, terminals, mounts, processes -------------------------------------------------------


def test_E13_no_socket_can_be_reached_from_a_container(node: Node) -> None:
    """E13, CVE-2020-15257: abstract sockets belong to a network namespace, which a pod may share with us."""

    def abstract() -> set[str]:
        lines = Path("/proc/net/unix").read_text().splitlines()
        return {line.split()[-1] for line in lines if line.split()[-1].startswith("@")}

    before = abstract()
    sandbox = node.sandbox(host_network=True)
    node.run(sandbox, ["sleep", "60"])
    assert abstract() <= before
    found = [path for path in node.folder.rglob("*") if path.is_socket()]
    assert found and all(path.lstat().st_mode & 0o777 == 0o600 for path in found)


@pytest.mark.parametrize("terminal", [False, True])
def test_E14_an_exec_is_a_session_of_its_own(box: Any, terminal: bool) -> None:
    """E14, CVE-2017-5226: no terminal of the caller's into which TIOCSTI could type."""
    running = box.start("echo up; exec sleep 60")
    running.read_until("up")
    session = box.exec(running, ["sleep", "60"], terminal=terminal)
    assert os.getsid(session.pid) == session.pid != os.getsid(0)


def test_E15_nothing_of_the_old_root_is_left(box: Any) -> None:
    """E15: the old root is detached; what is mounted is the container's own."""
    lines = box.run("cat /proc/self/mountinfo; ls /..")[1].splitlines()
    places = {line.split()[4] for line in lines if " - " in line}
    assert "/" in places and not any(place.startswith(("/work", "/tmp", "/var")) for place in places)
    assert "work" not in lines and "bin" in lines


def test_E15_nothing_of_the_host_lies_below_a_prepared_containers_root(node: Node) -> None:
    """E15: its root covers an empty one, and whoever takes it away finds the host nowhere."""
    container = node.create(node.sandbox(), ["sleep", "60"])
    assert list(node.folder.rglob(f"*{container}*/{prepared.NAME}")), "it was not prepared"
    node.service.start_container(container)
    namespace = f"/proc/{node.service.container(container).pid}/ns/mnt"
    found: list[list[str]] = []

    def uncover() -> None:
        kernel = LinuxKernel()
        kernel.unshare(CLONE_FS)
        held = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(held, FLAGS["mount"])
            found.append(os.listdir("/"))
            kernel.umount("/", MNT_DETACH)
            kernel.setns(held, FLAGS["mount"])
            found.append(os.listdir("/"))
        finally:
            os.close(held)

    in_thread_of_its_own(uncover)
    assert "bin" in found[0] and found[1] == []


def test_E16_settings_that_run_programs_on_the_host_are_read_only(pods: Any) -> None:
    """E16: core_pattern, sysrq-trigger, uevent_helper, binfmt_misc, modprobe; opened, never written."""
    names = [
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper", "/proc/sys/fs/binfmt_misc/register",
    ]  # fmt: skip
    present = [name for name in names if os.path.exists(name)]
    text = pods.run(f"for f in {' '.join(present)}; do (true >> $f) && echo opened; done")
    assert text.count("Read-only file system") == len(present) > 0 and "opened" not in text


def test_E18_net_admin_ends_at_the_pods_network(pods: Any) -> None:
    """E18: links of the host are out of reach, and so is its namespace."""
    context = {"capabilities": {"add": ["NET_ADMIN"]}}
    assert "UP" not in pods.run("ip link set lo up; ip link set lo down; ip -o link", security=context)
    assert int(Path("/sys/class/net/lo/flags").read_text(), 16) & 1
    inode = pods.run("readlink /proc/self/ns/net", security=context).strip()
    assert inode != os.readlink("/proc/self/ns/net")


def test_E19_a_recycled_pid_is_not_entered(box: Any) -> None:
    """E19: pid and start time together name a process; another one with the pid is left alone."""
    running = box.start("echo up; exec sleep 60")
    running.read_until("up")
    spec, process = parse(running.spec), parse_process({**running.spec["process"], "args": ["true"]})
    started = running.process.start_time_ticks
    for moment in (started - 1, started + 1):
        plan = exec_plan(spec, process, init_pid=running.pid, cgroup=None, init_start_time=moment)
        with pytest.raises(LaunchError, match="ended"):
            box._launch(plan, running.cgroup, running.spec, False, None)


# -- E20, E21: files between the agent and its containers ---------------------------------------------------


def test_E20_a_link_in_place_of_the_log_is_not_written_through(node: Node) -> None:
    """E20: somebody with the log folder as hostPath plants a link; the shim must not append to its target."""
    victim = node.folder / "victim"
    victim.write_text("untouched")
    sandbox = node.sandbox()
    container = node.create(sandbox, ["echo", "evil"])
    log = Path(node.service.container(container).config.log_path)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    log.symlink_to(victim)
    try:
        node.service.start_container(container)
        wait_for(lambda: node.service.container(container).state == "EXITED")
    except Exception:  # refused, which is as good
        pass
    assert victim.read_text() == "untouched"
    log.unlink()


def test_E20_a_link_in_place_of_the_log_is_not_read(tmp_path: Path) -> None:
    """E20: kubectl logs shows nothing of the host's."""
    link = tmp_path / "0.log"
    link.symlink_to("/etc/passwd")
    with pytest.raises(OSError) as caught:
        os.close(logs._open(link))
    assert caught.value.errno == errno.ELOOP


def test_E20_last_words_are_read_from_a_plain_file_only(tmp_path: Path) -> None:
    """E20: a termination message or log that is a link or a FIFO is no message, and nobody waits for it."""
    secret, link, fifo = tmp_path / "secret", tmp_path / "link", tmp_path / "fifo"
    secret.write_text("2026-11-21T00:00:00Z stdout F secret\n")
    link.symlink_to(secret)
    os.mkfifo(fifo)
    assert b"secret" in last_words._end(secret, 100)
    assert [last_words._end(path, 100) for path in (link, fifo)] == [b"", b""]


def test_E21_files_of_the_pod_are_the_agents_own(pods: Any, tmp_path: Path) -> None:
    """E21: hosts, hostname, resolv.conf and the termination log come from the pod's folder, not the image."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in ("hosts", "resolv.conf"):
        (pods.box.root / "etc" / name).symlink_to(str(victim))
    spec = pods.describe("echo evil > /etc/hosts; echo evil > /dev/termination-log; cat /etc/resolv.conf")
    binds = {m["destination"]: m["source"] for m in spec["mounts"] if m["type"] == "bind"}
    own = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"}
    assert own <= set(binds) and all(binds[path].startswith(str(pods.paths.pods)) for path in own)
    text = pods.box.start("", spec=spec).wait()[1]
    assert text == "resolv.conf of the pod\n" and victim.read_text() == "untouched"
    assert not (pods.box.root / "dev/termination-log").exists()
