"""What a pod's container may do when nobody says anything: checklist "Defaults", S01 to S14.

The containers are described by the agent itself, from pods, so both halves are under test. Probes open for
writing and write nothing: a test that fails must not have changed the machine.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.errors import ContainerConfigError, SandboxError
from kubelet_py.pods import resources, security
from runtime.capabilities import DEFAULT, NAMES
from runtime.errors import SpecError
from runtime.kernel import Filter, Step
from runtime.linux import LinuxKernel
from runtime.machine import Machine, this_machine
from runtime.seccomp.filter import compiled
from runtime.seccomp.profile import runtime_default
from runtime.seccomp.syscalls import numbers
from runtime.spec import parse
from tests.privileged.runtime_service.harness import wait_for

pytestmark = pytest.mark.privileged

NINE = f"{0x5FB:016x}"
NOTHING = "0" * 16


def sets(text: str) -> dict[str, str]:
    lines = (line.split(":\t") for line in text.splitlines() if line.startswith("Cap"))
    return {line[0]: line[1] for line in lines}


def held(pods: Any, **how: Any) -> set[str]:
    """Names of the bounding set that a container with this securityContext sees."""
    value = int(sets(pods.run("cat /proc/self/status", **how))["CapBnd"], 16)
    return {name for number, name in enumerate(NAMES) if value >> number & 1}


# -- S01, S02: capabilities ------------------------------------------------------------------------------


def test_S01_the_default_capabilities_are_nine(pods: Any) -> None:
    """S01, CVE-2022-24769, CVE-2022-29162: exactly the nine; inheritable and ambient empty."""
    found = sets(pods.run("cat /proc/self/status"))
    assert found == {"CapInh": NOTHING, "CapPrm": NINE, "CapEff": NINE, "CapBnd": NINE, "CapAmb": NOTHING}


def test_S01_another_user_than_root_starts_with_none(pods: Any) -> None:
    """S01: nothing effective, permitted, inheritable or ambient for uid 1000."""
    found = sets(pods.run("cat /proc/self/status", security={"runAsUser": 1000, "runAsGroup": 1000}))
    assert found == {**dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), NOTHING), "CapBnd": NINE}


def test_S01_an_exec_gets_no_more_than_its_container(pods: Any) -> None:
    """S01: kubectl exec goes the same way as the start."""
    running = pods.start("echo up; exec sleep 60")
    running.read_until("up")
    _, text = pods.box.exec(running, "cat /proc/self/status").wait()
    assert sets(text)["CapEff"] == NINE and "Seccomp:\t2" in text


def test_S02_dropping_all_leaves_nothing(pods: Any) -> None:
    """S02: drop ALL."""
    text = pods.run("cat /proc/self/status", security={"capabilities": {"drop": ["ALL"]}})
    assert set(sets(text).values()) == {NOTHING}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"add": ["NET_RAW"]}, {*DEFAULT, "CAP_NET_RAW"}),
        ({"add": ["CAP_NET_RAW"]}, {*DEFAULT, "CAP_NET_RAW"}),
        ({"drop": ["CHOWN", "CAP_KILL"]}, {*DEFAULT} - {"CAP_CHOWN", "CAP_KILL"}),
        ({"add": ["NET_RAW"], "drop": ["NET_RAW"]}, {*DEFAULT}),
        ({"add": ["CHOWN"], "drop": ["ALL"]}, {"CAP_CHOWN"}),
    ],
)
def test_S02_capabilities_are_added_and_dropped_by_name(pods: Any, wanted: Any, expected: set[str]) -> None:
    """S02: with and without CAP_; a name in both lists is dropped, one beside drop ALL is kept, as in CRI."""
    bounding = int(Path("/proc/self/status").read_text().split("CapBnd:\t")[1].split()[0], 16)
    possible = {name for number, name in enumerate(NAMES) if bounding >> number & 1}
    assert held(pods, security={"capabilities": wanted}) == expected & possible


@pytest.mark.parametrize("where", ["add", "drop"])
def test_S02_unknown_capabilities_are_refused(pods: Any, where: str) -> None:
    """S02: a typing error must not silently leave a capability in place."""
    with pytest.raises(ContainerConfigError, match="NET_ROW"):
        pods.describe("true", security={"capabilities": {where: ["NET_ROW"]}})


# -- S03: no_new_privs -----------------------------------------------------------------------------------


def build(target: Path, program: str, *more: str) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is missing")
    command = [compiler, "-static", *more, "-x", "c", "-", "-o", str(target)]
    subprocess.run(command, input=program.encode(), check=True)


@pytest.mark.parametrize("allowed", [False, True])
def test_S03_a_setuid_program_gains_nothing_without_escalation(pods: Any, allowed: bool) -> None:
    """S03: allowPrivilegeEscalation false means no_new_privs; the other case shows that the test can tell."""
    build(
        pods.box.root / "bin/effective",
        '#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf("%d\\n", geteuid()); return 0; }',
    )
    (pods.box.root / "bin/effective").chmod(0o4755)
    context = {"runAsUser": 1000, "runAsGroup": 1000, "allowPrivilegeEscalation": allowed}
    text = pods.run("grep NoNewPrivs /proc/self/status; effective", security=context)
    assert text.split() == ["NoNewPrivs:", *(("0", "0") if allowed else ("1", "1000"))]


# -- S04: seccomp ----------------------------------------------------------------------------------------


def answers(calls: list[tuple[str, tuple[int, ...]]], capabilities: tuple[str, ...] = DEFAULT) -> list[int]:
    """What the kernel answers to system calls made under RuntimeDefault by a child without privileges."""
    machine = this_machine()
    program, flags = compiled(runtime_default(capabilities, machine.name))
    everything = Machine(
        machine.name, machine.elf_machine, machine.audit_arch, numbers(machine.name), machine.spawn,
        machine.page,
        machine.mode_offset,
        machine.rdev_offset,
    )  # fmt: skip
    steps = [
        Step("prctl", (38, 1, 0, 0, 0)),
        Step("seccomp", (1, flags, Filter(program))),
        *(Step(name, arguments, tolerate=True) for name, arguments in calls),
        Step("execve", ("/usr/bin/busybox", ("true",), ())),
    ]
    spawned = LinuxKernel(everything).spawn(steps)
    os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
    os.close(spawned.pidfd)
    return list(spawned.results[2:-1])


DENIED: list[tuple[str, tuple[int, ...]]] = [
    ("unshare", (0x20000,)), ("unshare", (0x10000000,)), ("mount", (0, 0, 0, 0, 0)), ("bpf", (0, 0, 0)),
    ("keyctl", (0, 0, 0, 0, 0)), ("add_key", (0, 0, 0, 0, 0)), ("setns", (0, 0)),
    ("kexec_load", (0, 0, 0, 0)),
    ("open_by_handle_at", (0, 0, 0)), ("io_uring_setup", (1, 0)), ("userfaultfd", (0,)),
    ("socket", (40, 1, 0)), ("personality", (0x0040000,)), ("clone", (0x10000000, 0, 0, 0, 0)),
    ("clone", (0x7E020000, 0, 0, 0, 0)), ("perf_event_open", (0, 0, 0, 0, 0)), ("swapon", (0, 0)),
    ("pivot_root", (0, 0)), ("chroot", (0,)), ("syslog", (0, 0, 0)), ("quotactl", (0, 0, 0, 0)),
]  # fmt: skip


@pytest.mark.parametrize("call", DENIED, ids=lambda call: f"{call[0]}-{call[1][0]:#x}")
def test_S04_a_dangerous_system_call_is_refused(call: tuple[str, tuple[int, ...]]) -> None:
    """S04: EPERM from the filter for what a container without SYS_ADMIN has no use for."""
    assert answers([call]) == [-errno.EPERM]


def test_S04_clone3_does_not_exist() -> None:
    """S04: its flags are behind a pointer, so ENOSYS makes C libraries use clone, whose flags are seen."""
    assert answers([("clone3", (0, 0))]) == [-errno.ENOSYS]


@pytest.mark.parametrize("kept", [True, False])
def test_S04_the_filter_is_loaded_with_and_without_no_new_privs(pods: Any, kept: bool) -> None:
    """S04: loaded after the credentials with no_new_privs, before them without."""
    text = pods.run("grep Seccomp: /proc/self/status", security={"allowPrivilegeEscalation": kept})
    assert text.split() == ["Seccomp:", "2"]


def test_S04_with_no_new_privs_the_filter_comes_after_the_credentials(pods: Any) -> None:
    """S04: so a profile need not know what giving up rights takes, and nobody can do that again."""
    names = ["setresuid", "setresgid", "setgroups", "capset", "prctl", "setuid"]
    spec = pods.describe(
        "id -u; grep Seccomp: /proc/self/status",
        security={"runAsUser": 1000, "runAsGroup": 1000, "allowPrivilegeEscalation": False},
    )
    rule = {"names": names, "action": "SCMP_ACT_ERRNO"}
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    assert pods.box.start("", spec=spec).wait()[1].split() == ["1000", "Seccomp:", "2"]


def test_S04_other_entries_into_the_kernel_are_killed(pods: Any) -> None:
    """S04: x32's numbers would pass by a filter that only knows x86-64's."""
    if this_machine().name != "x86_64":
        pytest.skip("an x86-64 machine is missing")
    program = "#include <unistd.h>\n#include <sys/syscall.h>\n"
    program += "int main(void) { return syscall(0x40000000 + 39) == -1 ? 3 : 4; }"
    build(pods.box.root / "bin/x32", program)
    assert pods.start("x32; echo code=$?").wait()[1] == "Bad system call\ncode=159\n"


PROGRAM_OF_32_BITS = """
static int call(int number, int a, int b, int c) {
  int answer;
  __asm__ volatile("int $0x80" : "=a"(answer) : "0"(number), "b"(a), "c"(b), "d"(c) : "memory");
  return answer;
}
void _start(void) {
  call(4, 1, (int)"32 bits\\n", 8);
  call(1, 0, 0, 0);
}
"""


def test_S04_a_32_bit_program_is_killed(pods: Any) -> None:
    """S04: i386's numbers are others, and its socketcall hides the family of a socket from every filter."""
    if this_machine().name != "x86_64":
        pytest.skip("an x86-64 machine is missing")
    target = pods.box.root / "bin/of32"
    build(target, PROGRAM_OF_32_BITS, "-m32", "-nostdlib", "-ffreestanding", "-fno-stack-protector")
    try:
        assert subprocess.run([target], capture_output=True).stdout == b"32 bits\n"
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        pytest.skip("a kernel that runs 32-bit programs is missing")
    assert pods.start("of32; echo code=$?").wait()[1] == "Bad system call\ncode=159\n"


