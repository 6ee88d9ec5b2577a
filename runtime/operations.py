"""Spec → ordered operations. Pure: nothing is touched, so a plan can be printed, compared and tested without
root.

The order is runc's (standard_init_linux.go), for its reasons, most of which are CVEs: the host's /proc and
/dev/null are opened first; propagation is cut before the first mount; masks and read-only paths come after
all mounts; the working directory is entered when only the container is left; credentials last, seccomp as
late as it may.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime import pause
from runtime.capabilities import bits
from runtime.cgroups.join import CgroupJoin
from runtime.devices import DEFAULT, BindConsole, LinkDevices, MakeDevices, OpenTerminal
from runtime.errors import SpecError
from runtime.kernel import Filter
from runtime.mounting import MountOptions, parse_options
from runtime.mounts import (
    BindRoot,
    EmptyRoot,
    MaskPath,
    Mount,
    MountCgroup,
    MountOverlay,
    MoveRoot,
    PivotRoot,
    ProtectPath,
    ProtectRoot,
    SetPropagation,
    SetRootPropagation,
)  # fmt: skip
from runtime.namespaces import (
    HoldCgroupNamespace,
    JoinCgroupNamespace,
    JoinNamespace,
    JoinProcess,
    NewCgroupNamespace,
    NewNamespaces,
    OpenHost,
    OpenNull,
    OwnFolder,
    SetHostname,
    SetSysctl,
    Undumpable,
    namespace_of_sysctl,
)  # fmt: skip
from runtime.plan import Operation, Plan
from runtime.process import (
    DEFAULT_PATH,
    CloseDescriptors,
    ConnectStdio,
    EnterCgroup,
    EnterWorkingDirectory,
    Execute,
    ExecuteImage,
    FindExecutable,
    LoadSeccomp,
    NewSession,
    OpenCgroup,
    ProbeExecutable,
    ResetSignals,
    SetCredentials,
    SetNoNewPrivileges,
    SetOomScore,
    SetRlimit,
    SetSecurityLabel,
    Start,
)  # fmt: skip
from runtime.procfs import MountProc
from runtime.records import Record
from runtime.seccomp.filter import compiled
from runtime.spec import Namespace, ProcessSpec, Spec

JOIN_ORDER = ("ipc", "uts", "network", "pid", "cgroup", "mount")
NEW_ORDER = ("mount", "uts", "ipc", "network", "pid")
PAUSE_USER = (
    65535  # as upstream's pause image: a container of the pod's shared PID namespace may not signal it
)


class Rootfs(Record):
    """The image's layers, TOP first, and the container's own upper and work folders (fresh for each
    start)."""

    layers: tuple[str, ...]
    upper: str
    work: str


def sandbox_plan(spec: Spec, *, cgroup: CgroupJoin | None) -> Plan:
    """The pause process in the namespaces that `spec` names, with sysctls and hostname, in an empty root."""
    new, joined = _namespaces(spec, {})
    kinds = tuple(dict.fromkeys(("mount", *new)))
    adjustment = spec.process.oom_score_adj if spec.process else None
    return _plan(
        [
            *_entering(cgroup, joined, tuple(kind for kind in kinds if kind != "cgroup")),
            SetPropagation("rprivate"),
            *_settings(spec, new, joined),
            EmptyRoot(),
            PivotRoot(),
            *_born(cgroup, new, joined),
            NewSession(),
            ConnectStdio(),
            *([] if adjustment is None else [SetOomScore(adjustment)]),
            ResetSignals(),
            CloseDescriptors(),
            SetCredentials(PAUSE_USER, PAUSE_USER, (), bits(None)),
            SetNoNewPrivileges(),
            ExecuteImage("pause", pause.image()),
            Start(),
        ],
        cgroup,
    )


def container_plan(
    spec: Spec,
    *,
    rootfs: Rootfs | None,
    join: Mapping[str, str],
    cgroup: CgroupJoin | None,
    wait_on: Operation | None = None,
    preserve_fds: int = 0,
    pivot: bool = True,
) -> Plan:
    """A container: the root from `rootfs` or else from spec.root.path (absolute), namespaces joined by `join`
    (type → path) or as the spec says. `wait_on` is put before the execve (OCI create waits there for start).
    `preserve_fds` descriptors from 3 on stay open. `pivot` False is for a root in a ramfs, which
    pivot_root(2) refuses to leave.
    """
    process = spec.process
    if process is None:
        raise SpecError("process", "is missing")
    new, joined = _namespaces(spec, join)
    if "mount" not in new:
        raise SpecError("linux.namespaces", "a container needs a new mount namespace")
    kinds = tuple(kind for kind in new if kind != "cgroup")
    before, after = _security(spec, process)
    return _plan(
        [
            *_entering(cgroup, joined, kinds),
            SetPropagation(spec.linux.rootfs_propagation or "rslave"),
            OpenNull(),
            _root(spec, rootfs),
            *_mounts(spec),
            *_devices(spec),
            OpenTerminal(process.user.uid, process.console_size),
            BindConsole(),
            *_settings(spec, new, joined),
            *(ProtectPath(path) for path in spec.linux.readonly_paths),
            *(MaskPath(path) for path in spec.linux.masked_paths),
            *([ProtectRoot()] if spec.root and spec.root.readonly else []),
            PivotRoot() if pivot else MoveRoot(),
            *([SetRootPropagation(spec.linux.rootfs_propagation)] if spec.linux.rootfs_propagation else []),
            EnterWorkingDirectory(process.cwd),
            FindExecutable(process.args[0], _search_path(process)),
            *_born(cgroup, new, joined),
            *_cgroup_mounts(spec),
            NewSession(),
            ProbeExecutable(process.args, process.env),
            *_limits(process, preserve_fds),
            # Before the seccomp filter, which may not know what waiting needs.
            *([wait_on] if wait_on else []),
            *before,
            *_credentials(process),
            *after,
            Execute(process.args, process.env),
            Start(),
        ],
        cgroup,
    )


def exec_plan(
    spec: Spec,
    process: ProcessSpec,
    *,
    init_pid: int,
    cgroup: CgroupJoin | None,
    init_start_time: int | None = None,
    preserve_fds: int = 0,
) -> Plan:
    """One more process in a running container. `init_start_time` (clock ticks) guards against a recycled
    pid."""
    before, after = _security(spec, process)
    kinds = ("mount", "uts", "ipc", "network", "pid")
    return _plan(
        [
            Undumpable(),
            OpenHost(),
            *([OpenCgroup(cgroup.unified, cgroup.tasks)] if cgroup else []),
            OwnFolder(),
            JoinProcess(init_pid, kinds, init_start_time),
            OpenTerminal(process.user.uid, process.console_size),
            EnterWorkingDirectory(process.cwd),
            FindExecutable(process.args[0], _search_path(process)),
            *_born(cgroup, (), ()),
            JoinCgroupNamespace(),
            NewSession(),
            ProbeExecutable(process.args, process.env),
            *_limits(process, preserve_fds),
            *before,
            *_credentials(process),
            *after,
            Execute(process.args, process.env),
            Start(),
        ],
        cgroup,
    )


def _plan(operations: list[Operation], cgroup: CgroupJoin | None) -> Plan:
    return Plan(tuple(operations), cgroup.late if cgroup else ())


def _namespaces(spec: Spec, join: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[Namespace, ...]]:
    """Types to make and namespaces to join; `join` wins over the spec."""
    listed = {namespace.type: namespace.path for namespace in spec.linux.namespaces}
    listed.update(join)
    for kind in ("user", "time"):
        if kind in listed:
            raise SpecError("linux.namespaces", f"{kind} namespaces are not supported")
    new = tuple(kind for kind in (*NEW_ORDER, "cgroup") if listed.get(kind) == "")
    joined = tuple(Namespace(kind, listed[kind]) for kind in JOIN_ORDER if listed.get(kind))
    return new, joined


def _entering(
    cgroup: CgroupJoin | None, joined: tuple[Namespace, ...], new: tuple[str, ...]
) -> list[Operation]:
    return [
        Undumpable(),
        OpenHost(),
        *([OpenCgroup(cgroup.unified, cgroup.tasks)] if cgroup else []),
        OwnFolder(),
        *(
            HoldCgroupNamespace(namespace.path)
            if namespace.type == "cgroup"
            else JoinNamespace(namespace.type, namespace.path)
            for namespace in joined
        ),
        *([NewNamespaces(new)] if new else []),
    ]


def _born(
    cgroup: CgroupJoin | None, new: tuple[str, ...], joined: tuple[Namespace, ...]
) -> list[Operation]:
    return [
        *([EnterCgroup()] if cgroup and cgroup.tasks else []),
        *([NewCgroupNamespace()] if "cgroup" in new else []),
        *([JoinCgroupNamespace()] if any(namespace.type == "cgroup" for namespace in joined) else []),
    ]


def _root(spec: Spec, rootfs: Rootfs | None) -> Operation:
    if rootfs is not None:
        return MountOverlay(rootfs.layers, rootfs.upper, rootfs.work)
    if spec.root is None or not spec.root.path.startswith("/"):
        raise SpecError("root.path", "must be an absolute path here")
    return BindRoot(spec.root.path)


def _mount_options(spec: Spec) -> list[MountOptions]:
    return [parse_options(mount.options) for mount in spec.mounts]


def _mounts(spec: Spec) -> list[Operation]:
    plain: list[Operation] = []
    for index, (mount, options) in enumerate(zip(spec.mounts, _mount_options(spec), strict=True)):
        if options.bind or mount.type == "bind":
            if not mount.source:
                raise SpecError(f"mounts[{index}].source", "is missing")
            if options.idmap:
                raise SpecError(f"mounts[{index}].options", f"{options.idmap} is not supported")
            bound = MountOptions(
                True, options.recursive, options.set, options.clear, options.tree_set, options.tree_clear,
                options.propagation, options.tree_propagation, options.data,
            )  # fmt: skip
            plain.append(Mount(mount.destination, "bind", mount.source, bound))
        elif mount.type == "proc":
            plain.append(MountProc(mount.destination, options))
        elif mount.type not in ("cgroup", "cgroup2"):
            if not mount.type:
                raise SpecError(f"mounts[{index}].type", "is missing")
            plain.append(Mount(mount.destination, mount.type, mount.source, options))
    return plain


def _cgroup_mounts(spec: Spec) -> list[Operation]:
    return [
        MountCgroup(mount.destination, options)
        for mount, options in zip(spec.mounts, _mount_options(spec), strict=True)
        if mount.type in ("cgroup", "cgroup2") and not options.bind
    ]


def _devices(spec: Spec) -> list[Operation]:
    # A /dev that comes from outside as it is, is not ours to fill.
    if any(m.destination.rstrip("/") == "/dev" and {"bind", "rbind"} & set(m.options) for m in spec.mounts):
        return []
    nodes = {device.path: device for device in (*DEFAULT, *spec.linux.devices)}
    return [MakeDevices(tuple(nodes.values())), LinkDevices()]


def _settings(spec: Spec, new: tuple[str, ...], joined: tuple[Namespace, ...]) -> list[Operation]:
    own = {*new, *(namespace.type for namespace in joined)}
    for name in spec.linux.sysctl:
        if namespace_of_sysctl(name) not in own:
            raise SpecError("linux.sysctl", f"{name} is not in a separate kernel namespace")
    settings: list[Operation] = [SetSysctl(name, value) for name, value in spec.linux.sysctl.items()]
    if spec.hostname or spec.domainname:
        if "uts" not in new:
            # In a pod the sandbox has named the namespace that its containers join.
            return settings
        settings.insert(0, SetHostname(spec.hostname, spec.domainname))
    return settings


def _search_path(process: ProcessSpec) -> str:
    for entry in process.env:
        if entry.startswith("PATH="):
            return entry[5:]
    return DEFAULT_PATH


def _limits(process: ProcessSpec, preserve_fds: int) -> list[Operation]:
    return [
        ConnectStdio(),
        *([] if process.oom_score_adj is None else [SetOomScore(process.oom_score_adj)]),
        *(SetRlimit(limit) for limit in process.rlimits),
        ResetSignals(),
        CloseDescriptors(3 + preserve_fds),
        *([SetSecurityLabel("apparmor", process.apparmor_profile)] if _confined(process) else []),
        *([SetSecurityLabel("selinux", process.selinux_label)] if process.selinux_label else []),
    ]


def _confined(process: ProcessSpec) -> bool:
    return process.apparmor_profile not in ("", "unconfined")


def _credentials(process: ProcessSpec) -> list[Operation]:
    user = process.user
    sets = bits(process.capabilities)
    umask = 0o022 if user.umask is None else user.umask
    return [SetCredentials(user.uid, user.gid, user.additional_gids, sets, umask)]


def _security(spec: Spec, process: ProcessSpec) -> tuple[list[Operation], list[Operation]]:
    """Operations before and after the credentials: seccomp without no_new_privs needs CAP_SYS_ADMIN."""
    after: list[Operation] = [SetNoNewPrivileges()] if process.no_new_privileges else []
    if spec.linux.seccomp is None:
        return [], after
    program, flags = compiled(spec.linux.seccomp)
    load = LoadSeccomp(Filter(program), flags)
    return ([], [*after, load]) if process.no_new_privileges else ([load], after)
