"""create, update, pause, exec, events and delete on a host with cgroup v2 alone (hack/test --vm), with both
cgroup managers. What is expected is what runc's own integration tests expect of it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from bundle import Bundle

from runtime import cgroups
from runtime.systemd.manager import is_running

pytestmark = pytest.mark.privileged

TREE = Path("/sys/fs/cgroup")
MIB = 1 << 20
OUTER = f"kpcommands{os.getpid()}"
WRITABLE = {
    "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
    "options": ["nosuid", "noexec", "nodev", "relatime", "rw"],
}  # fmt: skip


class Managed:
    """A bundle whose container's cgroup is made by `manager`."""

    def __init__(self, bundle: Bundle, manager: str) -> None:
        self.bundle = bundle
        self.manager = manager
        if manager == cgroups.SYSTEMD:
            self.path = f"{OUTER}.slice:oci:{bundle.identity}"
            self.unit = f"oci-{bundle.identity}.scope"
            self.folder = TREE / f"{OUTER}.slice" / self.unit / "container"
        else:
            self.path, self.unit = f"/{OUTER}/inner", ""
            self.folder = TREE / OUTER / "inner"

    def given(self, **resources: Any) -> None:
        self.bundle.change(lambda config: config["linux"].update(cgroupsPath=self.path, resources=resources))

    def create(self) -> subprocess.CompletedProcess[str]:
        """With the flag, which is given for `create` alone."""
        with open(self.bundle.folder / "output", "w") as output:
            return self.bundle(
                "--cgroup-manager", self.manager, "create", "--bundle", str(self.bundle.folder),
                self.bundle.identity, capture_output=False, stdout=output, stderr=output,
            )  # fmt: skip

    def start(self, script: str = "exec sleep 1000", **resources: Any) -> None:
        self.given(**resources)
        self.bundle.args("sh", "-c", script)
        assert self.create().returncode == 0, self.bundle.output()
        self.done("start")

    def done(self, command: str, *args: str, flags: tuple[str, ...] = ()) -> str:
        """What a command prints that has to succeed."""
        done = self.bundle(command, *flags, self.bundle.identity, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def update(self, **resources: Any) -> subprocess.CompletedProcess[str]:
        return self.bundle("update", "-r", "-", self.bundle.identity, input=json.dumps(resources))

    def file(self, name: str) -> str:
        return (self.folder / name).read_text().strip()

    def table(self, name: str) -> dict[str, str]:
        return dict(line.split(maxsplit=1) for line in self.file(name).splitlines())

    def pids(self) -> set[int]:
        return set(json.loads(self.done("ps", flags=("--format", "json"))))

    def shown(self, *names: str) -> list[str]:
        """The scope's properties, in systemd's words."""
        command = ["systemctl", "show", self.unit, *(f"--property={name}" for name in names)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        found = dict(line.partition("=")[::2] for line in lines)
        return [found[name] for name in names]

    def writable(self, config: dict[str, Any]) -> None:
        """A container that may make cgroups of its own, as one with systemd in it."""
        config["mounts"] = [m for m in config["mounts"] if m["destination"] != "/sys/fs/cgroup"] + [WRITABLE]


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(params=[cgroups.CGROUPFS, cgroups.SYSTEMD])
def managed(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Managed]:
    tree = cgroups.detect()
    if tree.name != "v2":
        pytest.skip("a host with cgroup v2 alone is missing (sudo ./hack/test --vm)")
    if request.param == cgroups.SYSTEMD and not is_running():
        pytest.skip("systemd is missing (sudo ./hack/test --vm)")
    yield Managed(bundle, request.param)
    bundle("delete", "--force", bundle.identity)
    if request.param == cgroups.SYSTEMD:
        cgroups.choose(cgroups.SYSTEMD).remove(f"{OUTER}.slice", recursive=True)
    tree.remove(OUTER, recursive=True)


@pytest.fixture
def plain(managed: Managed) -> Managed:
    if managed.manager != cgroups.CGROUPFS:
        pytest.skip("the other cgroup manager: this one is about the files alone")
    return managed


@pytest.fixture
def scope(managed: Managed) -> Managed:
    if managed.manager != cgroups.SYSTEMD:
        pytest.skip("the other cgroup manager: this one is about systemd's units")
    return managed


def test_the_half_of_the_quota_that_is_not_mentioned_stays(managed: Managed) -> None:
    managed.start(cpu={"quota": 500000, "period": 1000000})
    steps = (
        (("--cpu-period", "900000"), "500000 900000", "560ms"),
        (("--cpu-quota", "600000"), "600000 900000", "670ms"),
        (("--cpu-quota", "-1"), "max 900000", "infinity"),
        (("--cpu-quota", "30000"), "30000 900000", "40ms"),
        (("--cpu-quota", "-1", "--cpu-period", "100000"), "max 100000", "infinity"),
    )
    for flags, written, told in steps:
        managed.done("update", flags=flags)
        assert managed.file("cpu.max") == written, flags
        if managed.unit:
            assert managed.shown("CPUQuotaPerSecUSec") == [told], flags


def test_the_unified_names_have_the_last_word(managed: Managed) -> None:
    managed.start(
        memory={"limit": 32 * MIB},
        cpu={"shares": 3333, "quota": 40000, "period": 100000},
        unified={
            "memory.min": "131072", "memory.max": "40484864", "pids.max": "42", "cpu.max": "5000 50000",
            "cpu.weight": "42",
        },
    )  # fmt: skip
    files = ("memory.min", "memory.max", "pids.max", "cpu.max", "cpu.weight")
    assert [managed.file(name) for name in files] == ["131072", "40484864", "42", "5000 50000", "42"]
    names = ("MemoryMin", "MemoryMax", "TasksMax", "CPUQuotaPerSecUSec", "CPUWeight")
    if managed.unit:
        assert managed.shown(*names) == ["131072", "40484864", "42", "100ms", "42"]
    done = managed.update(
        unified={"cpu.max": "max 100000", "cpu.weight": "16", "pids.max": "10", "cpuset.cpus": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert [managed.file(name) for name in files[2:]] == ["10", "max 100000", "16"]
    assert managed.file("cpuset.cpus") == "1"
    if managed.unit:
        assert managed.shown(*names[2:], "AllowedCPUs") == ["10", "infinity", "16", "1"]


def test_what_is_idle_can_be_woken(managed: Managed) -> None:
    managed.start(cpu={"idle": 1, "shares": 512})
    assert managed.file("cpu.idle") == "1"
    for value in ("0", "1", "0", "1"):
        managed.done("update", flags=("--cpu-idle", value))
        assert managed.file("cpu.idle") == value
        if managed.unit:  # else it would be idle as part of its scope
            assert (managed.folder.parent / "cpu.idle").read_text().strip() == value
    done = managed.bundle("update", "--cpu-idle", "2", managed.bundle.identity)
    assert done.returncode == 1 and "cpu.idle" in done.stderr and managed.file("cpu.idle") == "1"
    managed.done("update", flags=("--cpu-idle", "1", "--cpu-share", "200"))
    assert managed.file("cpu.idle") == "1"
    managed.done("update", flags=("--cpu-idle", "0", "--cpu-share", "200"))
    assert (managed.file("cpu.idle"), managed.file("cpu.weight")) == ("0", "8")
    managed.done("update", flags=("--cpu-idle", "1"))
    done = managed.bundle("update", "--cpu-share", "400", managed.bundle.identity)
    if managed.unit:  # a new weight ends it, as systemd has it
        assert done.returncode == 0, done.stderr
        assert (managed.file("cpu.idle"), managed.file("cpu.weight")) == ("0", "16")
        assert managed.shown("CPUWeight") == ["16"]
        managed.done("update", flags=("--cpu-idle", "1"))
        assert managed.update(unified={"cpu.weight": "8"}).returncode == 0
        assert (managed.file("cpu.idle"), managed.file("cpu.weight")) == ("0", "8")
    else:  # the kernel's word
        assert done.returncode == 1 and "cpu.weight: EINVAL" in done.stderr
        assert managed.file("cpu.idle") == "1"


def test_a_burst_follows_its_quota_up_and_down(managed: Managed) -> None:
    managed.start(cpu={"quota": 50000, "period": 100000, "burst": 40000})
    for quota, burst in ((20000, 10000), (60000, 50000), (50000, 50000), (10000, 0)):
        managed.done("update", flags=("--cpu-quota", str(quota), "--cpu-burst", str(burst)))
        assert managed.file("cpu.max") == f"{quota} 100000" and managed.file("cpu.max.burst") == str(burst)
    managed.done("update", flags=("--cpu-period", "900000", "--cpu-burst", "5000"))
    assert managed.file("cpu.max") == "10000 900000" and managed.file("cpu.max.burst") == "5000"


def test_a_period_that_the_kernel_refuses_leaves_no_container(managed: Managed) -> None:
    managed.given(cpu={"period": 100})
    managed.bundle.args("sleep", "1000")
    assert managed.create().returncode == 1
    assert "cpu.max: EINVAL" in managed.bundle.output()
    assert not managed.folder.exists()
    assert "does not exist" in managed.bundle("state", managed.bundle.identity).stderr
    if managed.unit:
        assert managed.shown("LoadState") == ["not-found"]


def test_memory_and_swap_go_up_and_down_and_away(managed: Managed) -> None:
    managed.start(memory={"limit": 32 * MIB, "reservation": 24 * MIB, "swap": 48 * MIB})
    files = ("memory.max", "memory.low", "memory.swap.max")
    names = ("MemoryMax", "MemoryLow", "MemorySwapMax")

    def told() -> list[str]:
        found = [managed.file(name) for name in files]
        if managed.unit:
            assert managed.shown(*names) == [value.replace("max", "infinity") for value in found]
        return found

    assert told() == [str(32 * MIB), str(24 * MIB), str(16 * MIB)]
    managed.done("update", flags=("--memory", "50M", "--memory-reservation", "32M"))
    assert told() == [str(50 * MIB), str(32 * MIB), str(16 * MIB)]
    managed.done("update", flags=("--memory-swap", "-1"))
    assert told()[2] == "max"
    managed.done("update", flags=("--memory", "30M", "--memory-swap", "50M"))
    assert told()[::2] == [str(30 * MIB), str(20 * MIB)]
    managed.done("update", flags=("--memory", "60M", "--memory-swap", "60M"))
    assert told()[::2] == [str(60 * MIB), "0"]
    managed.done("update", flags=("--memory", "-1"))  # and so has swap none
    assert told()[::2] == ["max", "max"]


def test_an_update_below_the_use_is_refused_before_it_kills(managed: Managed) -> None:
    managed.bundle.change(lambda config: config["mounts"].append(SHARED))
    managed.start("busybox dd if=/dev/zero of=/dev/shm/x bs=1M count=24; echo up; exec sleep 1000")
    until(lambda: "up" in managed.bundle.output(), "it has not written its file")
    done = managed.update(memory={"limit": 8 * MIB, "checkBeforeUpdate": True})
    assert done.returncode == 1 and "are in use" in done.stderr
    assert managed.file("memory.max") == "max" and managed.bundle.pid() in managed.pids()
    if managed.unit:
        assert managed.shown("MemoryMax", "ActiveState") == ["infinity", "active"]


SHARED = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "size=65536k"]}


def disks() -> list[str]:
    """MAJOR:MINOR of those that the kernel throttles."""
    found = [entry for entry in sorted(Path("/sys/block").iterdir()) if entry.name.startswith(("vd", "sd"))]
    return [(entry / "dev").read_text().strip() for entry in found]


def test_a_unified_value_of_several_lines(managed: Managed) -> None:
    named = disks()[:2]
    if len(named) < 2:
        pytest.skip("two disks are missing")
    text = "\n".join(f"{disk} rbps={MIB * (number + 1)} wiops=max" for number, disk in enumerate(named))
    managed.start(unified={"io.max": text})
    found = managed.table("io.max")
    assert [found[disk].split()[0] for disk in named] == [f"rbps={MIB}", f"rbps={2 * MIB}"]


@pytest.fixture
def bfq() -> Iterator[str]:
    """MAJOR:MINOR of a disk whose scheduler weighs."""
    if not Path("/sys/block/vdb").exists():
        pytest.skip("a second disk that nobody uses is missing")
    subprocess.run(["modprobe", "bfq"], check=True)
    setting = Path("/sys/block/vdb/queue/scheduler")
    before = setting.read_text().partition("[")[2].partition("]")[0]
    setting.write_text("bfq")
    yield Path("/sys/block/vdb/dev").read_text().strip()
    setting.write_text(before)


def test_weights_of_disks_are_their_schedulers(managed: Managed, bfq: str) -> None:
    major, minor = bfq.split(":")
    weight = {"major": int(major), "minor": int(minor), "weight": 444}
    managed.start(blockIO={"weight": 333, "weightDevice": [weight]})
    assert managed.table("io.bfq.weight") == {"default": "333", bfq: "444"}
    managed.done("update", flags=("--blkio-weight", "750"))  # with which BFQ forgets the disk's own
    assert managed.table("io.bfq.weight") == {"default": "750"}
    done = managed.update(blockIO={"weightDevice": [weight]})
    assert done.returncode == 0, done.stderr
    assert managed.table("io.bfq.weight") == {"default": "750", bfq: "444"}
    if (managed.folder / "io.weight").exists():  # where the kernel can weigh by cost, too: not this disk
        assert managed.table("io.weight") == {"default": "7475"}
    other = next(disk for disk in disks() if disk != bfq).split(":")
    unweighed = {"major": int(other[0]), "minor": int(other[1]), "weight": 100}
    done = managed.update(blockIO={"weightDevice": [unweighed]})
    assert done.returncode == 1 and ":".join(other) in done.stderr


def test_processors_of_its_own(plain: Managed) -> None:
    """cpuset.cpus.partition: a partition's parent is one, too, so it is below the root."""
    plain.path, plain.folder = f"/{OUTER}", TREE / OUTER
    plain.start(cpu={"cpus": "1"}, unified={"cpuset.cpus.partition": "root"})
    assert plain.file("cpuset.cpus.partition") == "root"
    assert "1" not in (TREE / "cpuset.cpus.effective").read_text()
    assert os.sched_getaffinity(plain.bundle.pid()) == {1}
    assert plain.update(unified={"cpuset.cpus.partition": "member"}).returncode == 0
    assert "1" in (TREE / "cpuset.cpus.effective").read_text()


def test_huge_pages_are_limited_and_counted(managed: Managed) -> None:
    managed.start(hugepageLimits=[{"pageSize": "2MB", "limit": 4 * MIB}])
    assert managed.file("hugetlb.2MB.max") == managed.file("hugetlb.2MB.rsvd.max") == str(4 * MIB)
    told = json.loads(managed.done("events", flags=("--stats",)))["data"]["hugetlb"]
    assert told["2MB"] == {"usage": 0, "failcnt": 0}


def test_a_paused_container_has_stopped(managed: Managed) -> None:
    managed.start("while :; do :; done")
    managed.done("pause")
    assert managed.table("cgroup.events")["frozen"] == "1"
    assert json.loads(managed.done("state"))["status"] == "paused"
    first = managed.table("cpu.stat")["usage_usec"]
    refused = managed.bundle("exec", managed.bundle.identity, "true")
    assert refused.returncode != 0 and "paused" in refused.stderr
    assert managed.bundle("pause", managed.bundle.identity).returncode == 1
    managed.done("update", flags=("--pids-limit", "30"))
    assert managed.file("pids.max") == "30" and managed.table("cgroup.events")["frozen"] == "1"
    assert managed.table("cpu.stat")["usage_usec"] == first
    managed.done("resume")
    assert json.loads(managed.done("state"))["status"] == "running"
    until(lambda: managed.table("cpu.stat")["usage_usec"] != first, "it does not go on")
    assert managed.bundle("resume", managed.bundle.identity).returncode == 1


def test_a_paused_container_can_be_deleted(managed: Managed) -> None:
    managed.start()
    managed.done("pause")
    managed.done("delete", flags=("--force",))
    assert not managed.folder.exists()
    if managed.unit:
        assert managed.shown("LoadState") == ["not-found"]


def test_a_frozen_cgroup_takes_no_new_container(plain: Managed) -> None:
    plain.folder.mkdir(parents=True)
    (plain.folder / "cgroup.freeze").write_text("1")
    plain.given()
    plain.bundle.args("true")
    assert plain.create().returncode == 1 and "is frozen" in plain.bundle.output()
    assert plain.folder.exists()  # somebody else's


MAPPING = [{"containerID": 0, "hostID": 100000, "size": 65536}]


@pytest.mark.parametrize(
    ("writable", "own", "owner"), [(False, True, 0), (True, False, 0), (True, True, 100007)]
)
def test_a_cgroup_is_given_to_who_may_write_to_it(
    managed: Managed, writable: bool, own: bool, owner: int
) -> None:
    """runtime-spec, "Cgroup ownership": to the process's user, as the host sees it, with a cgroup namespace
    of its own and a tree that is mounted rw."""
    subprocess.run(["chown", "-hR", "100000:100000", str(managed.bundle.root)], check=True)
    managed.bundle.namespace("user", uidMappings=MAPPING, gidMappings=MAPPING)
    if not own:
        managed.bundle.change(
            lambda config: config["linux"].update(
                namespaces=[n for n in config["linux"]["namespaces"] if n["type"] != "cgroup"]
            )
        )
    if writable:
        managed.bundle.change(managed.writable)
    managed.bundle.change(lambda config: config["process"].update(user={"uid": 7, "gid": 7}))
    managed.start()
    files = [managed.folder / name for name in ("", "cgroup.procs", "cgroup.subtree_control")]
    assert {path.stat().st_uid for path in files} == {owner}
    assert (managed.folder / "memory.max").stat().st_uid == (managed.folder.parent).stat().st_uid == 0
    made = managed.bundle(
        "exec", "--user", "7:7", managed.bundle.identity, "sh", "-ec",
        "cd /sys/fs/cgroup; mkdir foo; echo $$ > foo/cgroup.procs; cat /proc/self/cgroup",
    )  # fmt: skip
    if owner:
        assert made.stdout == "0::/foo\n", made.stderr
    else:
        assert made.returncode != 0 and "foo" in made.stderr


def test_an_exec_is_beside_the_first_process_where_that_has_gone(managed: Managed) -> None:
    """As in a container whose init is systemd: the container's own cgroup hands controllers on."""
    managed.bundle.change(managed.writable)
    managed.start()
    place = ("cat", "/proc/self/cgroup")
    assert "memory" in managed.done("exec", "cat", "/sys/fs/cgroup/cgroup.controllers")
    managed.done("exec", "mkdir", "/sys/fs/cgroup/foo")
    managed.done("exec", "sh", "-c", "echo 1 > /sys/fs/cgroup/foo/cgroup.procs")
    assert managed.done("exec", *place) == "0::/\n"
    managed.done(
        "exec", "sh", "-ec",
        "echo $$ > /sys/fs/cgroup/foo/cgroup.procs; echo +memory > /sys/fs/cgroup/cgroup.subtree_control",
    )  # fmt: skip
    assert managed.done("exec", *place) == "0::/foo\n"
    managed.done("exec", "mkdir", "/sys/fs/cgroup/bar")
    assert managed.done("exec", *place, flags=("--cgroup", "bar")) == "0::/bar\n"


@pytest.mark.parametrize("kind", ["domain", "threaded"])
def test_a_container_goes_with_the_cgroups_it_has_made(managed: Managed, kind: str) -> None:
    managed.bundle.change(managed.writable)
    managed.start()
    steps = {
        "domain": "mkdir -p foo/a/b; echo $! > foo/cgroup.procs",
        "threaded": "echo +pids > cgroup.subtree_control; mkdir foo; echo threaded > foo/cgroup.type; "
        "echo $! > foo/cgroup.threads",
    }
    script = f"cd /sys/fs/cgroup; sleep 1000 > /dev/null 2>&1 & {steps[kind]}"
    managed.done("exec", "sh", "-ec", script)
    inside = {int(line) for line in (managed.folder / "foo/cgroup.threads").read_text().split()}
    assert len(inside) == 1
    assert inside < managed.pids()
    managed.done("delete", flags=("--force",))
    assert not managed.folder.exists()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside), "a process has survived")