# -- S05, S06, S07: masked and read-only paths, privileged -------------------------------------------------


@pytest.mark.parametrize("path", security.MASKED)
def test_S05_a_masked_path_shows_nothing(pods: Any, path: str) -> None:
    """S05: a file is device 1:3, a folder an empty read-only tmpfs; what this kernel lacks needs no mask."""
    assert path in pods.describe("true")["linux"]["maskedPaths"]
    if not os.path.exists(path):
        pytest.skip(f"this kernel has no {path}")
    text = pods.run(f"stat -c %F:%t:%T {path}; cat {path} 2>/dev/null | wc -c; ls {path} | wc -w")
    if os.path.isdir(path):
        assert text.split() == ["directory:0:0", "0", "0"]
        assert "Read-only" in pods.run(f"touch {path}/x")
    else:
        assert text.split("\n")[:2] == ["character special file:1:3", "0"]


def test_S05_thermal_throttling_of_every_processor_is_masked(tmp_path: Path) -> None:
    """S05: its counters tell neighbours' load (GHSA-6fw5-f8r9-fgfm); they exist on bare metal only."""
    for number in (0, 1):
        (tmp_path / f"devices/system/cpu/cpu{number}/thermal_throttle").mkdir(parents=True)
    masked, _ = security.paths({}, tmp_path)
    assert {f"/sys/devices/system/cpu/cpu{n}/thermal_throttle" for n in (0, 1)} <= set(masked)
    assert security.paths({"privileged": True}, tmp_path) == ([], [])


