"""The OCI checklist, one test per row, named after it: the process and its file systems."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from bundle import Bundle

pytestmark = pytest.mark.privileged

MAPPING = [{"containerID": 0, "hostID": 100000, "size": 65536}]


def linux(bundle: Bundle, **changes: Any) -> None:
    bundle.change(lambda config: config["linux"].update(changes))


def process(bundle: Bundle, **changes: Any) -> None:
    bundle.change(lambda config: config["process"].update(changes))


def namespaces(bundle: Bundle, *, without: str = "", path: str = "") -> None:
    """The example's, without one of them, or with that one joined."""

    def edit(config: dict[str, Any]) -> None:
        listed = [n for n in config["linux"]["namespaces"] if n["type"] != without]
        config["linux"]["namespaces"] = listed + ([{"type": without, "path": path}] if path else [])
        if without == "uts":
            config.pop("hostname", None)

    bundle.change(edit)


def test_linux_devices(bundle: Bundle) -> None:
    """Character, block and FIFO nodes with mode and owner; the specification's own are there anyway."""
    linux(
        bundle,
        devices=[
            {"path": "/dev/full2", "type": "c", "major": 1, "minor": 7, "fileMode": 0o640,
             "uid": 5, "gid": 6},
            {"path": "/dev/ram", "type": "b", "major": 1, "minor": 0, "fileMode": 0o600},
            {"path": "/dev/deep/pipe", "type": "p", "fileMode": 0o622},
        ],
    )  # fmt: skip
    done = bundle.run("cd /dev; stat -c '%F %t:%T %a %u:%g' full2 ram deep/pipe null; ls -d zero full random "
                      "urandom tty ptmx fd stdin stdout stderr | wc -l")  # fmt: skip
    assert done.stdout.splitlines() == [
        "character special file 1:7 640 5:6", "block special file 1:0 600 0:0", "fifo 0:0 622 0:0",
        "character special file 1:3 666 0:0", "10",
    ], done.stderr  # fmt: skip


def test_linux_masked_paths(bundle: Bundle) -> None:
    (bundle.root / "masked-folder").mkdir()
    (bundle.root / "masked-folder/file").write_text("secret")
    (bundle.root / "masked-file").write_text("secret")
    linux(bundle, maskedPaths=["/masked-folder", "/masked-file", "/missing", "/proc/kcore", "/proc/acpi"])
    done = bundle.run("ls /masked-folder; cat /masked-file /proc/kcore; touch /masked-folder/x; echo $?")
    assert done.stdout == "1\n" and "secret" not in done.stderr
    linux(bundle, maskedPaths=["relative"])
    assert "linux.maskedPaths[0]" in bundle.run("true").stderr


def test_linux_readonly_paths(bundle: Bundle) -> None:
    (bundle.root / "readonly-folder").mkdir()
    (bundle.root / "readonly-file").write_text("text\n")
    linux(bundle, readonlyPaths=["/readonly-folder", "/readonly-file", "/missing", "/proc/sys"])
    done = bundle.run(
        "cat /readonly-file; for f in /readonly-folder/x /readonly-file /proc/sys/kernel/hostname; "
        "do echo x > $f || echo refused; done 2> /dev/null"
    )
    assert done.stdout == "text\n" + "refused\n" * 3, done.stderr


def test_linux_mount_label(bundle: Bundle) -> None:
    """SELinux's context for mounts; where there is no SELinux, an error that says so."""
    linux(bundle, mountLabel="system_u:object_r:tmp_t:s0")
    done = bundle.run("cat /proc/self/mountinfo")
    if Path("/sys/fs/selinux/status").exists():
        assert "context=" in done.stdout
    else:
        assert "SELinux is not enabled on this host" in done.stderr


@pytest.mark.parametrize("kind", ["cgroup", "ipc", "network", "pid", "uts"])
def test_linux_ns_itype(bundle: Bundle, kind: str) -> None:
    """What is not listed is the runtime's own."""
    namespaces(bundle, without=kind)
    name = {"network": "net"}.get(kind, kind)
    done = bundle.run(f"stat -Lc %i /proc/self/ns/{name}")
    assert int(done.stdout) == os.stat(f"/proc/self/ns/{name}").st_ino, done.stderr


