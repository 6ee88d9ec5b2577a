"""The same cgroups on a hybrid host: v1 controllers for limits, a same-named v2 folder for kill, freeze and
PSI.

Facts relied on: v1 hierarchies are independent, so a process is joined to each by writing 0 to `tasks` by
itself (30–80 µs; a pid written from outside waits for an RCU grace period, 8–13 ms); a controller in which a
cgroup has no folder leaves its processes where the nearest ancestor with a folder is. cpu, cpuacct, memory
and pids get a folder always, the others only when a limit asks for it.
"""

from __future__ import annotations

import errno
import os
from itertools import groupby

from runtime.cgroups import devices, files
from runtime.cgroups.files import CgroupLimits, CgroupStats, section
from runtime.cgroups.join import CgroupJoin
from runtime.cgroups.names import PlainNames
from runtime.cgroups.oom_files import OomFiles
from runtime.errors import CgroupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

ALWAYS = ("cpu", "cpuacct", "memory", "pids")
ON_DEMAND = ("cpuset", "devices", "blkio", "hugetlb", "net_cls", "net_prio")
RARE = ("rdma",)  # on demand, too; few machines have devices for it, and none misses it
UNIFIED = "unified"  # stands for the v2 folder where a v1 controller is named
# v1 files report a limit near 2**63 rounded to pages when there is none.
NO_LIMIT = 2**62

# Kernels since 5.16 refuse or ignore every value: the memory limit counts the kernel's share, too.
KERNEL_MEMORY = "memory.kmem.limit_in_bytes"

Write = tuple[str, str, str]


def _bound(value: int) -> str:
    return "-1" if value < 0 else str(value)


def cpu_writes(resources: Mapping[str, Any] | None) -> list[Write]:
    """Controller, file and value for each CPU limit."""
    cpu = section(resources, "cpu")
    names = (("period", "cpu.cfs_period_us"), ("quota", "cpu.cfs_quota_us"), ("burst", "cpu.cfs_burst_us"))
    writes = [("cpu", name, str(cpu[key])) for key, name in names if cpu.get(key)]
    if cpu.get("shares"):
        writes.insert(0, ("cpu", "cpu.shares", str(max(2, cpu["shares"]))))
    if cpu.get("idle") is not None:
        writes.append(("cpu", "cpu.idle", str(cpu["idle"])))
    return writes


def other_writes(resources: Mapping[str, Any] | None) -> list[Write]:
    """Controller, file and value for everything else, in an order in which each is allowed."""
    writes = _memory_writes(section(resources, "memory"))
    cpu = section(resources, "cpu")
    writes += [("cpuset", f"cpuset.{key}", cpu[key]) for key in ("cpus", "mems") if cpu.get(key)]
    realtime = (("realtimePeriod", "cpu.rt_period_us"), ("realtimeRuntime", "cpu.rt_runtime_us"))
    writes += [("cpu", name, str(cpu[key])) for key, name in realtime if cpu.get(key)]
    pids = section(resources, "pids").get("limit")
    if pids:
        writes.append(("pids", "pids.max", "max" if pids < 0 else str(pids)))
    for page in (resources or {}).get("hugepageLimits") or ():
        writes.append(("hugetlb", f"hugetlb.{page['pageSize']}.limit_in_bytes", str(page["limit"])))
    writes += _block_writes(section(resources, "blockIO"))
    writes += [("rdma", name, value) for name, value in files.rdma_writes(resources)]
    writes += _network_writes(section(resources, "network")) + _device_writes(resources)
    return writes + [(UNIFIED, name, str(value)) for name, value in section(resources, "unified").items()]


def _memory_writes(memory: Mapping[str, Any]) -> list[Write]:
    names = (
        ("limit", "memory.limit_in_bytes"), ("swap", "memory.memsw.limit_in_bytes"),
        ("reservation", "memory.soft_limit_in_bytes"), ("kernel", KERNEL_MEMORY),
        ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
    )  # fmt: skip
    files.check_swap(memory.get("limit") or 0, memory.get("swap") or 0)
    writes = [("memory", name, _bound(memory[key])) for key, name in names if memory.get(key)]
    if memory.get("swappiness") is not None:
        writes.append(("memory", "memory.swappiness", str(memory["swappiness"])))
    if memory.get("disableOOMKiller"):
        writes.append(("memory", "memory.oom_control", "1"))
    return writes


