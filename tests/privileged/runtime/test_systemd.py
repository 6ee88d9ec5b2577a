"""The systemd driver with the real systemd: units, their limits, what is left of them (hack/test --vm)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import cgroups
from runtime.errors import CgroupError
from runtime.systemd.manager import is_running

pytestmark = pytest.mark.privileged

MIB = 1 << 20
ROOT = Path("/sys/fs/cgroup")


OUTER = f"kptest{os.getpid()}.slice"
INNER = f"kptest{os.getpid()}-box.slice"


@pytest.fixture
def cleaned() -> Iterator[None]:
    """No unit and no process is left, whatever a test did."""
    before = listed_units() if is_running() else []
    yield
    if is_running():
        cgroups.choose(cgroups.SYSTEMD).remove(OUTER, recursive=True)
        assert listed_units() == before
    assert children("kubelet-py-holder") == []


@pytest.fixture
def units(cleaned: None, box_with: Any) -> Any:
    """A box whose containers are scopes of one slice."""
    if not is_running():
        pytest.skip("systemd is missing (sudo ./hack/test --vm)")
    if cgroups.native() != cgroups.SYSTEMD:
        pytest.skip("a host with cgroup v2 alone is missing (sudo ./hack/test --vm)")
    driver = cgroups.choose(cgroups.SYSTEMD)
    return box_with(driver, lambda number: driver.names.container(f"{INNER}:test:{number}", ""))


def systemctl(*args: str) -> str:
    done = subprocess.run(["systemctl", *args], capture_output=True, text=True, timeout=120)
    return done.stdout.strip()


def listed_units() -> list[str]:
    text = systemctl("list-units", "--all", "--plain", "--no-legend", "--type=scope,slice")
    return sorted(line.split()[0] for line in text.splitlines() if "session-" not in line)


def children(name: str) -> list[str]:
    """Command lines of our children that start with `name`."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode())
    return [line for line in found if line.startswith(name)]


def shown(unit: str, *names: str) -> dict[str, str]:
    text = systemctl("show", unit, "--property", ",".join(names))
    return dict(line.partition("=")[::2] for line in text.splitlines())


def limited(**resources: Any) -> dict[str, Any]:
    return {"resources": resources}


def content(cgroup: Any, name: str) -> str:
    return (Path(cgroup.folder) / name).read_text().strip()


def unit(cgroup: Any) -> str:
    """The scope's name: a container's cgroup is one level below."""
    return str(cgroup.path.split("/")[-2])


LIMITS = limited(
    memory={"limit": 64 * MIB, "reservation": 16 * MIB, "swap": 96 * MIB},
    cpu={"shares": 512, "quota": 20000, "period": 100000, "cpus": "0"},
    pids={"limit": 40},
    unified={"memory.high": str(48 * MIB), "memory.oom.group": "1"},
    devices=[{"allow": False, "access": "rwm"}],
)


def test_a_container_is_a_delegated_scope_with_its_limits_as_properties(units: Any) -> None:
    running = units.start("cat /proc/self/cgroup; sleep 60", linux=LIMITS)
    assert running.read_until("\n", 60) == "0::/\n"
    assert Path(f"/proc/{running.pid}/cgroup").read_text() == f"0::/{running.cgroup.path}\n"
    assert running.cgroup.path.startswith(f"{OUTER}/{INNER}/test-")
    assert shown(
        unit(running.cgroup),
        "ActiveState", "Slice", "Delegate", "MemoryMax", "MemoryLow", "MemoryHigh", "MemorySwapMax",
        "CPUWeight", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec", "AllowedCPUs", "TasksMax", "CollectMode",
    ) == {
        "ActiveState": "active", "Slice": INNER, "Delegate": "yes", "MemoryMax": str(64 * MIB),
        "MemoryLow": str(16 * MIB), "MemoryHigh": str(48 * MIB), "MemorySwapMax": str(32 * MIB),
        "CPUWeight": "20", "CPUQuotaPerSecUSec": "200ms", "CPUQuotaPeriodUSec": "100ms", "AllowedCPUs": "0",
        "TasksMax": "40", "CollectMode": "inactive-or-failed",
    }  # fmt: skip
    assert running.cgroup.pids() == [running.pid] or len(running.cgroup.pids()) == 2  # sh, and its sleep
    assert children("kubelet-py-holder") == []