def test_events_tell_kills_and_use(managed: Managed) -> None:
    managed.start(memory={"limit": 32 * MIB, "swap": 48 * MIB}, cpu={"quota": 50000, "period": 100000})
    command = [managed.bundle.binary, "--root", str(managed.bundle.state), "events", "--interval", "100ms"]
    with subprocess.Popen([*command, managed.bundle.identity], stdout=subprocess.PIPE, text=True) as told:
        assert told.stdout is not None
        first = json.loads(told.stdout.readline())
        assert (first["type"], first["id"]) == ("stats", managed.bundle.identity)
        data = first["data"]
        assert data["memory"]["usage"]["limit"] == 32 * MIB and data["memory"]["swap"]["limit"] == 48 * MIB
        assert data["memory"]["swap"]["usage"] >= data["memory"]["usage"]["usage"] > 0
        assert set(data["cpu"]["throttling"]) == {"periods", "throttledPeriods", "throttledTime"}
        assert data["memory"]["raw"]["anon"] > 0 and data["pids"]["current"] == 1
        hungry = managed.bundle("exec", managed.bundle.identity, "busybox", "tail", "/dev/zero")
        assert hungry.returncode != 0
        lines: Mapping[str, Any] = {}
        while lines.get("type") != "oom":
            lines = json.loads(told.stdout.readline())
        assert lines == {"type": "oom", "id": managed.bundle.identity}
        managed.done("delete", flags=("--force",))
        told.stdout.read()
        assert told.wait(60) == 0


