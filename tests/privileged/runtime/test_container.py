"""What a container sees and may do by default, on the real kernel. Names refer to the security checklist."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runtime.capabilities import NAMES
from runtime.errors import ExecutableError, LaunchError, SpecError

pytestmark = pytest.mark.privileged


def test_it_has_its_own_processes_hostname_network_and_root(box: Any) -> None:
    code, text = box.run("hostname; ls -d /proc/[0-9]*; ip -o link | wc -l; cat /work/main/README.md; exit 3")
    lines = text.split("\n")
    assert code == 3
    assert lines[:2] == ["box", "/proc/1"]
    assert "1" in lines
    assert "No such file" in text


def test_what_it_writes_lands_in_its_upper_layer_only(box: Any) -> None:
    box.run("echo hi > /etc/new; rm /bin/ping")
    assert (box.upper() / "etc/new").read_text() == "hi\n"
    assert not (box.root / "etc/new").exists() and (box.root / "bin/ping").is_symlink()


def test_default_capabilities(box: Any) -> None:
    """S01: exactly the nine; inheritable and ambient empty (CVE-2022-24769, CVE-2022-29162)."""
    _, text = box.run("grep Cap /proc/self/status")
    sets = dict(line.split(":\t") for line in text.splitlines())
    nine = f"{0x5FB:016x}"
    assert sets == {"CapInh": "0" * 16, "CapPrm": nine, "CapEff": nine, "CapBnd": nine, "CapAmb": "0" * 16}


def test_no_capabilities_at_all(box: Any) -> None:
    """S02: drop ALL."""
    _, text = box.run("grep Cap /proc/self/status", capabilities=())
    assert {line.split(":\t")[1] for line in text.splitlines()} == {"0" * 16}


def test_a_user_without_root_has_no_effective_capabilities(box: Any) -> None:
    user = {"uid": 1000, "gid": 1001, "additionalGids": [7, 8]}
    _, text = box.run("id; grep CapEff /proc/self/status", process={"user": user})
    assert "uid=1000 gid=1001 groups=7,8" in text.replace("groups=1001,7,8", "groups=7,8")
    assert f"CapEff:\t{'0' * 16}" in text


def test_ambient_capabilities_survive_for_another_user(box: Any) -> None:
    sets = {
        name: ["CAP_NET_BIND_SERVICE"]
        for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
    }
    process = {"user": {"uid": 1000, "gid": 1000}, "capabilities": sets}
    _, text = box.run("grep -E 'CapEff|CapAmb' /proc/self/status", process=process)
    assert text.split() == ["CapEff:", f"{1 << 10:016x}", "CapAmb:", f"{1 << 10:016x}"]


@pytest.mark.parametrize("wanted", [True, False])
def test_no_new_privileges(box: Any, wanted: bool) -> None:
    """S03: a setuid program gains nothing when it is set."""
    command = box.root / "bin/effective"
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is missing")
    program = (
        '#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf("%d\\n", geteuid()); return 0; }'
    )
    subprocess.run(
        [compiler, "-static", "-x", "c", "-", "-o", str(command)], input=program.encode(), check=True
    )
    command.chmod(0o4755)
    process = {"noNewPrivileges": wanted, "user": {"uid": 1000, "gid": 1000}}
    _, text = box.run("grep NoNewPrivs /proc/self/status; effective", process=process)
    assert text.split() == ["NoNewPrivs:", str(int(wanted)), "1000" if wanted else "0"]


def test_seccomp_is_loaded(box: Any) -> None:
    """S04."""
    for no_new in (True, False):
        _, text = box.run("grep Seccomp: /proc/self/status", process={"noNewPrivileges": no_new})
        assert text.split() == ["Seccomp:", "2"]


def test_masked_paths_are_empty(box: Any) -> None:
    """S05, E07 (CVE-2025-31133): even when the image's /dev/null is a symlink to something of the host."""
    (box.root / "dev").mkdir()
    (box.root / "dev/null").symlink_to("/proc/sysrq-trigger")
    _, text = box.run(
        "cat /proc/keys /proc/timer_list /proc/interrupts | wc -c; ls /sys/firmware /proc/acpi | wc -w"
    )
    assert text.split() == ["0", "2"]
    _, text = box.run("stat -c %t:%T /proc/keys; touch /sys/firmware/x")
    assert text.startswith("1:3\n") and "Read-only" in text


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/irq/default_smp_affinity",
        "/sys/fs/cgroup/cgroup.procs",
    ],
)
def test_kernel_settings_are_read_only(box: Any, path: str) -> None:
    """S06, E16, CVE-2023-25809."""
    _, text = box.run(f"echo 1 > {path}")
    assert "Read-only" in text or "nonexistent" in text or "No such file" in text or "can't create" in text
    assert "Permission" not in text


