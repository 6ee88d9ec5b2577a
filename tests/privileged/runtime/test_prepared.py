"""What was prepared at its creation starts as what is executed at its start, or not at all."""

from __future__ import annotations

import errno
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import prepared
from runtime.capabilities import NAMES as CAPABILITIES
from runtime.cgroups import tree_options
from runtime.empty_root import EmptyNamespace
from runtime.errors import ExecutableError
from runtime.linux import LinuxKernel
from runtime.machine import ENTRY_WORDS, TOLERATE
from runtime.mounting import MNT_DETACH, MS_REC, PROPAGATION
from runtime.namespaces import CLONE_FS, FLAGS
from runtime.own_thread import in_thread_of_its_own
from runtime.program import Program, entry_offset, load
from tests.privileged.runtime.made import Made

pytestmark = pytest.mark.privileged

UNKNOWN_CALL = 0xFFFF
# Masks of what is executed are slaves of the host's mounts where those are shared; a program's are private.
LOOK = """
id; umask; pwd; hostname; env | grep -v PWD
grep -E '^(Cap|NoNewPrivs|Seccomp:|Sig[BI]|Groups|NSpid|Umask)' /proc/self/status
head -n 1 /proc/self/mountinfo | cut -d' ' -f5
cut -d' ' -f5- /proc/self/mountinfo | sed 's/ master:[0-9]*//; s/[0-9]*:[0-9]*//; s/lowerdir.*//' |
    sed 's/inode64//' | sort
cat /proc/self/limits; cat /proc/self/oom_score_adj; cat /proc/1/comm
stat -c '%n %N %f %u:%g %t:%T' /dev/*; ls /dev/fd/ | wc -l; stat -c '%f %u:%g' / /proc /dev /sys /tmp /etc
cat /proc/self/cgroup | grep -c box; ls /var/run/secrets; cat /etc/hosts
echo x 2>&1 >/proc/sys/kernel/hostname
true
"""
NESTED = """
alias b=/bin/busybox
b cut -d' ' -f5- /proc/self/mountinfo | b sed 's/[0-9]*:[0-9]*//; s/lowerdir.*//; s/inode64//' | b sort
b unshare -U true && echo users
b unshare -m sh -c \
    'mount -t tmpfs t /tmp && mkdir /tmp/old && /bin/busybox pivot_root /tmp /tmp/old && echo pivoted'
"""


def seen() -> tuple[Any, ...]:
    return (
        sorted(os.listdir("/proc/self/fd")),
        Path("/proc/self/mounts").read_text(),
        Path("/proc/self/maps").read_text().count("/program"),
        Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
        len(os.listdir("/proc/self/task")),
        os.getcwd(),
    )


def rich(box: Any) -> dict[str, Any]:
    """A specification with a volume, a file, and most of what a process may have."""
    (box.folder / "volume").mkdir(exist_ok=True)
    (box.folder / "hosts").write_text("127.0.0.1 localhost\n")
    (box.root / "var").mkdir(exist_ok=True)
    if not (box.root / "var/run").is_symlink():
        (box.root / "var/run").symlink_to("/tmp")
    process = {
        "user": {"uid": 5, "gid": 6, "umask": 0o27, "additionalGids": [7, 8]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}],
        "oomScoreAdj": 500,
        "cwd": "/made/here",
    }
    volumes = [
        {"destination": "/var/run/secrets", "type": "bind", "source": str(box.folder / "volume"),
         "options": ["rbind", "ro", "rprivate"]},
        {"destination": "/etc/hosts", "type": "bind", "source": str(box.folder / "hosts"),
         "options": ["rbind", "rw"]},
    ]  # fmt: skip
    return dict(box.spec(LOOK, process=process, mounts=volumes))


@pytest.fixture
def empty() -> Iterator[str]:
    """The path of a mount namespace with nothing in it."""
    made = EmptyNamespace(LinuxKernel())
    yield made.path
    made.close()


def configured(box: Any, kind: str) -> dict[str, Any]:
    if kind == "nested":
        namespaces = [{"type": each} for each in ("mount", "pid", "ipc", "uts", "network")]
        linux = {"namespaces": namespaces, "maskedPaths": [], "readonlyPaths": [], "seccomp": None}
        return dict(box.spec(NESTED, capabilities=CAPABILITIES, linux=linux))
    return rich(box) if kind == "rich" else dict(box.spec(LOOK, readonly=kind == "ro"))