WRITABLE_SOMEWHERE = [
    "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity", "/proc/sys/kernel/modprobe", "/sys/kernel/uevent_helper",
    "/sys/kernel/uevent_seqnum", "/sys/fs/cgroup/cgroup.procs", "/sys/power/state",
]  # fmt: skip


@pytest.mark.parametrize("host_network", [False, True])
def test_S06_the_kernels_settings_cannot_be_opened_for_writing(pods: Any, host_network: bool) -> None:
    """S06, CVE-2023-25809: /proc/sys and its kind, all of /sys, and the cgroups are read-only."""
    present = [path for path in WRITABLE_SOMEWHERE if os.path.exists(path)]
    paths = " ".join([*present, "/sys/fs/cgroup/cgroup.procs"])
    script = f"for f in {paths}; do [ -e $f ] && (true >> $f) && echo opened $f; done; echo end"
    (pods.box.root / "bin/[").symlink_to("busybox")
    text = pods.run(script, pod={"hostNetwork": host_network})
    assert "opened" not in text and text.count("Read-only file system") >= 5 and text.endswith("end\n")


def test_S06_no_mount_of_the_hosts_sys_is_writable(pods: Any) -> None:
    """S06, CVE-2022-0492: also on the host's network nothing below /sys is mounted read-write."""
    for pod in ({}, {"hostNetwork": True}):
        lines = [line.split() for line in pods.run("cat /proc/mounts", pod=pod).splitlines()]
        mounts = {line[1]: line[3].split(",") for line in lines if line[1].startswith("/sys")}
        assert {"/sys", "/sys/fs/cgroup"} <= set(mounts)
        assert all("ro" in options for options in mounts.values()), mounts