FILES = {
    "memory.max": str(64 * MIB), "memory.low": str(16 * MIB), "memory.high": str(48 * MIB),
    "memory.swap.max": str(32 * MIB), "memory.oom.group": "1", "cpu.weight": "20", "cpu.max": "20000 100000",
    "cpuset.cpus": "0", "pids.max": "40",
}  # fmt: skip


def test_limits_outlive_a_reload_of_systemd(units: Any) -> None:
    script = "mknod /tmp/tun c 10 200; echo up; while :; do sleep 1; (: < /tmp/tun) 2>&1; done"
    running = units.start(script, linux=LIMITS, capabilities=("CAP_MKNOD",))
    running.read_until("Operation not permitted", 90)
    for step in ("before", "after"):
        if step == "after":
            systemctl("daemon-reload")
            # A change of a neighbour has systemd look at the tree again, too.
            units.driver.create(f"{OUTER}/kptest{os.getpid()}-other.slice", {"memory": {"limit": MIB}})
            running._text = b""
        found = {name: content(running.cgroup, name) for name in FILES}
        assert found == FILES, step
        running.read_until("Operation not permitted", 90)


def test_memory_beyond_the_limit_ends_in_137_and_leaves_no_failed_unit(units: Any) -> None:
    running = units.start("tail /dev/zero", linux=limited(memory={"limit": 16 * MIB, "swap": 16 * MIB}))
    assert running.wait(90)[0] == 137
    until_gone(unit(running.cgroup))


def until_gone(name: str) -> None:
    deadline = time.monotonic() + 60
    while shown(name, "LoadState") != {"LoadState": "not-found"}:
        assert time.monotonic() < deadline, systemctl("status", name)
        time.sleep(0.1)


def test_a_limit_of_one_task_lets_the_one_task_in(units: Any) -> None:
    """What holds the scope until then does not count against it."""
    running = units.start("echo up; exec sleep 60", linux=limited(pids={"limit": 1}))
    running.read_until("up", 60)
    assert content(running.cgroup, "pids.max") == "1" and running.cgroup.pids() == [running.pid]


def test_forks_beyond_the_limit_fail(units: Any) -> None:
    script = "i=0; while [ $i -lt 20 ]; do sleep 5 & i=$((i+1)); done; echo all; kill -9 -1"
    _, text = units.start(script, linux=limited(pids={"limit": 8})).wait(90)
    assert "can't fork" in text and "all" not in text


def test_a_cpu_quota_is_kept(units: Any) -> None:
    running = units.start(
        "echo up; while :; do :; done", linux=limited(cpu={"quota": 20000, "period": 100000})
    )
    running.read_until("up", 60)
    begin, used = time.monotonic(), running.cgroup.stats().cpu_usage_ns
    while time.monotonic() - begin < 3.0:
        time.sleep(0.05)
    share = (running.cgroup.stats().cpu_usage_ns - used) / 1e9 / (time.monotonic() - begin)
    assert share < 0.35
    assert running.cgroup.stats().cpu_throttled_periods > 0


def test_an_update_changes_properties_and_files(units: Any) -> None:
    running = units.start("echo up; sleep 60", linux=LIMITS)
    running.read_until("up", 60)
    changed = {"memory": {"limit": 128 * MIB}, "pids": {"limit": 9}, "cpu": {"shares": 2, "quota": 50000}}
    units.driver.open(running.cgroup.path).update(changed)
    assert shown(unit(running.cgroup), "MemoryMax", "TasksMax", "CPUWeight", "CPUQuotaPerSecUSec") == {
        "MemoryMax": str(128 * MIB), "TasksMax": "9", "CPUWeight": "1", "CPUQuotaPerSecUSec": "500ms",
    }  # fmt: skip
    assert content(running.cgroup, "memory.max") == str(128 * MIB)
    assert content(running.cgroup, "pids.max") == "9"
    systemctl("daemon-reload")
    assert content(running.cgroup, "memory.max") == str(128 * MIB)
    assert content(running.cgroup, "cpu.max") == "50000 100000"


