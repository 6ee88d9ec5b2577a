"""cgroup v2, the model: one folder per container, all controllers in it.

Facts relied on: a controller is usable in a folder when every ancestor lists it in cgroup.subtree_control; a
folder with processes cannot list any (so containers are leaves, and what lies below them has no controllers
of its own); cgroup.kill (Linux 5.14) kills the whole subtree, forks included; clone3 puts a child directly
into a folder.
"""

from __future__ import annotations

import errno
import os

from runtime.cgroups import devices, files
from runtime.cgroups.files import CgroupLimits, CgroupStats, section
from runtime.cgroups.join import CgroupJoin
from runtime.cgroups.names import PlainNames
from runtime.cgroups.oom_files import OomFiles
from runtime.errors import CgroupError, errno_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

WANTED = ("cpu", "memory", "pids", "cpuset", "io", "hugetlb")
ENABLED = (*WANTED, "rdma", "misc")
ALWAYS_SAFE = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]  # before Linux 4.15 told
WITHOUT_SWAP = (("memory.swap.max", "0"), ("memory.swap.max", "max"))
# What v2 has no file for: asking for it is an error, never dropped.
V1_ONLY = {
    "memory": ("swappiness", "disableOOMKiller", "kernel", "kernelTCP"),
    "cpu": ("realtimeRuntime", "realtimePeriod"),
    "blockIO": ("leafWeight",),
    "network": ("classID", "priorities"),
}


def _limit(value: int) -> str:
    """OCI's -1 (and 0 where 0 cannot be meant) is no limit."""
    return "max" if value < 0 else str(value)