def test_a_container_is_where_its_slice_says_with_all_that_a_scope_has(scope: Managed) -> None:
    scope.path = f"{OUTER}-a-b.slice:oci:{scope.bundle.identity}"
    scope.folder = TREE / f"{OUTER}.slice/{OUTER}-a.slice/{OUTER}-a-b.slice" / scope.unit / "container"
    scope.start(
        cpu={"shares": 1024, "cpus": "0", "mems": "0"}, blockIO={"weight": 500}, pids={"limit": 30},
        unified={"memory.min": str(MIB)},
    )  # fmt: skip
    assert scope.shown(
        "Description", "Slice", "Delegate", "DefaultDependencies", "AllowedCPUs", "AllowedMemoryNodes",
        "CPUWeight", "IOWeight", "TasksMax", "MemoryMin", "Transient", "MemoryAccounting", "CPUAccounting",
        "IOAccounting", "TasksAccounting",
    ) == [
        f"kubelet-py container {scope.unit}", f"{OUTER}-a-b.slice", "yes", "no", "0", "0", "39", "4950", "30",
        str(MIB), "yes", "yes", "yes", "yes", "yes",
    ]  # fmt: skip
    assert {"cpu", "memory", "io"} <= set(scope.shown("DelegateControllers")[0].split())
    assert scope.folder.is_dir() and (scope.folder / "cgroup.procs").read_text().strip()


def test_a_unit_that_has_failed_goes_with_its_container(scope: Managed) -> None:
    """systemd ends the container after a second; who deletes it finds the failed unit, and takes it away."""
    properties = {"RuntimeMaxSec": "1", "TimeoutStopSec": "1", "CollectMode": "'inactive'"}
    named = {f"org.systemd.property.{name}": value for name, value in properties.items()}
    scope.bundle.change(lambda config: config.update(annotations=named))
    scope.start()

    def stopped() -> bool:
        return json.loads(scope.done("state"))["status"] == "stopped"

    until(stopped, "systemd has not ended it")
    until(lambda: scope.shown("ActiveState") == ["failed"], "it has not failed")
    scope.done("delete")
    assert scope.shown("LoadState") == ["not-found"]