def test_removing_stops_the_unit_and_all_in_it(units: Any) -> None:
    running = units.start("sleep 60 & (sleep 60 &) ; echo up; sleep 60")
    running.read_until("up", 60)
    with pytest.raises(CgroupError, match="EBUSY"):
        units.driver.remove(running.cgroup.path)
    units.driver.remove(running.cgroup.path, recursive=True)
    assert running.wait()[0] == 137
    assert not units.driver.exists(running.cgroup.path)
    assert shown(unit(running.cgroup), "LoadState") == {"LoadState": "not-found"}
    units.driver.remove(running.cgroup.path, recursive=True)  # once more is fine


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        ({"cpu": {"cpus": "900"}}, "cpuset.cpus"),
        ({"memory": {"swappiness": 5}}, "swappiness"),
        ({"unified": {"no.such": "1"}}, "no.such"),
    ],
)
def test_a_limit_that_is_refused_leaves_no_unit(units: Any, resources: Any, text: str) -> None:
    path = units.place(1)
    with pytest.raises(CgroupError, match=text):
        units.driver.create(path, resources)
        units.driver.settle(path)
    units.driver.remove(path, recursive=True)
    assert not units.driver.exists(path)
    assert children("kubelet-py-holder") == []


def test_a_pod_whose_limits_are_refused_leaves_no_slice(units: Any) -> None:
    driver = units.driver
    pod = driver.names.group(f"kptest{os.getpid()}", "pods", "pod1-2")
    with pytest.raises(CgroupError, match=r"no\.such: ENOENT"):
        driver.create(pod, {"memory": {"limit": 64 * MIB}, "unified": {"no.such": "1"}})
    assert not driver.exists(pod)
    assert shown(pod.rpartition("/")[2], "ActiveState") == {"ActiveState": "inactive"}
    driver.create(pod, {"memory": {"limit": 64 * MIB}})
    home = driver.home(pod)
    with pytest.raises(CgroupError, match=r"no\.such: ENOENT"):
        driver.create(pod, {"memory": {"limit": 32 * MIB}, "unified": {"no.such": "1"}})
    assert driver.exists(home), "it was in use before"
    driver.settle(home)
    driver.remove(pod, recursive=True)


def test_two_containers_of_one_name_are_refused_by_name(units: Any) -> None:
    running = units.start("echo up; sleep 60")
    running.read_until("up", 60)
    with pytest.raises(CgroupError, match=f"start {unit(running.cgroup)}.*UnitExists"):
        units.driver.create(running.cgroup.path)
    assert running.pid in running.cgroup.pids()


def test_a_property_by_annotation(units: Any) -> None:
    key = "org.systemd.property."
    asked = {f"{key}TimeoutStopSec": "5", f"{key}KillSignal": "uint32 9", "other": "x"}
    with pytest.raises(CgroupError, match=r"start test-7\.scope"):
        units.driver.create(units.place(7), None, {f"{key}KillSignal": "'text'"})
    asked[f"{key}KillSignal"] = "int32 10"
    running = units.start("echo up; sleep 60", annotations=asked)
    running.read_until("up", 60)
    assert shown(unit(running.cgroup), "TimeoutStopUSec", "KillSignal") == {
        "TimeoutStopUSec": "5s", "KillSignal": "10",
    }  # fmt: skip