def test_S07_privileged_lifts_it_all_and_nothing_else_does(pods: Any) -> None:
    """S07: the switch exists, and a container without it, whatever its capabilities, stays confined."""
    (pods.box.root / "bin/[").symlink_to("busybox")
    script = (
        "grep -E 'CapEff|Seccomp:' /proc/self/status; mount -t tmpfs t /tmp && echo mounted; "
        "(true >> /proc/sys/vm/overcommit_memory) && echo opened; "
        "stat -c %t:%T /proc/timer_list"
    )
    own = Path("/proc/self/status").read_text().split("CapBnd:\t")[1].split()[0]
    text = pods.run(script, security={"privileged": True})
    assert text.split()[:2] == ["CapEff:", own]
    assert "Seccomp:\t0\nmounted\nopened\n" in text and "1:3" not in text
    text = pods.run(script, security={"capabilities": {"add": ["ALL"]}})
    assert "Seccomp:\t2" in text and "opened" not in text


# -- S08, S09, S10: devices, limits, root -------------------------------------------------------------------


def test_S08_only_the_default_devices_are_there(pods: Any) -> None:
    """S08: null zero full random urandom tty, the terminals, and links."""
    names = "fd full mqueue null ptmx pts random shm stderr stdin stdout termination-log tty urandom zero"
    assert pods.run("ls /dev").split() == names.split()
    assert pods.run("head -c 3 /dev/zero | od -An -tx1; echo x > /dev/null").split() == ["00"] * 3


@pytest.mark.parametrize(("node", "privileged"), [("c 10 200", False), ("c 10 200", True), ("b 7 0", False)])
def test_S08_a_device_that_was_made_cannot_be_opened(pods: Any, node: str, privileged: bool) -> None:
    """S08: CAP_MKNOD makes a node, the cgroup keeps it shut; privileged shows that the test can tell."""
    context: dict[str, Any] = {"privileged": True} if privileged else {"capabilities": {"add": ["MKNOD"]}}
    text = pods.run(f"mknod /tmp/d {node} && echo made; (true < /tmp/d)", security=context)
    assert text.startswith("made\n")
    assert ("Operation not permitted" in text) is not privileged


QOS = {
    "Guaranteed": ({kind: {"cpu": "1", "memory": "1Gi"} for kind in ("limits", "requests")}, -997),
    "Burstable": ({"requests": {"memory": "4Gi"}}, 750),
    "BestEffort": ({}, 1000),
}


@pytest.mark.parametrize("kind", QOS)
def test_S09_the_oom_score_follows_the_quality_of_service(pods: Any, kind: str) -> None:
    """S09: -997, 1000 - 1000 × request / memory, 1000; and the process has it, where the kernel lets us."""
    wanted, score = QOS[kind]
    pod = {"spec": {"containers": [{"name": "main", "resources": wanted}]}}
    assert resources.qos_class(pod) == kind
    spec = pods.describe("cat /proc/self/oom_score_adj", resources=wanted)
    assert spec["process"]["oomScoreAdj"] == score
    running = pods.box.start("", spec=spec)
    _, text = running.wait()
    assert text.strip() == str(score) or any("oom_score_adj" in line for line in running.process.warnings)