@pytest.mark.parametrize("kind", ["cgroup", "ipc", "network", "pid", "uts", "mount", "user", "time"])
def test_linux_ns_nopath(bundle: Bundle, kind: str) -> None:
    """Without a path a new one is made."""
    if kind == "user":
        linux(bundle, uidMappings=MAPPING, gidMappings=MAPPING)
        for folder, names, files in os.walk(bundle.root):
            for name in (".", *names, *files):
                os.chown(f"{folder}/{name}", 100000, 100000, follow_symlinks=False)
    bundle.namespace(kind)
    name = {"network": "net", "mount": "mnt"}.get(kind, kind)
    done = bundle.run(f"stat -Lc %i /proc/self/ns/{name}")
    assert int(done.stdout) != os.stat(f"/proc/self/ns/{name}").st_ino, done.stderr


@pytest.mark.parametrize("kind", ["cgroup", "ipc", "network", "pid", "uts", "time"])
def test_linux_ns_path(bundle: Bundle, tmp_path: Path, kind: str, oci_binary: str) -> None:
    """A namespace of another container is joined. (mount and user: test_process.py, test_namespaces.py.)"""
    bundle.namespace(kind)
    bundle.start("sleep", "1000")
    name = {"network": "net"}.get(kind, kind)
    path = f"/proc/{bundle.pid()}/ns/{name}"
    (tmp_path / "second").mkdir()
    second = Bundle(tmp_path / "second", oci_binary, bundle.root)
    namespaces(second, without=kind, path=path)
    second.args("stat", "-Lc", "%i", f"/proc/self/ns/{name}")
    done = second("run", "--bundle", str(second.folder), f"second-{os.getpid()}")
    assert int(done.stdout) == os.stat(path).st_ino, done.stderr


@pytest.mark.parametrize("kind", ["cgroup", "ipc", "network", "pid", "uts", "mount"])
def test_linux_ns_path_type(bundle: Bundle, kind: str) -> None:
    """A path of another type is an error."""
    wrong = "uts" if kind != "uts" else "ipc"
    namespaces(bundle, without=kind, path=f"/proc/self/ns/{wrong}")
    bundle.args("true")
    assert bundle.create().returncode != 0
    assert "EINVAL" in bundle.output()


def test_linux_process_apparmor_profile(bundle: Bundle) -> None:
    """Where the kernel has AppArmor the profile is set; elsewhere an error says so."""
    process(bundle, apparmorProfile="acme_secure_profile")
    stderr = bundle.run("true").stderr
    if Path("/sys/kernel/security/apparmor").exists():
        assert "acme_secure_profile" in stderr
    else:
        assert "AppArmor is not enabled on this host" in stderr


@pytest.mark.parametrize("propagation", ["shared", "slave", "private", "unbindable", "rshared", "rprivate"])
def test_linux_rootfs_propagation(bundle: Bundle, propagation: str) -> None:
    linux(bundle, rootfsPropagation=propagation)
    done = bundle.run("grep ' / / ' /proc/self/mountinfo || grep -m1 ' / ' /proc/self/mountinfo")
    optional = done.stdout.split(" - ")[0]
    expected = {"shared": "shared:", "unbindable": "unbindable"}.get(propagation.removeprefix("r"), "")
    assert done.returncode == 0 and expected in optional, done.stderr
    assert expected == "shared:" or "shared:" not in optional