def test_a_pod_is_a_slice_with_a_home_in_which_cgroups_are_ours(units: Any) -> None:
    """All controllers reach the container's cgroup, and it outlives its processes: OOM kills are still there
    to be read."""
    names, driver = units.driver.names, units.driver
    assert names.group(f"kptest{os.getpid()}") == OUTER
    pod = names.group(f"kptest{os.getpid()}", "pods", "pod1-2")
    assert pod.endswith(f"/kptest{os.getpid()}-pods-pod1_2.slice")
    driver.create(pod, {"memory": {"limit": 256 * MIB}})
    driver.open(pod).update({"cpu": {"quota": 150000, "period": 100000}})
    home = driver.home(pod)
    pause = units.launch(units.spec("echo up; sleep 60"), driver.create(f"{home}/pause"))
    pause.read_until("up", 60)
    driver.settle(home)
    assert names.group_of(home) == pod and not (ROOT / home / "holder").exists()
    cgroup = driver.create(f"{home}/one", {"memory": {"limit": 16 * MIB, "swap": 16 * MIB}})
    hungry = units.launch(units.spec("tail /dev/zero"), cgroup)
    assert hungry.wait(90)[0] == 137
    systemctl("daemon-reload")
    assert driver.open(f"{home}/one").stats().oom_kills == 1
    assert {"cpu", "memory", "pids", "io", "cpuset"} <= set(content(cgroup, "cgroup.controllers").split())
    assert (ROOT / pod / "memory.max").read_text() == f"{256 * MIB}\n"
    assert (ROOT / pod / "cpu.max").read_text() == "150000 100000\n"
    driver.create(pod, {"memory": {"limit": 128 * MIB}})  # as for the pod's next sandbox
    assert (ROOT / pod / "memory.max").read_text() == f"{128 * MIB}\n"
    driver.remove(pod, recursive=True)
    assert pause.wait()[0] == 137 and not driver.exists(pod)
    until_gone(pod.rpartition("/")[2])


def test_what_is_no_unit_is_refused(units: Any) -> None:
    with pytest.raises(CgroupError, match="must be a slice or in a scope"):
        units.driver.create("kubepods/pod1")


# the command line