def test_it_is_the_same_container(box: Any, empty: str) -> None:
    before = tree_options(Path("/proc/self/mountinfo").read_text())
    texts, kinds = {}, ("plain", "rich", "ro", "nested")
    ways = ("executed", "prepared", "executed, bare", "prepared, bare")
    for name in ways:
        for kind in kinds:
            config, bare = configured(box, kind), empty if "bare" in name else ""
            made = Made(box, f"{name.replace(', ', '-')}-{kind}", config, bare)
            plan = made.plan().describe()
            assert ("cover the empty root" in plan) == bool(bare) != ("make all mounts rslave" in plan)
            if "prepared" in name:
                assert made.prepare()
            process = made.start() if "prepared" in name else made.launch()
            assert process is not None and process.start_time_ticks > 0
            texts[name, kind] = [*made.ended(process).splitlines(), *process.warnings]
            assert not os.path.exists(made.program)
    for kind in kinds:
        for name in ways[1:]:
            assert texts[name, kind] == texts["executed", kind], (name, kind)
    assert "uid=5 gid=6 groups=7,8" in texts["prepared", "rich"]
    assert texts["executed", "nested"][-2:] == ["users", "pivoted"]
    # One of them has the host's cgroup namespace, and may not take the tree's options from the whole machine.
    assert tree_options(Path("/proc/self/mountinfo").read_text()) == before


def test_below_the_root_of_a_bare_container_is_nothing(box: Any, empty: str) -> None:
    """Where another's has the host's initramfs: who uncovers it finds an empty, read-only folder."""
    made = Made(box, "uncovers", box.spec(["sleep", "60"]), empty)
    assert made.prepare()
    process = made.start()
    assert process is not None
    found: list[object] = []

    def uncover() -> None:
        held = os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        kernel = LinuxKernel()
        try:
            kernel.unshare(CLONE_FS)
            kernel.setns(held, FLAGS["mount"])
            found.append("bin" in os.listdir("/"))
            kernel.umount("/", MNT_DETACH)
            kernel.setns(held, FLAGS["mount"])
            found.append(os.listdir("/"))
            os.mkdir("/made")
        except OSError as error:
            found.append(error.errno)
        finally:
            os.close(held)

    try:
        in_thread_of_its_own(uncover)
    finally:
        signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
        os.close(process.pidfd)
    assert found == [True, [], errno.EROFS]


def test_what_a_bare_container_mounts_is_its_own(box: Any, empty: str) -> None:
    """Also where the empty namespace was changed, as a privileged container can change that of its pause when
    the pod has one PID namespace."""

    def share() -> None:
        kernel = LinuxKernel()
        kernel.unshare(CLONE_FS)
        held = os.open(empty, os.O_RDONLY | os.O_CLOEXEC)
        kernel.setns(held, FLAGS["mount"])
        os.close(held)
        kernel.mount("", "/", "", PROPAGATION["shared"] | MS_REC, "")

    made = Made(box, "shared", box.spec("/bin/busybox grep -c shared: /proc/self/mountinfo; true"), empty)
    assert made.prepare()
    in_thread_of_its_own(share)
    process = made.start()
    assert process is not None and made.ended(process) == "0\n"


def test_what_a_bare_container_mounts_stays_its_own_where_the_hosts_mounts_are_shared(
    box: Any, empty: str
) -> None:
    """As systemd has them: also what it mounts over a path that is masked."""
    script = "cd /bin; ./busybox mount --bind ./busybox /proc/kcore && ./busybox wc -c </proc/kcore"
    tell = f"{script}; ./busybox grep -c shared: /proc/self/mountinfo; true"
    spec = box.spec(tell, capabilities=CAPABILITIES, linux={"seccomp": None})
    before = Path("/proc/self/mountinfo").read_text()
    dev = next(line for line in before.splitlines() if line.split()[4] == "/dev")
    box.kernel.mount("", "/dev", "", PROPAGATION["shared"], "")
    try:
        shared = Path("/proc/self/mountinfo").read_text()
        made = Made(box, "own", spec, empty)
        assert made.prepare()
        process = made.start()
        assert process is not None and made.ended(process).splitlines()[1:] == ["0"]
        assert Path("/proc/self/mountinfo").read_text() == shared
    finally:
        if " shared:" not in dev:
            box.kernel.mount("", "/dev", "", PROPAGATION["private"], "")
    assert Path("/proc/self/mountinfo").read_text() == before


