"""What config.json says about how the process runs: scheduling, personality, memory policy, labels."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bundle import Bundle

from runtime.capabilities import NUMBERS

pytestmark = pytest.mark.privileged

BATCH, IDLE = 3, 5

# A whole 32-bit program: mkdir(""), and exit with what the kernel said (2: ENOENT).
MKDIR_32 = (
    bytes.fromhex("7f454c46010101000000000000000000")
    + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0x08048054, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    + struct.pack("<8I", 1, 0, 0x08048000, 0x08048000, 116, 116, 5, 4096)
    + bytes.fromhex("b827000000bb7280040831c9cd80f7d889c3b801000000cd80")
).ljust(116, b"\0")


def process(bundle: Bundle, **changes: Any) -> None:
    bundle.change(lambda config: config["process"].update(changes))


def linux(bundle: Bundle, **changes: Any) -> None:
    bundle.change(lambda config: config["linux"].update(changes))


def scheduled(bundle: Bundle) -> tuple[int, int]:
    """Policy and nice value of the container's process: fields 41 and 19 of its stat."""
    fields = Path(f"/proc/{bundle.pid()}/stat").read_text().rpartition(")")[2].split()
    return int(fields[38]), int(fields[16])


def test_a_32_bit_program_is_filtered_by_its_own_numbers(bundle: Bundle) -> None:
    """Killed, unless the profile names its architecture: then its rules hold for i386's calls."""
    program = bundle.root / "bin/mkdir32"
    program.write_bytes(MKDIR_32)
    program.chmod(0o755)
    try:
        assert subprocess.run([program]).returncode == 2
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        pytest.skip("a kernel that runs 32-bit programs is missing")
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    for architectures, code in ((["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], 7), (["SCMP_ARCH_X86_64"], 159)):
        linux(bundle, seccomp={**profile, "architectures": architectures})
        assert bundle.run("mkdir32; echo code=$?").stdout.split() == [f"code={code}"]


def test_the_scheduler_is_set(bundle: Bundle) -> None:
    process(bundle, scheduler={"policy": "SCHED_BATCH", "nice": 7})
    bundle.start("sleep", "1000")
    assert scheduled(bundle) == (BATCH, 7)


def test_the_scheduler_of_an_exec_is_its_own(bundle: Bundle, tmp_path: Path) -> None:
    bundle.start("sleep", "1000")
    (tmp_path / "process").write_text(
        json.dumps({
            "args": ["cat", "/proc/self/stat"], "cwd": "/", "env": ["PATH=/bin"],
            "scheduler": {"policy": "SCHED_IDLE"},
        })
    )  # fmt: skip
    done = bundle("exec", "--process", str(tmp_path / "process"), bundle.identity)
    assert int(done.stdout.rpartition(")")[2].split()[38]) == IDLE, done.stderr
    assert scheduled(bundle)[0] == 0


def test_a_realtime_scheduler_is_set_or_named_in_the_error(bundle: Bundle) -> None:
    process(bundle, scheduler={"policy": "SCHED_FIFO", "priority": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]})
    bundle.args("sleep", "1000")
    if bundle.create().returncode:
        # cgroup v1 gives no realtime budget to a new cgroup; elsewhere it may be the missing capability.
        assert "Could not set the scheduling policy SCHED_FIFO: EPERM" in bundle.output()
    else:
        assert scheduled(bundle)[0] & ~0x40000000 == 1


def test_the_io_priority_is_set(bundle: Bundle) -> None:
    process(bundle, ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 6})
    bundle.start("sleep", "1000")
    assert io_priority(bundle.pid()) == 2 << 13 | 6


def io_priority(pid: int) -> int:
    import ctypes

    number = 252 if os.uname().machine == "x86_64" else 31
    return int(ctypes.CDLL(None).syscall(number, 1, pid))


def test_the_personality_is_set(bundle: Bundle) -> None:
    linux(bundle, personality={"domain": "LINUX32"})
    bundle.start("sleep", "1000")
    assert int(Path(f"/proc/{bundle.pid()}/personality").read_text(), 16) == 8
    assert bundle("exec", bundle.identity, "cat", "/proc/self/personality").stdout.strip() == "00000008"


def test_the_memory_policy_is_set(bundle: Bundle) -> None:
    if not Path("/proc/self/numa_maps").exists():
        pytest.skip("NUMA support of the kernel is missing")
    linux(bundle, memoryPolicy={"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]})
    bundle.start("sleep", "1000")
    assert "bind=static:0" in Path(f"/proc/{bundle.pid()}/numa_maps").read_text()


@pytest.mark.parametrize("mode", ["MPOL_DEFAULT", "MPOL_LOCAL"])
def test_a_memory_policy_without_nodes_is_set(bundle: Bundle, mode: str) -> None:
    if not Path("/proc/self/numa_maps").exists():
        pytest.skip("NUMA support of the kernel is missing")
    linux(bundle, memoryPolicy={"mode": mode})
    done = bundle.run("grep -m1 -oE 'default|local' /proc/self/numa_maps")
    assert done.stdout == f"{mode.removeprefix('MPOL_').lower()}\n", done.stderr


def test_the_callers_processors_are_not_inherited(bundle: Bundle) -> None:
    """The container's cgroup says where it runs, as with runc and crun."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        bundle.start("sleep", "1000")
        done = bundle("exec", bundle.identity, "sh", "-c", "grep Cpus_allowed: /proc/self/status")
        assert os.sched_getaffinity(bundle.pid()) == everywhere
    finally:
        os.sched_setaffinity(0, everywhere)
    lines = Path("/proc/self/status").read_text().splitlines()
    ours = next(line for line in lines if line.startswith("Cpus_allowed:"))
    assert done.stdout.split() == ours.split(), done.stderr


def test_an_exec_runs_on_the_processors_it_is_given(bundle: Bundle) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    process(bundle, execCPUAffinity={"initial": str(cpus[0]), "final": str(cpus[-1])})
    bundle.start("sleep", "1000")
    assert os.sched_getaffinity(bundle.pid()) == set(cpus)
    allowed = "grep Cpus_allowed_list /proc/self/status"
    done = bundle("exec", bundle.identity, "sh", "-c", allowed)
    assert done.stdout.split() == ["Cpus_allowed_list:", str(cpus[-1])], done.stderr


def test_without_a_final_set_an_exec_runs_where_the_cgroup_allows(bundle: Bundle) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    process(bundle, execCPUAffinity={"initial": str(cpus[0])})
    bundle.start("sleep", "1000")
    done = bundle("exec", bundle.identity, "sh", "-c", "grep Cpus_allowed: /proc/self/status")
    lines = Path("/proc/self/status").read_text().splitlines()
    ours = next(line for line in lines if line.startswith("Cpus_allowed:"))
    assert done.stdout.split() == ours.split(), done.stderr


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scheduler": {"policy": "SCHED_LATER"}}, "process.scheduler.policy"),
        ({"scheduler": {"policy": "SCHED_OTHER", "nice": 20}}, "process.scheduler.nice"),
        ({"scheduler": {"policy": "SCHED_OTHER", "flags": ["X"]}}, "process.scheduler.flags"),
        ({"ioPriority": {"class": "IOPRIO_CLASS_BEST", "priority": 1}}, "process.ioPriority.class"),
        ({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}}, "process.ioPriority.priority"),
        ({"execCPUAffinity": {"initial": "x"}}, "process.execCPUAffinity.initial"),
    ],
)
def test_a_wrong_process_is_named(bundle: Bundle, changes: dict[str, Any], field: str) -> None:
    process(bundle, **changes)
    assert field in bundle.run("true").stderr


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"personality": {"domain": "WINDOWS"}}, "linux.personality.domain"),
        ({"personality": {"domain": "LINUX", "flags": ["X"]}}, "linux.personality.flags"),
        ({"memoryPolicy": {"mode": "MPOL_BIND"}}, "linux.memoryPolicy.nodes"),
        ({"memoryPolicy": {"mode": "MPOL_LOCAL", "nodes": "0"}}, "linux.memoryPolicy.nodes"),
        ({"intelRdt": {"closID": "x"}}, "linux.intelRdt: is not supported"),
        ({"netDevices": {"eth0": {}}}, "linux.netDevices: is not supported"),
        ({"resources": {"memory": {"limit": "much"}}}, "linux.resources.memory.limit"),
        ({"resources": {"pids": {"limit": True}}}, "linux.resources.pids.limit"),
        ({"resources": {"hugepageLimits": [{"limit": 1}]}}, "linux.resources.hugepageLimits[0].pageSize"),
        ({"resources": {"unified": {"../x": "1"}}}, "linux.resources.unified[../x]"),
    ],
)
def test_a_wrong_linux_part_is_named(bundle: Bundle, changes: dict[str, Any], field: str) -> None:
    linux(bundle, **changes)
    assert field in bundle.run("true").stderr


def test_labels_are_refused_where_no_security_module_runs(bundle: Bundle) -> None:
    if not Path("/sys/kernel/security/apparmor").exists():
        process(bundle, apparmorProfile="acme")
        assert "AppArmor is not enabled on this host" in bundle.run("true").stderr
        process(bundle, apparmorProfile="unconfined")
        assert bundle.run("true").returncode == 0
    if not Path("/sys/fs/selinux/status").exists():
        process(bundle, selinuxLabel="system_u:system_r:container_t:s0")
        assert "SELinux is not enabled on this host" in bundle.run("true").stderr
        process(bundle, selinuxLabel="")
        linux(bundle, mountLabel="system_u:object_r:container_file_t:s0")
        assert "SELinux is not enabled on this host" in bundle.run("true").stderr


def test_a_capability_that_is_not_ours_to_give_is_a_warning(bundle: Bundle) -> None:
    """config.md: it MUST be logged, and should not fail."""
    held = int(Path("/proc/self/status").read_text().split("CapBnd:")[1].split()[0], 16)
    name = next((name for name, number in NUMBERS.items() if not held >> number & 1), "")
    if not name:
        pytest.skip("a capability that root does not have here is missing")
    sets = {key: ["CAP_KILL", name] for key in ("bounding", "effective", "permitted")}
    process(bundle, capabilities=sets)
    done = bundle.run("grep CapEff /proc/self/status")
    assert done.stdout.split() == ["CapEff:", f"{1 << NUMBERS['CAP_KILL']:016x}"]
    assert f"Could not give {name}: EPERM" in done.stderr
    bundle.start("sleep", "1000")
    assert f"Could not give {name}: EPERM" in (bundle.state / bundle.identity / "warnings").read_text()


def test_an_unknown_capability_is_a_warning(bundle: Bundle) -> None:
    sets = {name: ["CAP_CHOWN", "CAP_FLY"] for name in ("bounding", "effective", "permitted")}
    process(bundle, capabilities=sets)
    done = bundle.run("grep CapEff /proc/self/status")
    assert done.stdout.split()[1] == "0000000000000001"
    assert "Could not give capability 'CAP_FLY'" in done.stderr


def test_a_hostname_needs_a_uts_namespace(bundle: Bundle) -> None:
    def drop(config: dict[str, Any]) -> None:
        spaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [n for n in spaces if n["type"] != "uts"]

    bundle.change(drop)
    assert "hostname: needs a UTS namespace" in bundle.run("true").stderr


def test_the_domain_name_is_set(bundle: Bundle) -> None:
    bundle.change(lambda config: config.update(domainname="example.com"))
    done = bundle.run("cat /proc/sys/kernel/domainname")
    assert done.stdout == "example.com\n", done.stderr


def test_a_mount_namespace_is_joined(bundle: Bundle, tmp_path: Path) -> None:
    """Its other processes keep their root."""
    import subprocess

    other = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "1000"])
    try:
        path = f"/proc/{other.pid}/ns/mnt"
        while os.readlink(path) == os.readlink("/proc/self/ns/mnt"):
            os.sched_yield()
        bundle.namespace("mount", path)
        done = bundle.run("stat -Lc %i /proc/self/ns/mnt; cat /full/file")
        assert done.stdout == f"{os.stat(path).st_ino}\nfrom the image\n", done.stderr
        assert os.readlink(f"/proc/{other.pid}/root") == "/"
    finally:
        other.kill()
        other.wait()


def test_the_callers_null_is_the_containers(bundle: Bundle) -> None:
    """containerd gives one that is open for reading alone; runc opens the container's own instead, whose mode
    and owner are the container's business."""
    (bundle.root / "bin/chmod").symlink_to("busybox")
    before = os.stat("/dev/null").st_ctime_ns
    script = "chmod 666 /proc/self/fd/0 && stat -c %a /dev/null >&2; echo written && echo so >&2"
    with open("/dev/null") as null, open(bundle.folder / "told", "w") as told:
        bundle.args("sh", "-c", script)
        bundle("run", "--bundle", str(bundle.folder), bundle.identity,
               capture_output=False, stdin=null, stdout=null, stderr=told)  # fmt: skip
        assert (bundle.folder / "told").read_text() == "666\nso\n"
        bundle.start("sleep", "1000")
        bundle("exec", bundle.identity, "sh", "-c", script,
               capture_output=False, stdin=null, stdout=null, stderr=told)  # fmt: skip
    assert (bundle.folder / "told").read_text() == "666\nso\n" * 2
    assert os.stat("/dev/null").st_ctime_ns == before