def test_linux_seccomp(bundle: Bundle) -> None:
    rule = {"names": ["getcwd"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    linux(bundle, seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    done = bundle.run("grep Seccomp: /proc/self/status; cd /bin; sh -c 'unset PWD; busybox pwd'")
    assert "Seccomp:\t2" in done.stdout, done.stderr
    assert "Function not implemented" in done.stderr


def test_linux_sysctl(bundle: Bundle) -> None:
    linux(bundle, sysctl={"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096"})
    done = bundle.run("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax")
    assert done.stdout.split() == ["1", "4096"], done.stderr
    linux(bundle, sysctl={"kernel.core_pattern": "|/bin/sh"})
    assert "not in a separate kernel namespace" in bundle.run("true").stderr


def test_linux_uid_mappings(bundle: Bundle) -> None:
    bundle.namespace("user", uidMappings=MAPPING, gidMappings=MAPPING)
    for folder, names, files in os.walk(bundle.root):
        for name in (".", *names, *files):
            os.chown(f"{folder}/{name}", 100000, 100000, follow_symlinks=False)
    done = bundle.run("cat /proc/self/uid_map /proc/self/gid_map; id -u")
    assert done.stdout.split() == ["0", "100000", "65536"] * 2 + ["0"], done.stderr


def test_mounts(bundle: Bundle, tmp_path: Path) -> None:
    """In the listed order (of create: `run` lets its process mount /proc last), with their options."""
    (tmp_path / "file").write_text("bound\n")
    options = ["nosuid", "noexec", "size=1m", "sync"]
    bundle.mount(destination="/tmp", type="tmpfs", source="tmpfs", options=options)
    bundle.mount(destination="/tmp/file", type="bind", source=str(tmp_path / "file"), options=["bind", "ro"])
    bundle.mount(destination="/tmp", type="none", source="none", options=["remount", "ro"])
    bundle.start("sh", "-c", "cat /proc/self/mountinfo /tmp/file; touch /tmp/x; exec sleep 1000")
    bundle.wait_for("Read-only")
    lines = bundle.output().splitlines()
    places = [line.split()[4] for line in lines if line.count(" ") > 7]
    listed = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"]
    listed += ["/tmp", "/tmp/file"]
    assert [place for place in places if place in listed] == listed
    tmp = next(line for line in lines if " /tmp " in line)
    assert {"ro", "nosuid", "noexec"} <= set(tmp.split()[5].split(",")) and "sync" in tmp.split(" - ")[1]
    assert "bound" in lines
    bundle("delete", "--force", bundle.identity)
    bundle.mount(destination="/mnt", type="nosuchfs", source="x")
    assert "Could not mount x on /mnt: ENODEV" in bundle.run("true").stderr


def test_process(bundle: Bundle) -> None:
    """Arguments, environment and working directory, which is made when it is missing."""
    process(bundle, cwd="/made/here", env=["PATH=/bin", "A=b c"])
    assert bundle.run('pwd; echo "$A"').stdout == "/made/here\nb c\n"
    process(bundle, args=[])
    assert "process.args" in bundle("run", "--bundle", str(bundle.folder), bundle.identity).stderr


def test_process_capabilities(bundle: Bundle) -> None:
    sets = {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_CHROOT"], "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
    }  # fmt: skip
    process(bundle, capabilities=sets, user={"uid": 1000, "gid": 1000})
    done = bundle.run("grep ^Cap /proc/self/status")
    found = {line.split(":")[0]: int(line.split()[1], 16) for line in done.stdout.splitlines()}
    chown, kill, chroot = 1 << 0, 1 << 5, 1 << 18
    assert found["CapBnd"] == chown | kill | chroot
    # execve of a file without capabilities leaves another user the ambient set.
    assert (found["CapInh"], found["CapAmb"], found["CapPrm"], found["CapEff"]) == (kill,) * 4


def test_process_capabilities_fail(bundle: Bundle) -> None:
    """Specification 1.1 and later: an unknown one is a warning, and the container runs without it."""
    process(bundle, capabilities={"bounding": ["TEST_CAP"]})
    done = bundle.run("true")
    assert done.returncode == 0 and "capability 'TEST_CAP'" in done.stderr
    process(bundle, capabilities={"bounding": [7]})
    assert "process.capabilities.bounding[0]" in bundle.run("true").stderr


def test_process_oom_score_adj(bundle: Bundle) -> None:
    process(bundle, oomScoreAdj=500)
    assert bundle.run("cat /proc/self/oom_score_adj").stdout == "500\n"
    process(bundle, oomScoreAdj=1001)
    assert "process.oomScoreAdj" in bundle.run("true").stderr


def test_process_rlimits(bundle: Bundle) -> None:
    files = {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}
    process(bundle, rlimits=[files, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}])
    done = bundle.run("ulimit -Sn; ulimit -Hn; ulimit -c")
    assert done.stdout.split() == ["100", "200", "0"], done.stderr


def test_process_rlimits_fail(bundle: Bundle) -> None:
    process(bundle, rlimits=[{"type": "RLIMIT_TEST", "soft": 1, "hard": 1}])
    assert "process.rlimits[0].type" in bundle.run("true").stderr
    process(bundle, rlimits=[{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2)
    assert "is given twice" in bundle.run("true").stderr


def test_process_user(bundle: Bundle) -> None:
    process(bundle, user={"uid": 10, "gid": 11, "umask": 0o27, "additionalGids": [12, 13]})
    assert bundle.run("id -u; id -g; id -G; umask").stdout.split() == ["10", "11", "11", "12", "13", "0027"]


def test_root_readonly_true(bundle: Bundle) -> None:
    bundle.change(lambda config: config["root"].update(readonly=True))
    done = bundle.run("touch /file; echo $?; touch /dev/shm/file; echo $?")
    assert done.stdout == "1\n0\n" and "Read-only" in done.stderr