def test_no_writable_v1_cgroup_or_release_agent(box: Any) -> None:
    """E12, CVE-2022-0492."""
    _, text = box.run(
        "grep -c ' cgroup ' /proc/mounts; ls /sys/fs/cgroup/release_agent; cat /proc/self/cgroup"
    )
    assert text.startswith("0\n") and "No such file" in text
    assert {line.rpartition(":")[2] for line in text.splitlines() if line[:1].isdigit() and ":" in line} <= {
        "/"
    }


def test_devices_are_the_default_ones(box: Any) -> None:
    """S08: nothing else, and a node made with CAP_MKNOD cannot be opened."""
    _, text = box.run("ls /dev")
    wanted = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert text.split() == wanted.split()
    # A device that nothing but the device cgroup refuses; loading no module, whatever the host has.
    script = "mknod /tmp/tun c 10 200 && (: < /tmp/tun)"
    assert "Operation not permitted" in box.run(script, capabilities=("CAP_MKNOD",))[1]
    free = {"resources": {"devices": [{"allow": True}]}}
    assert "Operation not permitted" not in box.run(script, capabilities=("CAP_MKNOD",), linux=free)[1]
    assert box.run("head -c 3 /dev/zero | od -An -tx1; echo x > /dev/null")[1].split() == ["00"] * 3