def test_S09_rlimits_bind_the_container_alone(pods: Any) -> None:
    """S09: limits are per process, so they must not reach the process that starts it."""
    before = Path("/proc/self/limits").read_text(), Path("/proc/self/oom_score_adj").read_text()
    spec = pods.describe("ulimit -n; ulimit -Hn; ulimit -c")
    spec["process"]["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    assert pods.box.start("", spec=spec).wait()[1].split() == ["50", "60", "0"]
    assert before == (Path("/proc/self/limits").read_text(), Path("/proc/self/oom_score_adj").read_text())


def test_S09_a_fork_bomb_ends_at_its_limit(pods: Any) -> None:
    """S09: pids.max."""
    spec = pods.describe("i=0; while [ $i -lt 60 ]; do sleep 5 & i=$((i+1)); done; echo all of them")
    (pods.box.root / "bin/[").symlink_to("busybox")
    limits = resources.container_resources({}, resources.Rules(pids=20))
    spec["linux"]["resources"] = resources.merged(spec["linux"]["resources"], limits)
    running = pods.box.start("", spec=spec)
    text = running.read_until("fork")
    assert "all of them" not in text
    running.cgroup.kill()


def test_S10_a_read_only_root_stays_read_only(pods: Any) -> None:
    """S10: also after an attempt to remount it, by a root that could."""
    script = "touch /x; mount -o remount,rw /; touch /y; touch /dev/shm/z && echo fine"
    text = pods.run(script, security={"readOnlyRootFilesystem": True})
    assert text.count("Read-only file system") == 2 and text.endswith("fine\n")
    assert "Read-only" not in pods.run("touch /x")


# -- S11 to S14: users, groups, sysctls, namespaces ---------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "image_user", "why"),
    [
        ({"runAsUser": 0}, "", "breaks non-root policy"),
        ({}, "", "image will run as root"),
        ({}, "0", "image will run as root"),
        ({}, "0:1000", "image will run as root"),
        ({}, "app", "non-numeric user"),
        ({}, "root", "non-numeric user"),
    ],
)
@pytest.mark.parametrize("attempt", [0, 1])
def test_S11_run_as_non_root_refuses_root(
    pods: Any, context: dict[str, int], image_user: str, why: str, attempt: int
) -> None:
    """S11, CVE-2019-11245: root by number, by default and by an image's name, at each start."""
    (pods.box.root / "etc/passwd").write_text("app:x:0:0::/:/bin/sh\nroot:x:0:0::/:/bin/sh\n")
    for number in range(attempt + 1):
        with pytest.raises(ContainerConfigError, match=why):
            security_context = {"runAsNonRoot": True, **context}
            pods.describe("id", security=security_context, image={"User": image_user}, attempt=number)


@pytest.mark.parametrize("user", ["4294967296", "4294967296:0", "1000:4294967296", "9" * 400])
def test_S11_ids_beyond_32_bits_are_refused(pods: Any, user: str) -> None:
    """S11, CVE-2024-40635: 2**32 is not 0 for who compares it, and is 0 for the kernel."""
    with pytest.raises(ContainerConfigError, match="ids end at"):
        pods.run("id", security={"runAsNonRoot": True}, image={"User": user})


def test_S11_the_uid_holds_after_a_restart(pods: Any) -> None:
    """S11, CVE-2019-11245: the second start of a container whose image is known already."""
    context = {"runAsNonRoot": True}
    for attempt in range(3):
        text = pods.run("id", security=context, image={"User": "1234:5"}, attempt=attempt)
        assert text.startswith("uid=1234 gid=5")


def test_S12_groups_are_those_of_the_pod(pods: Any) -> None:
    """S12: supplementalGroups and fsGroup are given, and a number the image does not know brings none."""
    (pods.box.root / "etc/group").write_text("root:x:0:1000\nshadow:x:42:1000,app\n")
    (pods.box.root / "etc/passwd").write_text("app:x:2000:2000::/:/bin/sh\n")
    pod = {"securityContext": {"supplementalGroups": [7], "fsGroup": 9}}
    user = {"runAsUser": 1000, "runAsGroup": 1001}
    assert "groups=1001,7,9" in pods.run("id", pod=pod, security=user).replace("groups=7", "groups=1001,7")
    pod["securityContext"]["supplementalGroupsPolicy"] = "Strict"  # type: ignore[assignment]
    known = {"runAsUser": 2000}
    assert "42" not in pods.run("id", pod=pod, security=known)
    del pod["securityContext"]["supplementalGroupsPolicy"]
    for first in ({}, {"runAsGroup": 1001}):
        assert "42" in pods.run("id", pod=pod, security=known | first)


