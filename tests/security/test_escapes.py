"""The ways out of a running container that others have found: checklist "Escapes", E12 to E21. Each test is
the attack. What comes before it runs is in test_entering.py and test_links.py."""

from __future__ import annotations

import errno
import os
import select
import threading
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.pods import last_words
from kubelet_py.server import logs
from runtime import prepared
from runtime.capabilities import DEFAULT, NAMES
from runtime.errors import LaunchError, RuntimeFailure
from runtime.linux import LinuxKernel
from runtime.mounting import MNT_DETACH
from runtime.namespaces import CLONE_FS, FLAGS
from runtime.operations import exec_plan
from runtime.own_thread import in_thread_of_its_own
from runtime.spec import parse, parse_process
from tests.privileged.runtime_service.harness import Node, wait_for

pytestmark = pytest.mark.privileged

# -- E12 to E19: cgroups, sockets, terminals, mounts, processes ----------------------------------------------


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


@pytest.mark.parametrize("terminal", [False, True])
def test_E14_an_exec_is_a_session_of_its_own(box: Any, terminal: bool) -> None:
    """E14, CVE-2017-5226: no terminal of the caller's into which TIOCSTI could type."""
    running = box.start("echo up; exec sleep 60")
    running.read_until("up")
    session = box.exec(running, ["sleep", "60"], terminal=terminal)
    assert os.getsid(session.pid) == session.pid != os.getsid(0)


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


def test_E17_pause_reaps_and_cannot_be_killed_from_a_shared_pid_namespace(box: Any) -> None:
    """E17."""
    running = box.sandbox()
    join = {"pid": f"/proc/{running.pid}/ns/pid"}
    script = """(sleep 0.05 & ); sleep 0.3; n=0
        while cat /proc/[0-9]*/status | grep -q zombie && [ $n -lt 600 ]; do sleep 0.1; n=$((n+1)); done
        cat /proc/[0-9]*/status | grep -c zombie; ls -d /proc/1; kill -9 1; kill 1"""
    code, text = box.start(script, join=join, process={"user": {"uid": 1000, "gid": 1000}}).wait()
    assert text.split("\n")[:2] == ["0", "/proc/1"]
    weaker = [name for name in DEFAULT if name != "CAP_KILL"]
    box.start("kill 1; kill -2 1", join=join, capabilities=weaker).wait()
    assert not select.select([running.process.pidfd], [], [], 0.1)[0]
    os.kill(running.pid, 0)
    states = [
        line for line in Path(f"/proc/{running.pid}/status").read_text().splitlines() if "State" in line
    ]
    assert "S (sleeping)" in states[0] or "R (running)" in states[0], (code, text)


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


@pytest.mark.parametrize("planted", ["pipe", "device"])
def test_E20_a_pipe_in_place_of_the_log_does_not_stop_the_shim(node: Node, planted: str) -> None:
    """E20: who may write to /var/log of the host plants one where a container's log will be: to open it waits
    for a reader, and the pod's shim with it. A device would be told what the container says."""
    sandbox = node.sandbox()
    config = node.config(["echo", "said"])
    log = Path(config.log_path)
    log.parent.mkdir(exist_ok=True)
    if planted == "pipe":
        os.mkfifo(log)
    else:
        os.mknod(log, 0o020666, os.makedev(1, 3))
    container = node.service.create_container(sandbox.id, config)
    reader = threading.Timer(20, lambda: os.close(os.open(log, os.O_RDONLY | os.O_NONBLOCK)))
    reader.start()  # so that a shim that waits is let go of
    try:
        with pytest.raises(RuntimeFailure):
            node.service.start_container(container)
    finally:
        reader.cancel()
        reader.join()


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