def _block_writes(block: Mapping[str, Any]) -> list[Write]:
    writes = []
    # Kernels since 5.0 have no leaf weights; who asks for one is told which file is missing.
    kinds = (("weight", "blkio.bfq.weight"), ("leafWeight", "blkio.leaf_weight"))
    for key, name in kinds:
        if block.get(key):
            writes.append(("blkio", name, str(block[key])))
        devices = (d for d in block.get("weightDevice") or () if d.get(key))
        writes += [("blkio", f"{name}_device", f"{d['major']}:{d['minor']} {d[key]}") for d in devices]
    for key, name in (
        ("throttleReadBpsDevice", "read_bps"), ("throttleWriteBpsDevice", "write_bps"),
        ("throttleReadIOPSDevice", "read_iops"), ("throttleWriteIOPSDevice", "write_iops"),
    ):  # fmt: skip
        file = f"blkio.throttle.{name}_device"
        writes += [("blkio", file, f"{d['major']}:{d['minor']} {d['rate']}") for d in block.get(key) or ()]
    return writes


def _network_writes(network: Mapping[str, Any]) -> list[Write]:
    writes = []
    if network.get("classID"):
        writes.append(("net_cls", "net_cls.classid", str(network["classID"])))
    for entry in network.get("priorities") or ():
        writes.append(("net_prio", "net_prio.ifpriomap", f"{entry['name']} {entry['priority']}"))
    return writes


def _device_writes(resources: Mapping[str, Any] | None) -> list[Write]:
    return [
        ("devices", "devices.allow" if rule.allow else "devices.deny", rule.text())
        for rule in devices.rules(resources)
    ]


def _may_be_missing(name: str, number: int) -> bool:
    """Swap accounting is a boot option; a limit of the kernel's share alone is history."""
    if name in ("memory.memsw.limit_in_bytes", "memory.swappiness"):
        return number == errno.ENOENT
    return name == KERNEL_MEMORY and number in (errno.ENOENT, errno.EOPNOTSUPP)