class Bundle:
    """A bundle run by kubelet-py-oci with the systemd driver."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        binaries = folder / "bundle/rootfs/bin"
        binaries.mkdir(parents=True)
        shutil.copy("/usr/bin/busybox", binaries / "busybox")
        for applet in ("sh", "sleep", "cat", "echo", "true"):
            (binaries / applet).symlink_to("busybox")
        self.program = folder / "kubelet-py-oci"
        self.program.write_text(
            f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
            "from runtime.oci_cli import main\nsys.exit(main())\n"
        )
        self.program.chmod(0o755)

    def configure(self, cgroups_path: str, *args: str, **resources: Any) -> None:
        import json

        path = self.folder / "bundle/config.json"
        path.unlink(missing_ok=True)
        assert self("spec", "--bundle", str(path.parent)).returncode == 0
        config = json.loads(path.read_text())
        config["process"].update(terminal=False, args=list(args))
        config["linux"]["cgroupsPath"] = cgroups_path
        config["linux"]["resources"] |= resources
        path.write_text(json.dumps(config))

    def __call__(self, *args: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        with open(self.folder / "output", "w+") as output:
            done = subprocess.run(
                [str(self.program), "--root", str(self.folder / "state"), *flags, *args],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True, timeout=120,
            )  # fmt: skip
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, output.read(), "")


@pytest.fixture
def bundle(units: Any, tmp_path: Path) -> Iterator[Bundle]:
    folder = tmp_path / "oci"
    folder.mkdir()
    made = Bundle(folder)
    yield made
    made("delete", "--force", "one")


@pytest.mark.parametrize("flags", [("--systemd-cgroup",), ("--cgroup-manager", "systemd")])
def test_the_command_line_makes_updates_and_deletes_a_scope(bundle: Bundle, flags: tuple[str, ...]) -> None:
    """Only `create` is given the flag, as podman and containerd do for some commands."""
    bundle.configure(f"{INNER}:oci:one", "sleep", "1000", memory={"limit": 64 * MIB})
    done = bundle("create", "--bundle", str(bundle.folder / "bundle"), "one", flags=flags)
    assert done.returncode == 0, done.stdout
    assert bundle("start", "one").returncode == 0
    place = ROOT / OUTER / INNER / "oci-one.scope/container"
    assert (place / "memory.max").read_text() == f"{64 * MIB}\n"
    assert bundle("exec", "one", "cat", "/proc/self/cgroup").stdout == "0::/\n"
    done = bundle("update", "--memory", "32M", "--pids-limit", "7", "one")
    assert done.returncode == 0, done.stdout
    assert shown("oci-one.scope", "MemoryMax", "TasksMax") == {"MemoryMax": str(32 * MIB), "TasksMax": "7"}
    assert (place / "pids.max").read_text() == "7\n"
    assert bundle("pause", "one").returncode == 0
    assert (place / "cgroup.freeze").read_text() == "1\n"
    assert bundle("resume", "one").returncode == 0
    assert bundle("delete", "one").returncode == 1
    done = bundle("delete", "--force", "one")
    assert done.returncode == 0, done.stdout
    assert shown("oci-one.scope", "LoadState") == {"LoadState": "not-found"} and not place.exists()


def test_run_waits_and_leaves_nothing(bundle: Bundle) -> None:
    bundle.configure("", "cat", "/proc/self/cgroup")
    done = bundle("run", "--bundle", str(bundle.folder / "bundle"), "a+b", flags=("--systemd-cgroup",))
    assert (done.returncode, done.stdout) == (0, "0::/\n")
    assert shown("kubelet-py-oci-a\\x2bb.scope", "LoadState") == {"LoadState": "not-found"}
    assert not list((ROOT / "system.slice").glob("kubelet-py-oci-*"))


@pytest.mark.parametrize("path", ["/plain", "a:b", "no slice:x:one", "a--b.slice:x:one"])
def test_a_path_in_another_form_is_refused(bundle: Bundle, path: str) -> None:
    bundle.configure(path, "true")
    done = bundle("run", "--bundle", str(bundle.folder / "bundle"), "one", flags=("--systemd-cgroup",))
    assert done.returncode == 1 and "linux.cgroupsPath" in done.stdout
    assert "does not exist" in bundle("state", "one").stdout


def test_where_systemd_makes_no_cgroups_the_flag_is_refused(tmp_path: Path) -> None:
    if cgroups.native() == cgroups.SYSTEMD:
        pytest.skip("a host without systemd is missing")
    bundle = Bundle(tmp_path)
    bundle.configure("", "true")
    done = bundle("run", "--bundle", str(tmp_path / "bundle"), "one", flags=("--systemd-cgroup",))
    assert done.returncode == 1
    assert "Could not use the systemd cgroup driver" in done.stdout and "use cgroupfs" in done.stdout
    assert not (tmp_path / "state/one").exists()


def test_podman_with_its_systemd_manager(bundle: Bundle) -> None:
    if shutil.which("podman") is None:
        pytest.skip("podman is missing")
    with tempfile.TemporaryDirectory(prefix="kp") as short:  # podman takes no long folder for its state
        run_podman(bundle, Path(short))


def run_podman(bundle: Bundle, folder: Path) -> None:
    settings = folder / "containers.conf"
    settings.write_text("[engine]\n")
    podman = [
        "podman", "--root", str(folder / "root"), "--runroot", str(folder / "runroot"),
        "--tmpdir", str(folder / "tmp"), "--cgroup-manager=systemd", "--events-backend", "file",
        "--storage-driver", "vfs", "--runtime", str(bundle.program),
    ]  # fmt: skip

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*podman, *args], capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL,
            env={**os.environ, "CONTAINERS_CONF": str(settings)},
        )  # fmt: skip

    flags = ("--network", "none", "--memory", "64m", "--pids-limit", "30", "--cgroup-parent", INNER)
    name = f"kptest{os.getpid()}"
    root = str(bundle.folder / "bundle/rootfs")
    done = call("run", "-d", "--name", name, *flags, "--rootfs", root, "sleep", "1000")
    assert done.returncode == 0, done.stderr
    try:
        found = list((ROOT / OUTER / INNER).glob("libpod-*.scope"))
        scopes = [place for place in found if "conmon" not in place.name]
        assert len(scopes) == 1
        assert shown(scopes[0].name, "MemoryMax", "TasksMax", "Delegate") == {
            "MemoryMax": str(64 * MIB), "TasksMax": "30", "Delegate": "yes",
        }  # fmt: skip
        assert (scopes[0] / "container/memory.max").read_text() == f"{64 * MIB}\n"
        assert call("exec", name, "cat", "/proc/self/cgroup").stdout == "0::/\n"
    finally:
        ended = call("rm", "-f", "-t", "0", name)
    assert ended.returncode == 0, ended.stderr
    until_gone(scopes[0].name)