@pytest.mark.parametrize("name", ["kernel.core_pattern", "kernel.msgmax", "net.ipv4.ip_forward", "vm.panic"])
@pytest.mark.parametrize("separator", [".", "/"])
def test_S13_a_pod_may_not_set_just_any_sysctl(pods: Any, name: str, separator: str) -> None:
    """S13, CVE-2022-0811: what is not on upstream's safe list is refused before there is a sandbox."""
    entry = {"name": name.replace(".", separator), "value": "1"}
    with pytest.raises(SandboxError, match="forbidden sysctl"):
        security.sysctls(pods.pod({"securityContext": {"sysctls": [entry]}}))


def test_S13_safe_sysctls_are_for_namespaces_of_ones_own(pods: Any) -> None:
    """S13: and they are refused with the host's network or IPC."""
    entry = {"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"}
    context = {"securityContext": {"sysctls": [entry]}}
    assert security.sysctls(pods.pod(context)) == {entry["name"]: "80"}
    with pytest.raises(SandboxError, match="host net"):
        security.sysctls(pods.pod({**context, "hostNetwork": True}))
    entry["name"] = "kernel.shm_rmid_forced"
    with pytest.raises(SandboxError, match="host ipc"):
        security.sysctls(pods.pod({**context, "hostIPC": True}))


@pytest.mark.parametrize(
    "name",
    ["kernel.core_pattern", "kernel/core_pattern", "net/../kernel/core_pattern", "fs.file-max", "vm.panic"],
)
def test_S13_the_runtime_itself_refuses_sysctls_of_the_machine(box: Any, name: str) -> None:
    """S13, CVE-2022-0811: core_pattern is a program that the kernel runs as root on the host. Only planned
    here, never written."""
    from runtime.operations import sandbox_plan

    config = {"ociVersion": "1.2.0", "linux": {"namespaces": [{"type": "network"}, {"type": "ipc"}]}}
    config["linux"]["sysctl"] = {name: "x"}  # type: ignore[index]
    with pytest.raises(SpecError, match="separate kernel namespace"):
        sandbox_plan(parse(config), cgroup=None)


def test_S13_sysctls_are_set_in_the_containers_namespaces(box: Any) -> None:
    """S13: and nowhere else; without such a namespace they are refused."""
    before = Path("/proc/sys/kernel/msgmax").read_text()
    linux: dict[str, Any] = {"sysctl": {"net.ipv4.ip_unprivileged_port_start": "80", "kernel.msgmax": "4321"}}
    script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax"
    assert box.run(script, linux=linux)[1].split() == ["80", "4321"]
    assert Path("/proc/sys/kernel/msgmax").read_text() == before
    linux["namespaces"] = [{"type": kind} for kind in ("mount", "pid", "uts", "network")]
    with pytest.raises(SpecError, match=r"kernel\.msgmax"):
        box.start(script, linux=linux)


HOST: dict[str, set[str]] = {
    "host_network": {"net", "uts"}, "host_pid": {"pid"}, "host_ipc": {"ipc"},
    "share_process_namespace": set(),
}  # fmt: skip


@pytest.mark.parametrize("wish", ["", *HOST])
def test_S14_namespaces_are_the_hosts_only_where_asked(node: Any, wish: str) -> None:
    """S14: by namespace inodes; a pod on the host's network has its name too."""
    sandbox = node.sandbox(**({wish: True} if wish else {}))
    seen = []
    for _ in range(2):
        container = node.run(sandbox, ["sh", "-c", "ls -l /proc/self/ns; echo end; exec sleep 60"])
        wait_for(lambda container=container: node.log(container).endswith(b"end\n"))
        lines = [line.split() for line in node.log(container).decode().splitlines() if "->" in line]
        seen.append({line[-3]: line[-1] for line in lines})
    kinds = ("net", "pid", "ipc", "uts", "mnt", "cgroup")
    same = {kind for kind in kinds if seen[0][kind] == os.readlink(f"/proc/self/ns/{kind}")}
    assert same == HOST.get(wish, set())
    shared = {kind for kind in kinds if seen[0][kind] == seen[1][kind]}
    processes = {"pid"} if wish in ("host_pid", "share_process_namespace") else set()
    assert shared == {"net", "ipc", "uts"} | processes