class Hybrid:
    """A cgroup of several hierarchies with one path."""

    def __init__(
        self, driver: HybridDriver, path: str, late: tuple[tuple[str, str], ...] = (), *, bare: bool = False
    ) -> None:
        """`bare`: in the v2 tree alone."""
        self.path = path
        self._bare = bare
        self._driver = driver
        self._late = late
        self._made: set[str] = set()  # controllers that have it for certain

    def update(self, resources: Mapping[str, Any]) -> None:
        """Applies linux.resources now; what is not mentioned stays. Raises CgroupError."""
        memory = section(resources, "memory")
        if memory.get("checkBeforeUpdate"):
            files.check_use(memory, self.stats().memory_usage)
        writes = [*other_writes(resources), *cpu_writes(resources)]
        self.apply(writes)
        for controller in dict.fromkeys(controller for controller, _, _ in writes):
            if controller in (*ON_DEMAND, *RARE):
                self._enter(self._driver.folder(controller, self.path))

    def _enter(self, folder: str) -> None:
        """Bring the processes into a cgroup that was made when they ran already, by this update or by another
        that failed half-way; children of theirs too."""
        before = set(files.pids_in(folder))
        while new := set(self.pids()) - before:
            for pid in new:
                try:
                    files.write(f"{folder}/cgroup.procs", str(pid))
                except CgroupError as error:
                    if error.errno != errno.ESRCH:  # it has ended
                        raise
            before |= new

    def apply(self, writes: list[Write]) -> None:
        """Writes values, making folders in controllers that had none for this cgroup."""
        for (controller, name), same in groupby(writes, lambda write: write[:2]):
            values = [value for _, _, value in same]
            if controller == UNIFIED:
                files.write(f"{self._driver.unified}/{self.path}/{name}", *values)
                continue
            if controller not in self._driver.controllers:
                raise CgroupError(f"Could not set {name}: this host has no v1 controller {controller}")
            if controller in (*ON_DEMAND, *RARE):
                self._make(controller)
            self._write(controller, name, *values)

    def make(self, controllers: Iterable[str]) -> None:
        """Makes it in those of the controllers that this host has. Raises CgroupError."""
        for controller in controllers:
            if controller in self._driver.controllers:
                self._make(controller)

    def _make(self, controller: str) -> None:
        self._driver.make(controller, self.path)
        self._made.add(controller)

    def _write(self, controller: str, name: str, *values: str) -> None:
        folder = self._driver.folder(controller, self.path)
        try:
            files.write(f"{folder}/{name}", *values)
        except CgroupError as error:
            if name == "memory.limit_in_bytes" and error.errno == errno.EINVAL:
                # Raising the limit above the memory+swap limit: that one has to go up first.
                files.write(f"{folder}/memory.memsw.limit_in_bytes", *values)
                files.write(f"{folder}/{name}", *values)
            elif not _may_be_missing(name, error.errno):
                raise

    def join(self, below: Mapping[str, str] = files.NOWHERE) -> CgroupJoin:
        """How a process gets in; CPU limits given to `create` are handed over to be set after its start.
        `below`: by controller ("unified" for the v2 tree, "" for all that have this cgroup), a cgroup below
        this one that is joined instead, and exists. Raises CgroupError."""
        if unknown := set(below) - {"", UNIFIED, *self._driver.controllers}:
            raise CgroupError(f"Could not join {', '.join(unknown)}: this host has no such v1 controller")
        tasks = []
        for controller in self._driver.controllers:
            place = self.path
            own = self._driver.folder(controller, place)
            if controller in below or (below.get("") and os.path.exists(own)):
                tasks.append(f"{files.below(own, below.get(controller) or below[''])}/tasks")
                continue
            known = controller in self._made
            if self._bare:  # it has none in any of them
                place = place.rpartition("/")[0]
            while place and not known and not os.path.exists(self._driver.folder(controller, place)):
                place = place.rpartition("/")[0]
            if place:
                tasks.append(f"{self._driver.folder(controller, place)}/tasks")
        unified = files.below(f"{self._driver.unified}/{self.path}", below.get(UNIFIED) or below.get("", ""))
        return CgroupJoin(unified, tuple(tasks), self._late)

    def beside(self, pid: int) -> Mapping[str, str]:
        """In itself: a v2 tree without controllers hands none on."""
        return files.NOWHERE

    def give(self, uid: int) -> None:
        """Stays root's: v1 cgroups are not safe to give away (runtime-spec, "Cgroup ownership")."""

    def kill(self) -> None:
        """SIGKILL to every process in the subtree, those being forked included."""
        files.kill_tree(f"{self._driver.unified}/{self.path}")

    def freeze(self) -> None:
        """Stops the subtree; returns when all its processes have stopped. Raises CgroupError."""
        files.freeze(f"{self._driver.unified}/{self.path}")

    def thaw(self) -> None:
        """Lets the subtree run again."""
        files.write(f"{self._driver.unified}/{self.path}/cgroup.freeze", "0")

    def frozen(self) -> bool:
        """Whether it was told to stop."""
        return files.read(f"{self._driver.unified}/{self.path}/cgroup.freeze") == "1"

    def pids(self) -> list[int]:
        """Processes of the subtree."""
        return files.pids_in(f"{self._driver.unified}/{self.path}")

    def report(self) -> dict[str, Any]:
        """All that is counted, as runc tells it; see report."""
        from runtime.cgroups import report

        return report.hybrid({name: self._driver.folder(name, self.path) for name in ALWAYS})

    def stats(self) -> CgroupStats:
        """Usage of the subtree. OOM kills are this cgroup's own: v1 does not add up those below."""
        memory_folder = self._driver.folder("memory", self.path)
        memory = files.table(f"{memory_folder}/memory.stat")
        cpu = files.table(f"{self._driver.folder('cpu', self.path)}/cpu.stat")
        usage = files.number(f"{memory_folder}/memory.usage_in_bytes")
        limit = files.number(f"{memory_folder}/memory.limit_in_bytes")
        return CgroupStats(
            cpu_usage_ns=files.number(f"{self._driver.folder('cpuacct', self.path)}/cpuacct.usage"),
            memory_usage=usage,
            memory_working_set=max(0, usage - memory.get("total_inactive_file", 0)),
            memory_rss=memory.get("total_rss", 0),
            memory_limit=limit if 0 < limit < NO_LIMIT else None,
            memory_page_faults=memory.get("total_pgfault", 0),
            memory_major_page_faults=memory.get("total_pgmajfault", 0),
            memory_swap=memory.get("total_swap", 0),
            pids=files.number(f"{self._driver.folder('pids', self.path)}/pids.current"),
            oom_kills=files.table(f"{memory_folder}/memory.oom_control").get("oom_kill", 0),
            cpu_throttled_periods=cpu.get("nr_throttled", 0),
            cpu_throttled_ns=cpu.get("throttled_time", 0),
        )

    def oom_files(self) -> OomFiles:
        """What tells that it, or one above it, is out of memory."""
        folder = self._driver.folder("memory", self.path)
        return OomFiles(f"{folder}/memory.oom_control", f"{folder}/cgroup.event_control")

    def limits(self) -> CgroupLimits:
        """What is set now."""
        cpu = self._driver.folder("cpu", self.path)
        memory = files.read(f"{self._driver.folder('memory', self.path)}/memory.limit_in_bytes")
        return CgroupLimits(
            shares=files.number(f"{cpu}/cpu.shares"),
            quota=files.number(f"{cpu}/cpu.cfs_quota_us"),
            period=files.number(f"{cpu}/cpu.cfs_period_us"),
            memory=int(memory) if memory and int(memory) < NO_LIMIT else None,
            memory_known=bool(memory),
        )

    def missing_features(self) -> list[str]:
        """What this host cannot enforce here, one sentence each."""
        return self._driver.missing_features()