def test_a_program_is_good_for_one_start(box: Any) -> None:
    made = Made(box, "once", box.spec("true"))
    assert made.prepare()
    process = made.start()
    assert process is not None and made.ended(process) == ""
    assert made.start() is None


def test_one_without_a_gate_is_not_held(box: Any) -> None:
    """It would run at once."""
    made = Made(box, "free", box.spec("true"))
    assert made.prepare()
    assert prepared.start(box.kernel, made.program, (5, 6, 7), gate="/dev/null") is None
    assert made.start() is None, "it was for one start"


@pytest.mark.parametrize("change", ["program", "proc", "dev", "volume"])
def test_what_was_not_foreseen_is_not_started(box: Any, change: str) -> None:
    config = rich(box)
    made = Made(box, f"without-{change}", config)
    assert made.prepare()
    before = seen()
    if change == "program":
        (box.root / "bin/sh").unlink()
    elif change == "proc":
        (box.root / "proc").symlink_to("tmp")
    elif change == "dev":
        (box.root / "dev").write_text("")
    else:
        (box.folder / "volume").rmdir()
        (box.folder / "volume").write_text("")
    assert made.start() is None
    assert seen() == before
    if change == "program":
        made.fresh()
        with pytest.raises(ExecutableError, match="executable file not found"):
            made.launch()


def test_what_needs_thought_is_not_prepared(box: Any) -> None:
    assert not Made(box, "missing", box.spec(["no-such-program"])).prepare()
    assert not Made(box, "relative", box.spec("true", process={"env": ["PATH=bin"]})).prepare()
    proc = [{"destination": "/proc/self", "type": "bind", "source": "/tmp", "options": ["bind"]}]
    assert not Made(box, "proc", box.spec("true", mounts=proc)).prepare()


@pytest.mark.parametrize("bare", [False, True])
def test_a_failure_at_an_entry_leaves_nothing(box: Any, empty: str, bare: bool) -> None:
    """At every third, for the time's sake, and at each of clone3's neighbours."""
    config = rich(box)
    config["process"]["args"] = ["true"]
    made = Made(box, f"fails-{bare}", config, empty if bare else "")
    assert made.prepare()
    whole = Path(made.program).read_bytes()
    with open(made.program, "rb") as file:
        program = load(file.fileno())
    assert program is not None
    process = made.start()
    assert process is not None
    made.ended(process)
    before = seen()
    child, last = (numbers_of(whole, program).index(box.kernel._numbers[n]) for n in ("clone3", "exit_group"))
    assert last > 200
    for entry in sorted({*range(0, last, 3), child - 1, child, child + 1, last - 1}):
        broken = bytearray(whole)
        offset = program.place.offset + entry_offset(entry)
        struct.pack_into("=q", broken, offset, UNKNOWN_CALL)
        made.fresh()
        Path(made.program).write_bytes(broken)
        process = made.start()
        assert (process is None) == (not broken[offset + 56] & TOLERATE), f"entry {entry}"
        if process is not None:
            made.ended(process)
        assert seen() == before, f"entry {entry} left something"


def numbers_of(image: bytes, program: Program) -> list[int]:
    """Each entry's system call; what lies behind the last is data."""
    count = program.place.size // (ENTRY_WORDS * 8) - 1
    return [
        struct.unpack_from("=q", image, program.place.offset + entry_offset(at))[0] for at in range(count)
    ]


def test_a_place_that_is_taken_is_no_misfortune(box: Any) -> None:
    made = Made(box, "taken", box.spec("true"))
    assert made.prepare()
    with open(made.program, "rb") as file:
        program = load(file.fileno())
    assert program is not None
    address = box.kernel._mmap(program.place.address, 4096, 3, 0x22 | 0x100000, -1, 0)
    assert address == program.place.address
    try:
        assert made.start() is None
    finally:
        box.kernel._munmap(address, 4096)