def test_rlimits_and_oom_score_belong_to_the_container_alone(box: Any) -> None:
    """S09: both are per process, so they must not change the process that starts it."""
    before = Path("/proc/self/limits").read_text(), Path("/proc/self/oom_score_adj").read_text()
    limits = [
        {"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    _, text = box.run(
        "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj",
        process={"rlimits": limits, "oomScoreAdj": 777},
    )
    assert text.split() == ["50", "60", "0", "777"]
    assert before == (Path("/proc/self/limits").read_text(), Path("/proc/self/oom_score_adj").read_text())


def test_a_limit_that_may_not_be_raised_is_said_plainly(box: Any) -> None:
    hard = 10**9
    running = box.start(
        "ulimit -Hn", process={"rlimits": [{"type": "RLIMIT_NOFILE", "soft": hard, "hard": hard}]}
    )
    _, text = running.wait()
    if text.strip() == str(hard):
        assert running.process.warnings == ()
    else:
        assert running.process.warnings == (f"Could not set RLIMIT_NOFILE to {hard}:{hard}: EPERM",)


def test_a_read_only_root_stays_read_only(box: Any) -> None:
    """S10: also after an attempt to remount it."""
    _, text = box.run(
        "touch /x; mount -o remount,rw /; touch /y; touch /dev/shm/z && echo fine", readonly=True
    )
    assert text.count("Read-only file system") == 2 and text.endswith("fine\n")


def test_a_privileged_container_has_everything(box: Any) -> None:
    """S07: and it has it only because its specification says so."""
    linux: dict[str, Any] = {"maskedPaths": [], "readonlyPaths": [], "seccomp": None}
    linux["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    _, text = box.run(
        "grep -E 'CapEff|Seccomp:' /proc/self/status; mount -t tmpfs t /tmp && echo mounted",
        capabilities=NAMES,
        process={"noNewPrivileges": False},
        linux=linux,
    )
    held = int(text.split()[1], 16)
    own = int(Path("/proc/self/status").read_text().split("CapBnd:\t")[1].split()[0], 16)
    assert held == own
    assert "Seccomp:\t0" in text and text.endswith("mounted\n")


def test_nothing_is_inherited(box: Any) -> None:
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
def test_a_working_directory_behind_a_descriptor_is_refused(box: Any, number: int) -> None:
    """E02, CVE-2024-21626: also when the image has a symlink to it."""
    for path in (f"/proc/self/fd/{number}", "/tmp/link"):
        (box.root / "tmp/link").unlink(missing_ok=True)
        (box.root / "tmp/link").symlink_to(f"/proc/self/fd/{number}")
        try:
            running = box.start("readlink /proc/self/cwd", process={"cwd": path})
        except LaunchError:
            continue
        assert "unreachable" not in running.wait()[1]


def test_a_missing_working_directory_is_made(box: Any) -> None:
    assert box.run("readlink /proc/self/cwd", process={"cwd": "/srv/app"}) == (0, "/srv/app\n")


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_an_image_with_proc_or_sys_as_symlink_is_refused(box: Any, name: str) -> None:
    """E04, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642."""
    (box.root / "tmp" / name).mkdir()
    (box.root / name).symlink_to(f"tmp/{name}")
    with pytest.raises(LaunchError, match="symlink"):
        box.start("true")


@pytest.mark.parametrize("destination", ["/proc", "/proc/self/attr", "/proc/1", "/proc/../proc/sys"])
def test_a_volume_over_proc_is_refused(box: Any, tmp_path: Path, destination: str) -> None:
    """E05, CVE-2019-16884."""
    mount = {"destination": destination, "type": "bind", "source": str(tmp_path), "options": ["bind"]}
    with pytest.raises(LaunchError, match="proc"):
        box.start("true", mounts=[mount])


def test_a_file_of_proc_that_may_be_replaced_is(box: Any, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("ours\n")
    mount = {
        "destination": "/proc/cpuinfo",
        "type": "bind",
        "source": str(tmp_path / "cpuinfo"),
        "options": ["bind"],
    }
    assert box.run("cat /proc/cpuinfo", mounts=[mount]) == (0, "ours\n")


def test_symlinks_of_the_image_cannot_lead_a_mount_outside(box: Any, tmp_path: Path) -> None:
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
        running.wait()
    assert list(outside.iterdir()) == []


def test_binds_are_read_only_when_asked_and_recursively_when_asked(box: Any, tmp_path: Path) -> None:
    source = tmp_path / "volume"
    (source / "inner").mkdir(parents=True)
    box.kernel.mount("tmpfs", str(source / "inner"), "tmpfs", 0, "size=64k")
    try:
        for options, expected in (
            (["rbind", "rw"], "rw rw"),
            (["rbind", "ro"], "ro rw"),
            (["rbind", "rro"], "ro ro"),
        ):
            mount = {"destination": "/v", "type": "bind", "source": str(source), "options": options}
            script = "for d in /v /v/inner; do touch $d/x 2>/dev/null && echo rw || echo ro; done"
            assert " ".join(box.run(script, mounts=[mount])[1].split()) == expected
    finally:
        box.kernel.umount(str(source / "inner"), 2)


def test_mounts_of_the_container_do_not_reach_the_host(box: Any) -> None:
    """E15: and the old root is gone."""
    before = Path("/proc/self/mounts").read_text()
    options: dict[str, Any] = {"capabilities": NAMES, "linux": {"seccomp": None}}
    _, text = box.run("mount -t tmpfs mine /tmp; wc -l < /proc/mounts; grep -c mine /proc/mounts", **options)
    assert text.split()[1] == "1"
    assert Path("/proc/self/mounts").read_text() == before
    _, text = box.run("cat /proc/self/mountinfo")
    assert str(box.folder) not in text.replace("lowerdir", "").split(" - ")[0]
    assert all("shared:" not in line for line in text.splitlines())


def test_a_shared_host_mount_is_cut_off(box: Any) -> None:
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


def test_host_mounts_reach_a_volume_only_with_slave_propagation(box: Any, tmp_path: Path) -> None:
    source = tmp_path / "volume"
    (source / "later").mkdir(parents=True)
    target = str(source / "later")
    box.kernel.mount(str(source), str(source), "", 0x1000, "")
    box.kernel.mount("", str(source), "", 1 << 20, "")
    try:
        for option, seen in (("rslave", "1"), ("rprivate", "0")):
            mount = {"destination": "/v", "type": "bind", "source": str(source), "options": ["rbind", option]}
            running = box.start("echo up; sleep 60", mounts=[mount])
            running.read_until("up")
            box.kernel.mount("probe", target, "tmpfs", 0, "size=64k")
            try:
                _, text = box.exec(running, "grep -c ' /v/later tmpfs' /proc/mounts").wait()
            finally:
                box.kernel.umount(target, 2)
            assert text.strip() == seen, option
            running.cgroup.kill()
    finally:
        box.kernel.umount(str(source), 2)


def test_sysctls_are_set_in_the_containers_namespaces(box: Any) -> None:
    before = Path("/proc/sys/kernel/msgmax").read_text()
    linux = {"sysctl": {"net.ipv4.ip_unprivileged_port_start": "80", "kernel.msgmax": "4321"}}
    script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax"
    assert box.run(script, linux=linux)[1].split() == ["80", "4321"]
    assert Path("/proc/sys/kernel/msgmax").read_text() == before


def test_a_sysctl_cannot_leave_proc_sys(box: Any) -> None:
    """E09."""
    with pytest.raises(SpecError, match="sysctl"):
        box.start("true", linux={"sysctl": {"../sysrq-trigger": "h"}})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nosuch"], 'exec: "nosuch": executable file not found in $PATH'),
        (["/no/such"], 'exec: "/no/such": stat /no/such: no such file or directory'),
        (["/etc"], 'exec: "/etc": permission denied'),
    ],
)
def test_a_program_that_cannot_be_executed_is_named_as_runc_names_it(
    box: Any, args: list[str], message: str
) -> None:
    with pytest.raises(ExecutableError) as caught:
        box.start(args)
    assert str(caught.value) == message