class HybridDriver:
    """CgroupDriver for v1 controllers beside a v2 tree.

    `controllers`: v1 controller → folder where it is mounted (one folder may serve several). `unified`: the
    v2 tree.
    """

    name = "hybrid"
    parents_first = False
    names = PlainNames()

    def __init__(self, controllers: Mapping[str, str], unified: str) -> None:
        known = (*ALWAYS, *ON_DEMAND, *RARE)
        self.controllers = {name: controllers[name] for name in known if name in controllers}
        self.unified = unified
        # Other OCI runtimes make their cgroups in every tree, and their parents with them.
        self._trees = tuple(dict.fromkeys((*controllers.values(), unified)))

    def folder(self, controller: str, path: str) -> str:
        """Where `controller` has the cgroup's files."""
        return f"{self.controllers.get(controller, '/nonexistent')}/{path}"

    def make(self, controller: str, path: str) -> None:
        """Makes the cgroup in one v1 hierarchy."""
        root = self.controllers[controller]
        made = (lambda new: self._inherit_cpuset(root, new)) if controller == "cpuset" else None
        files.make_folders(root, path, made)
        if made is not None and not files.read(f"{root}/{path}/cpuset.mems"):
            self._inherit_cpuset(root, path)  # made by another who is not so far yet, or was killed

    def _inherit_cpuset(self, root: str, path: str) -> None:
        """A new cpuset is empty, and no process may enter it, until it has processors and memory nodes. Its
        parent may be as new, made by another who has not come to this yet; both write the same."""
        parent = path.rpartition("/")[0]
        for name in ("cpuset.cpus", "cpuset.mems"):
            value = files.read(f"{root}/{parent}/{name}")
            if not value and parent:
                self._inherit_cpuset(root, parent)
                value = files.read(f"{root}/{parent}/{name}")
            files.write(f"{root}/{path}/{name}", value)

    def create(
        self,
        path: str,
        resources: Mapping[str, Any] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Hybrid:
        """Makes the cgroup and missing parents everywhere and sets the limits (CPU limits when the first
        process has started; see CgroupJoin.late). Raises CgroupError, with nothing of this cgroup left but
        what was in use before."""
        path = files.checked_path(path)
        late = tuple((f"{self.folder(c, path)}/{name}", value) for c, name, value in cpu_writes(resources))
        cgroup = Hybrid(self, path, late)
        try:
            files.make_folders(self.unified, path)
            cgroup.make(ALWAYS)
            cgroup.apply(other_writes(resources))
        except CgroupError:
            for root in self._trees:
                files.remove_if_empty(f"{root}/{path}")
            raise
        return cgroup

    def create_bare(self, path: str) -> Hybrid:
        """One that only holds processes together, to be killed or frozen: limits and accounts stay those of
        the nearest cgroup above that has them. Raises CgroupError."""
        path = files.checked_path(path)
        files.make_folders(self.unified, path)
        return Hybrid(self, path, bare=True)

    def home(self, group: str) -> str:
        """Where the containers of a pod get their cgroups: in the pod's own."""
        return group

    def settle(self, path: str) -> None:
        """The first process is in. Nothing is left to do: CPU limits went with its start."""

    def open(self, path: str) -> Hybrid:
        """An existing cgroup. Raises CgroupError."""
        if not self.exists(path):
            raise CgroupError(f"Could not open cgroup {path}: ENOENT", errno.ENOENT)
        return Hybrid(self, files.checked_path(path))

    def exists(self, path: str) -> bool:
        """Whether there is such a cgroup."""
        return os.path.isdir(f"{self.unified}/{files.checked_path(path)}")

    def remove(self, path: str, recursive: bool = False) -> None:
        """Removes it everywhere; one that is gone is fine. `recursive` kills and removes everything below
        first."""
        path = files.checked_path(path)
        if recursive and self.exists(path):
            files.kill_tree(f"{self.unified}/{path}")
        for root in self._trees:
            files.remove_folder(f"{root}/{path}", recursive)

    def missing_features(self) -> list[str]:
        """What this host cannot enforce, one sentence each."""
        missing = [
            f"the cgroup controller {name} is not available"
            for name in (*ALWAYS, *ON_DEMAND)
            if name not in self.controllers
        ]
        missing.append("cgroup v1 has no memory.high and no memory.oom.group: one process is killed, not all")
        return missing
