"""What a container sees and may do by default, on the real kernel. Names refer to the security checklist."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ExecutableError, LaunchError

pytestmark = pytest.mark.privileged


def test_it_has_its_own_processes_hostname_network_and_root(box: Any) -> None:
    code, text = box.run(f"hostname; ls -d /proc/[0-9]*; ip -o link | wc -l; cat {__file__}; exit 3")
    lines = text.split("\n")
    assert code == 3
    assert lines[:2] == ["box", "/proc/1"]
    assert "1" in lines
    assert "No such file" in text


def test_what_it_writes_lands_in_its_upper_layer_only(box: Any) -> None:
    box.run("echo hi > /etc/new; rm /bin/ping")
    assert (box.upper() / "etc/new").read_text() == "hi\n"
    assert not (box.root / "etc/new").exists() and (box.root / "bin/ping").is_symlink()


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


def test_a_missing_working_directory_is_made(box: Any) -> None:
    assert box.run("readlink /proc/self/cwd", process={"cwd": "/srv/app"}) == (0, "/srv/app\n")


def test_a_file_of_proc_that_may_be_replaced_is(box: Any, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("ours\n")
    mount = {
        "destination": "/proc/cpuinfo",
        "type": "bind",
        "source": str(tmp_path / "cpuinfo"),
        "options": ["bind"],
    }
    assert box.run("cat /proc/cpuinfo", mounts=[mount]) == (0, "ours\n")


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


def test_exec_into_an_ended_container_fails(box: Any) -> None:
    running = box.start("true")
    running.wait()
    with pytest.raises((LaunchError, FileNotFoundError)):
        box.exec(running, "true")