def test_the_program_image_of_the_starter_cannot_be_reached(box: Any) -> None:
    """E01, CVE-2019-5736: /proc/self/exe is the container's own file; init's too."""
    _, text = box.run("readlink /proc/self/exe; readlink /proc/1/exe")
    assert text.split() == ["/bin/busybox", "/bin/busybox"]


def test_terminal_is_a_new_one_and_controlling(box: Any) -> None:
    """E14, CVE-2017-5226."""
    running = box.start(
        "tty; stty size; ls -l /dev/console; echo done",
        terminal=True,
        process={"consoleSize": {"height": 30, "width": 100}, "user": {"uid": 1000, "gid": 1000}},
    )
    text = b""
    while b"done" not in text:
        text += os.read(running.process.console, 4096)
    lines = text.decode().split("\r\n")
    assert lines[:2] == ["/dev/pts/0", "30 100"]
    assert lines[2].startswith("crw")
    running.cgroup.kill()


def test_exec_enters_everything(box: Any) -> None:
    running = box.start("echo up; exec sleep 60")
    running.read_until("up")
    code, text = box.exec(
        running,
        "hostname; ls -d /proc/[0-9]* | wc -l; grep -E 'Seccomp:|CapEff' /proc/self/status"
        "; cat /proc/self/cgroup | grep -vc ':/$'; exit 9",
    ).wait()
    assert code == 9
    assert text.split() == ["box", "4", "CapEff:", f"{0x5FB:016x}", "Seccomp:", "2", "0"]
    running.cgroup.kill()


def test_exec_with_a_terminal(box: Any) -> None:
    running = box.start("echo up; exec sleep 60")
    running.read_until("up")
    session = box.exec(running, "tty; echo done", terminal=True)
    text = b""
    while b"done" not in text:
        text += os.read(session.process.console, 4096)
    assert text.startswith(b"/dev/pts/0")
    running.cgroup.kill()


def test_exec_refuses_a_terminal_of_the_containers_making(box: Any) -> None:
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


def test_exec_into_an_ended_container_fails(box: Any) -> None:
    running = box.start("true")
    running.wait()
    with pytest.raises((LaunchError, FileNotFoundError)):
        box.exec(running, "true")