def cpu_writes(resources: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """File and value for each CPU limit, those of `unified` last: they have the word. An idle cgroup takes no
    weight (EINVAL), so it is told to be none before, and what is to be idle gets none, as runc has it."""
    cpu, writes = section(resources, "cpu"), []
    idle = cpu.get("idle")
    if idle == 0:
        writes.append(("cpu.idle", "0"))
    if cpu.get("shares") and not idle:
        writes.append(("cpu.weight", str(files.weight_of_shares(cpu["shares"]))))
    if cpu.get("quota") or cpu.get("period"):
        quota = cpu.get("quota") or -1
        writes.append(("cpu.max", f"{'max' if quota < 0 else quota} {cpu.get('period') or 100000}"))
    if cpu.get("burst") is not None:
        writes.append(("cpu.max.burst", str(cpu["burst"])))
    if idle:
        writes.append(("cpu.idle", str(idle)))
    return writes + [write for write in _unified_writes(resources) if write[0].startswith("cpu.")]


def lower_burst_first(writes: list[tuple[str, str]], burst: int) -> list[tuple[str, str]]:
    """The same for a cgroup that has this burst (µs): no burst may exceed the quota, so a lower one is
    written before the new quota, a higher one after it."""
    first = [
        (name, value) for name, value in writes
        if name == "cpu.max.burst" and value.isdigit() and int(value) <= burst
    ]  # fmt: skip
    return [*first, *(write for write in writes if write not in first)]


def other_writes(resources: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """File and value for everything else, in an order in which each is allowed."""
    _refuse_v1_only(resources)
    writes = _memory_writes(section(resources, "memory"))
    cpu = section(resources, "cpu")
    writes += [(f"cpuset.{key}", cpu[key]) for key in ("cpus", "mems") if cpu.get(key)]
    pids = section(resources, "pids").get("limit")
    if pids:
        writes.append(("pids.max", _limit(pids)))
    writes += _page_writes(resources)
    writes += _io_writes(section(resources, "blockIO"))
    writes += files.rdma_writes(resources)
    return writes + [write for write in _unified_writes(resources) if not write[0].startswith("cpu.")]


def _unified_writes(resources: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """A value of several lines (io.max of several disks) is written line by line: the kernel reads one."""
    writes = []
    for name, value in section(resources, "unified").items():
        if "/" in name or not all(name.partition(".")):
            raise CgroupError(f"Could not use unified resource {name!r}: it must be CONTROLLER.PARAMETER")
        writes += [(name, line) for line in str(value).splitlines() or [""]]
    return writes


def _page_writes(resources: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Pages in use, and pages that were promised: beyond the first a process gets SIGBUS, beyond the second
    its mmap fails."""
    writes = []
    for page in (resources or {}).get("hugepageLimits") or ():
        size = str(page.get("pageSize"))
        if not size[:-2].isdigit() or size[-2:] not in ("KB", "MB", "GB"):
            raise CgroupError(f"Could not limit huge pages of size {size!r}: it must be like 2MB or 1GB")
        for name in ("max", "rsvd.max"):
            writes.append((f"hugetlb.{size}.{name}", str(page["limit"])))
    return writes


def _refuse_v1_only(resources: Mapping[str, Any] | None) -> None:
    asked = [key for name, keys in V1_ONLY.items() for key in keys if section(resources, name).get(key)]
    if any(entry.get("leafWeight") for entry in section(resources, "blockIO").get("weightDevice") or ()):
        asked.append("leafWeight")
    if asked:
        raise CgroupError(f"Could not limit {', '.join(asked)}: cgroup v2 does not have it")


def _memory_writes(memory: Mapping[str, Any]) -> list[tuple[str, str]]:
    writes = []
    limit, swap = memory.get("limit"), memory.get("swap")
    if memory.get("reservation"):
        writes.append(("memory.low", _limit(memory["reservation"])))
    if limit:
        writes.append(("memory.max", _limit(limit)))
    if swap:
        writes.append(("memory.swap.max", _swap_alone(limit or -1, swap)))
    return writes


def _swap_alone(limit: int, swap: int) -> str:
    """OCI's swap is memory plus swap; v2 counts swap alone."""
    if swap < 0:
        return "max"
    if limit < 0:
        raise CgroupError("Could not limit memory.swap: a memory.limit is needed beside it")
    files.check_swap(limit, swap)
    return str(swap - limit)


def _io_writes(block: Mapping[str, Any]) -> list[tuple[str, str]]:
    writes = []
    if block.get("weight"):
        writes.append(("io.weight", f"default {_io_weight(block['weight'])}"))
    writes += [
        ("io.weight", f"{d['major']}:{d['minor']} {_io_weight(d['weight'])}")
        for d in block.get("weightDevice") or ()
        if d.get("weight")
    ]
    for key, name in (
        ("throttleReadBpsDevice", "rbps"), ("throttleWriteBpsDevice", "wbps"),
        ("throttleReadIOPSDevice", "riops"), ("throttleWriteIOPSDevice", "wiops"),
    ):  # fmt: skip
        writes += [("io.max", f"{d['major']}:{d['minor']} {name}={d['rate']}") for d in block.get(key) or ()]
    return writes


def _io_weight(weight: int) -> int:
    """blkio.weight (10…1000) → io.weight (1…10000), as runc and crun convert it."""
    if not 10 <= weight <= 1000:
        raise CgroupError(f"Could not use blockIO weight {weight}: it must be from 10 to 1000")
    return 1 + (weight - 10) * 9999 // 990


def bfq_weight(value: str) -> str:
    """A line for io.weight → the same for io.bfq.weight, where the disks' scheduler weighs instead."""
    *place, weight = value.split() or [""]
    scaled = str(10 + -(-(int(weight) - 1) * 990 // 9999)) if weight.isdigit() else weight
    return " ".join((*place, scaled))


class Unified:
    """A cgroup of a v2 tree. `folder` absolute, `path` relative to the tree's root."""

    def __init__(self, root: str, path: str, late: tuple[tuple[str, str], ...] = ()) -> None:
        self.path = path
        self.folder = f"{root}/{path}"
        self._root = root
        self._late = late

    def update(self, resources: Mapping[str, Any]) -> None:
        """Applies linux.resources now; what is not mentioned stays. Raises CgroupError."""
        resources = self.completed(resources)
        writes = [*other_writes(resources), *cpu_writes(resources)]
        self.apply(lower_burst_first(writes, files.number(f"{self.folder}/cpu.max.burst")))

    def completed(self, resources: Mapping[str, Any]) -> Mapping[str, Any]:
        """`resources` for a running container: with the memory limit that a new swap limit is counted from,
        and with the quota or period that is not mentioned; refused if they want it (checkBeforeUpdate) and
        as much memory as the new limit is in use already."""
        memory = section(resources, "memory")
        if memory.get("swap", 0) > 0 and not memory.get("limit"):
            limit = files.number(f"{self.folder}/memory.max")
            if 0 < limit < files.UNLIMITED:
                memory = {**memory, "limit": limit}
        if memory.get("checkBeforeUpdate"):
            files.check_use(memory, files.number(f"{self.folder}/memory.current"))
        completed = {"memory": memory, "cpu": self._whole_quota(section(resources, "cpu"))}
        return {**resources, **{name: part for name, part in completed.items() if part}}

    def _whole_quota(self, cpu: Mapping[str, Any]) -> Mapping[str, Any]:
        """With both quota and period, if one is changed."""
        if bool(cpu.get("quota")) == bool(cpu.get("period")):
            return cpu
        now = self.limits()
        return {**cpu, "quota": cpu.get("quota") or now.quota, "period": cpu.get("period") or now.period}

    def apply(self, writes: list[tuple[str, str]]) -> None:
        """Writes values into the cgroup's files. Raises CgroupError."""
        for name, value in writes:
            self._write(name, value)

    def _write(self, name: str, value: str) -> None:
        if name == "io.weight":
            self._weigh(value)
            return
        try:
            files.write(f"{self.folder}/{name}", value)
        except CgroupError as error:
            if error.errno != errno.ENOENT:
                raise
            # Swap accounting is a boot option; who wants no limit, or no swap, may not know whether it is on.
            # Reservations of huge pages are counted from Linux 5.7 on.
            if (name, value) not in WITHOUT_SWAP and not name.endswith(".rsvd.max"):
                raise

    def _weigh(self, value: str) -> None:
        """io.weight counts for disks that the kernel weighs by cost, io.bfq.weight for those with the
        scheduler BFQ; each is there if its part of the kernel is, and refuses another's disk (EOPNOTSUPP).
        One of them has to take it. Raises CgroupError."""
        refused = []
        for name, text in (("io.weight", value), ("io.bfq.weight", bfq_weight(value))):
            try:
                files.write(f"{self.folder}/{name}", text)
            except CgroupError as error:
                if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
                    raise
                refused.append(error)
        if len(refused) > 1:
            raise refused[0]

    def join(self, below: Mapping[str, str] = files.NOWHERE) -> CgroupJoin:
        """How a process gets in; CPU limits given to `create` are handed over to be set after its start.
        `below` {"": path}: into that cgroup below this one, which exists. Raises CgroupError."""
        late = tuple((f"{self.folder}/{name}", value) for name, value in self._late)
        if set(below) - {""}:
            raise CgroupError(f"Could not join {', '.join(below)} apart: cgroup v2 has one tree")
        return CgroupJoin(files.below(self.folder, below.get("", "")), (), late)

    def beside(self, pid: int) -> Mapping[str, str]:
        """Where one more process can be (see `join`): in itself, or, once it hands controllers on and takes
        no processes any more (EBUSY), in the cgroup below it to which its first process `pid` has gone, as a
        container's init does that may write to its cgroups."""
        if not files.read(f"{self.folder}/cgroup.subtree_control"):
            return files.NOWHERE
        place = files.read(f"/proc/{pid}/cgroup").rpartition("::/")[2]
        inside = place.removeprefix(f"{self.path}/")
        if inside == place or files.read(f"{self._root}/{place}/cgroup.type") != "domain":
            return files.NOWHERE
        return {"": inside}

    def give(self, uid: int) -> None:
        """Makes the folder, and the files that the kernel lists as safe to give away (cgroup-v2.rst, "Model
        of Delegation"), this user's. Raises CgroupError."""
        safe = files.read("/sys/kernel/cgroup/delegate").split() or ALWAYS_SAFE
        try:
            os.chown(self.folder, uid, -1)
            for name in safe:
                if os.path.exists(f"{self.folder}/{name}"):
                    os.chown(f"{self.folder}/{name}", uid, -1)
        except OSError as error:
            text = f"Could not give cgroup {self.folder} to user {uid}: {errno_name(error.errno or 0)}"
            raise CgroupError(text, error.errno or 0) from error

    def kill(self) -> None:
        """SIGKILL to every process in the subtree, those being forked included."""
        files.kill_tree(self.folder)

    def freeze(self) -> None:
        """Stops the subtree; returns when all its processes have stopped. Raises CgroupError."""
        files.freeze(self.folder)

    def thaw(self) -> None:
        """Lets the subtree run again."""
        files.write(f"{self.folder}/cgroup.freeze", "0")

    def frozen(self) -> bool:
        """Whether it was told to stop."""
        return files.read(f"{self.folder}/cgroup.freeze") == "1"

    def pids(self) -> list[int]:
        """Processes of the subtree."""
        return files.pids_in(self.folder)

    def report(self) -> dict[str, Any]:
        """All that is counted, as runc tells it; see report."""
        from runtime.cgroups import report

        return report.unified(self.folder)

    def stats(self) -> CgroupStats:
        """Usage of the subtree; OOM kills of this cgroup and those below."""
        cpu = files.table(f"{self.folder}/cpu.stat")
        memory = files.table(f"{self.folder}/memory.stat")
        usage = files.number(f"{self.folder}/memory.current")
        limit = files.number(f"{self.folder}/memory.max")
        return CgroupStats(
            cpu_usage_ns=cpu.get("usage_usec", 0) * 1000,
            memory_usage=usage,
            memory_working_set=max(0, usage - memory.get("inactive_file", 0)),
            memory_rss=memory.get("anon", 0),
            memory_limit=None if limit in (0, files.UNLIMITED) else limit,
            memory_page_faults=memory.get("pgfault", 0),
            memory_major_page_faults=memory.get("pgmajfault", 0),
            memory_swap=files.number(f"{self.folder}/memory.swap.current"),
            pids=files.number(f"{self.folder}/pids.current"),
            oom_kills=files.table(f"{self.folder}/memory.events").get("oom_kill", 0),
            cpu_throttled_periods=cpu.get("nr_throttled", 0),
            cpu_throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        )

    def oom_files(self) -> OomFiles:
        """What tells that it is out of memory."""
        return OomFiles(f"{self.folder}/memory.events")

    def limits(self) -> CgroupLimits:
        """What is set now."""
        weight = files.number(f"{self.folder}/cpu.weight")
        quota, _, period = (files.read(f"{self.folder}/cpu.max") or "max 0").partition(" ")
        memory = files.read(f"{self.folder}/memory.max")
        return CgroupLimits(
            shares=files.shares_of_weight(weight) if weight else 0,
            by_weight=True,
            quota=-1 if quota == "max" else int(quota),
            period=int(period or 0),
            memory=int(memory) if memory not in ("", "max") else None,
            memory_known=bool(memory),
        )

    def missing_features(self) -> list[str]:
        """What this host cannot enforce here, one sentence each."""
        available = files.read(f"{self._root}/cgroup.controllers").split()
        missing = [
            f"the cgroup controller {name} is not available" for name in WANTED if name not in available
        ]
        if not os.path.exists(f"{self.folder}/cgroup.kill"):
            missing.append("cgroup.kill is not available (Linux 5.14): processes are killed one by one")
        return missing


def _enable_here(folder: str, controllers: list[str]) -> None:
    """All at once; if the kernel refuses (cpu, for one, while realtime processes run), one by one. A
    controller that stays off makes the limit that needs it fail by name."""
    control = f"{folder}/cgroup.subtree_control"
    try:
        files.write(control, " ".join("+" + name for name in controllers))
    except CgroupError:
        refused = 0
        for name in controllers:
            try:
                files.write(control, "+" + name)
            except CgroupError:
                refused += 1
                if refused == len(controllers):
                    raise


class UnifiedDriver:
    """CgroupDriver for a host with v2 alone. `root` is where cgroup2 is mounted."""

    name = "v2"
    parents_first = False
    names = PlainNames()

    def __init__(self, root: str = "/sys/fs/cgroup") -> None:
        self.root = self.unified = root

    def create(
        self,
        path: str,
        resources: Mapping[str, Any] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Unified:
        """Makes the cgroup and missing parents with every controller enabled on the way, and sets the limits
        (CPU limits when the first process has started; see CgroupJoin.late). Raises CgroupError, with nothing
        of this cgroup left but what was in use before."""
        path = files.checked_path(path)
        cgroup = Unified(self.root, path, tuple(cpu_writes(resources)))
        self.enable(path.rpartition("/")[0])
        files.make_folders(self.root, path)
        try:
            cgroup.apply(other_writes(resources))
            listed = devices.rules(resources)
            if listed:
                devices.attach(cgroup.folder, listed)
        except CgroupError:
            files.remove_if_empty(cgroup.folder)
            raise
        return cgroup

    def enable(self, parent: str) -> None:
        """Has `parent` and those above it hand every controller on. Makes what is missing of them."""
        parts = parent.split("/") if parent else []
        folders = ["/".join(parts[:count]) for count in range(len(parts) + 1)]
        available = files.read(f"{self.root}/cgroup.controllers").split()
        for folder in folders:
            if folder:
                files.make_folders(self.root, folder)
            base = f"{self.root}/{folder}".rstrip("/")
            enabled = files.read(f"{base}/cgroup.subtree_control").split()
            missing = [name for name in ENABLED if name in available and name not in enabled]
            if missing and not (folder and files.read(f"{base}/cgroup.procs")):
                _enable_here(base, missing)

    def create_bare(self, path: str) -> Unified:
        """One that only holds processes together, without limits of its own. Raises CgroupError."""
        return self.create(path)

    def home(self, group: str) -> str:
        """Where the containers of a pod get their cgroups: in the pod's own."""
        return group

    def settle(self, path: str) -> None:
        """The first process is in. Nothing is left to do: CPU limits went with its start."""

    def open(self, path: str) -> Unified:
        """An existing cgroup. Raises CgroupError."""
        if not self.exists(path):
            raise CgroupError(f"Could not open cgroup {path}: ENOENT", errno.ENOENT)
        return Unified(self.root, files.checked_path(path))

    def exists(self, path: str) -> bool:
        """Whether there is such a cgroup."""
        return os.path.isdir(f"{self.root}/{files.checked_path(path)}")

    def remove(self, path: str, recursive: bool = False) -> None:
        """Removes it; one that is gone is fine. `recursive` kills and removes everything below first."""
        folder = f"{self.root}/{files.checked_path(path)}"
        if recursive and os.path.isdir(folder):
            files.kill_tree(folder)
        files.remove_folder(folder, recursive)

    def missing_features(self) -> list[str]:
        """What this host cannot enforce, one sentence each. The root of the whole tree has no cgroup.kill on
        any kernel; a group below it has."""
        with os.scandir(self.root) as entries:
            below = next((entry.name for entry in entries if entry.is_dir()), ".")
        return Unified(self.root, below).missing_features()
