"""Spec → ordered operations. Pure: nothing is touched, so a plan can be printed, compared and tested without
root.

The order is runc's (standard_init_linux.go), for its reasons, most of which are CVEs: the host's /proc and
/dev/null are opened first; propagation is cut before the first mount; masks and read-only paths come after
all mounts; the working directory is entered when only the container is left; credentials last, seccomp as
late as it may.
"""

from __future__ import annotations

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
    OpenSource,
    PivotRoot,
    ProtectPath,
    ProtectRoot,
    SetPropagation,
    SetRootPropagation,
)  # fmt: skip
from runtime.namespaces import (
    HoldCgroupNamespace,
    HoldNamespace,
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
from runtime.seccomp.programs import compiled
from runtime.spec import IdMapping, LinuxSpec, MountSpec, Namespace, ProcessSpec, Spec
from runtime.userns import (
    AttachRoot,
    BecomeRoot,
    BindDevices,
    EnterOwnCgroup,
    EnterUserNamespace,
    OpenRoot,
    RaiseLimits,
    SetTimeOffsets,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Compile = Callable[[Mapping[str, Any]], tuple[bytes, int]]

JOIN_ORDER = ("user", "ipc", "uts", "network", "pid", "time", "cgroup", "mount")
NEW_ORDER = ("user", "mount", "uts", "ipc", "network", "time", "pid")
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
    new_keyring: bool = True,
    compile: Compile = compiled,
) -> Plan:
    """A container: the root from `rootfs` or else from spec.root.path (absolute), namespaces joined by `join`
    (type → path) or as the spec says. `wait_on` is put before the execve (OCI create waits there for start).
    `preserve_fds` descriptors from 3 on stay open. `pivot` False is for a root in a ramfs, which
    pivot_root(2) refuses to leave. `compile` makes a seccomp filter of a profile.
    """
    process = spec.process
    if process is None:
        raise SpecError("process", "is missing")
    new, joined = _namespaces(spec, join)
    if "mount" not in new:
        raise SpecError("linux.namespaces", "a container needs a new mount namespace")
    user = "user" in new or any(namespace.type == "user" for namespace in joined)
    before, after = _security(spec, process, compile)
    foreign = user and "cgroup" not in new  # a cgroup namespace of the host's: mounting it is not for us
    mounts = [*_mounts(spec), *(_cgroup_binds(spec, cgroup) if foreign else [])]
    return _plan(
        [
            Undumpable(),
            OpenHost(),
            *_own_cgroup(cgroup, user),
            OwnFolder(),
            *([RaiseLimits(process.rlimits, process.oom_score_adj)] if user else []),
            *([OpenRoot(_root_path(spec, rootfs))] if user else []),
            *(OpenSource(m) for m in mounts if isinstance(m, Mount) and _early(m.options, user)),
            *_joining(joined),
            *_making(spec, new),
            SetPropagation(spec.linux.rootfs_propagation or "rslave"),
            OpenNull(),
            AttachRoot() if user else _root(spec, rootfs),
            *mounts,
            *_devices(spec, user),
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
            *_born(None if user else cgroup, new, joined),
            *([] if foreign else _cgroup_mounts(spec)),
            NewSession(new_keyring),
            ProbeExecutable(process.args, process.env),
            *_limits(process, preserve_fds, user),
            # Before the seccomp filter, which may not know what waiting needs.
            *([wait_on] if wait_on else []),
            *before,
            *_credentials(process),
            *after,
            Execute(process.args, process.env),
            Start(),
        ],
        cgroup,
        spec,
        apart=user or any(namespace.type == "time" for namespace in joined),
    )


def exec_plan(
    spec: Spec,
    process: ProcessSpec,
    *,
    init_pid: int,
    cgroup: CgroupJoin | None,
    init_start_time: int | None = None,
    preserve_fds: int = 0,
    executable: str = "",
    compile: Compile = compiled,
) -> Plan:
    """One more process in a running container. `init_start_time` (clock ticks) guards against a recycled
    pid. `executable` is run under the name args[0] instead of the program of that name."""
    before, after = _security(spec, process, compile)
    listed = {namespace.type for namespace in spec.linux.namespaces}
    user, time = "user" in listed, "time" in listed
    kinds = ("mount", "uts", "ipc", "network", "pid", *sorted(listed & {"user", "time"}))
    return _plan(
        [
            Undumpable(),
            OpenHost(),
            *_own_cgroup(cgroup, user),
            OwnFolder(),
            *([RaiseLimits(process.rlimits, process.oom_score_adj)] if user else []),
            JoinProcess(init_pid, kinds, init_start_time),
            OpenTerminal(process.user.uid, process.console_size),
            EnterWorkingDirectory(process.cwd, make=False),
            FindExecutable(executable or process.args[0], _search_path(process)),
            *_born(None if user else cgroup, (), ()),
            JoinCgroupNamespace(),
            NewSession(),
            ProbeExecutable(process.args, process.env),
            *_limits(process, preserve_fds, user),
            *before,
            *_credentials(process),
            *after,
            Execute(process.args, process.env),
            Start(),
        ],
        cgroup,
        apart=user or time,
    )


def _plan(
    operations: list[Operation], cgroup: CgroupJoin | None, spec: Spec | None = None, *, apart: bool = False
) -> Plan:
    linux = spec.linux if spec else LinuxSpec()
    mappings = (_mapping_text(linux.uid_mappings), _mapping_text(linux.gid_mappings))
    late = cgroup.late if cgroup else ()
    return Plan(tuple(operations), late, apart, mappings, _offsets_text(linux))


def _mapping_text(mappings: tuple[IdMapping, ...]) -> str:
    return "".join(f"{m.container} {m.host} {m.size}\n" for m in mappings)


def _offsets_text(linux: LinuxSpec) -> str:
    return "".join(f"{clock} {seconds} {rest}\n" for clock, seconds, rest in linux.time_offsets)


def _namespaces(spec: Spec, join: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[Namespace, ...]]:
    """Types to make and namespaces to join; `join` wins over the spec."""
    listed = {namespace.type: namespace.path for namespace in spec.linux.namespaces}
    listed.update(join)
    _check_mappings(spec.linux, listed)
    new = tuple(kind for kind in (*NEW_ORDER, "cgroup") if listed.get(kind) == "")
    joined = tuple(Namespace(kind, listed[kind]) for kind in JOIN_ORDER if listed.get(kind))
    return new, joined


def _check_mappings(linux: LinuxSpec, listed: Mapping[str, str]) -> None:
    if listed.get("user") == "":
        for name, mappings in (("uidMappings", linux.uid_mappings), ("gidMappings", linux.gid_mappings)):
            if not any(m.container == 0 for m in mappings):
                raise SpecError(f"linux.{name}", "must map 0: the container is set up as its root")
    elif "user" not in listed and (linux.uid_mappings or linux.gid_mappings):
        raise SpecError("linux.uidMappings", "needs a user namespace in linux.namespaces")
    if linux.time_offsets and listed.get("time") != "":
        raise SpecError("linux.timeOffsets", "needs a new time namespace in linux.namespaces")


def _entering(
    cgroup: CgroupJoin | None, joined: tuple[Namespace, ...], new: tuple[str, ...]
) -> list[Operation]:
    return [
        Undumpable(),
        OpenHost(),
        *_own_cgroup(cgroup, False),
        OwnFolder(),
        *_joining(joined),
        *([NewNamespaces(new)] if new else []),
    ]


def _own_cgroup(cgroup: CgroupJoin | None, user: bool) -> list[Operation]:
    if cgroup is None:
        return []
    join = EnterOwnCgroup if user else OpenCgroup
    return [join(cgroup.unified, cgroup.tasks)]


def _joining(joined: tuple[Namespace, ...]) -> list[Operation]:
    """A user namespace first, because it owns the others; their paths may be closed to us afterwards."""
    user = any(namespace.type == "user" for namespace in joined)
    operations: list[Operation] = []
    if user:
        operations += [HoldNamespace(n.type, n.path) for n in joined if n.type != "cgroup"]
    for namespace in joined:
        if namespace.type == "cgroup":
            operations.append(HoldCgroupNamespace(namespace.path))
            continue
        operations.append(JoinNamespace(namespace.type, namespace.path))
        if namespace.type == "user":
            operations.append(BecomeRoot())
    return operations


def _making(spec: Spec, new: tuple[str, ...]) -> list[Operation]:
    """A new user namespace before the others, which it then owns."""
    kinds = tuple(kind for kind in new if kind not in ("cgroup", "user"))
    return [
        *([EnterUserNamespace()] if "user" in new else []),
        NewNamespaces(kinds),
        *([SetTimeOffsets(_offsets_text(spec.linux))] if spec.linux.time_offsets else []),
    ]


def _born(cgroup: CgroupJoin | None, new: tuple[str, ...], joined: tuple[Namespace, ...]) -> list[Operation]:
    return [
        *([EnterCgroup()] if cgroup and cgroup.tasks else []),
        *([NewCgroupNamespace()] if "cgroup" in new else []),
        *([JoinCgroupNamespace()] if any(namespace.type == "cgroup" for namespace in joined) else []),
    ]


def _root(spec: Spec, rootfs: Rootfs | None) -> Operation:
    shared = spec.linux.rootfs_propagation in ("shared", "rshared")
    if rootfs is not None:
        return MountOverlay(rootfs.layers, rootfs.upper, rootfs.work, shared)
    return BindRoot(_root_path(spec, rootfs), shared)


def _root_path(spec: Spec, rootfs: Rootfs | None) -> str:
    if rootfs is not None:
        raise SpecError("linux.namespaces", "an overlay root in a user namespace is not supported")
    if spec.root is None or not spec.root.path.startswith("/"):
        raise SpecError("root.path", "must be an absolute path here")
    return spec.root.path


def _mount_options(spec: Spec) -> list[MountOptions]:
    return [parse_options(mount.options) for mount in spec.mounts]


def _mounts(spec: Spec) -> list[Operation]:
    plain: list[Operation] = []
    for index, (mount, options) in enumerate(zip(spec.mounts, _mount_options(spec), strict=True)):
        if options.bind or mount.type == "bind":
            if not mount.source:
                raise SpecError(f"mounts[{index}].source", "is missing")
            mappings = _mount_mappings(spec, mount, options, f"mounts[{index}]")
            bound = MountOptions(
                True, options.recursive, options.set, options.clear, options.tree_set, options.tree_clear,
                options.propagation, options.tree_propagation, options.data,
                idmap=options.idmap or ("idmap" if mappings[0] else ""),
            )  # fmt: skip
            plain.append(Mount(mount.destination, "bind", mount.source, bound, mappings))
        elif mount.type == "proc":
            plain.append(MountProc(mount.destination, options))
        elif mount.type not in ("cgroup", "cgroup2"):
            if not mount.type:
                raise SpecError(f"mounts[{index}].type", "is missing")
            if options.idmap or mount.uid_mappings or mount.gid_mappings:
                raise SpecError(f"mounts[{index}]", f"idmapped {mount.type} is not supported")
            plain.append(Mount(mount.destination, mount.type, mount.source, options))
    return plain


def _early(options: MountOptions, user: bool) -> bool:
    """Whether a mount's source has to be opened before the namespaces are made."""
    return bool(options.idmap) or (user and options.bind)


def _mount_mappings(spec: Spec, mount: MountSpec, options: MountOptions, where: str) -> tuple[str, str]:
    """The mount's own mappings, or the container's for the option alone."""
    if bool(mount.uid_mappings) != bool(mount.gid_mappings):
        raise SpecError(where, "needs both uidMappings and gidMappings, or none")
    if mount.uid_mappings:
        return _mapping_text(mount.uid_mappings), _mapping_text(mount.gid_mappings)
    if not options.idmap:
        return "", ""
    if not (spec.linux.uid_mappings and spec.linux.gid_mappings):
        raise SpecError(f"{where}.options", f"{options.idmap} needs mappings of the mount or the container")
    return _mapping_text(spec.linux.uid_mappings), _mapping_text(spec.linux.gid_mappings)


def _cgroup_mounts(spec: Spec) -> list[Operation]:
    return [
        MountCgroup(mount.destination, options)
        for mount, options in zip(spec.mounts, _mount_options(spec), strict=True)
        if mount.type in ("cgroup", "cgroup2") and not options.bind
    ]


def _cgroup_binds(spec: Spec, cgroup: CgroupJoin | None) -> list[Operation]:
    """The container's own cgroup in place of a tree that a user namespace may not mount, as runc does."""
    if cgroup is None or not cgroup.unified:
        return []
    return [
        Mount(mount.destination, "bind", cgroup.unified, MountOptions(True, set=options.set))
        for mount, options in zip(spec.mounts, _mount_options(spec), strict=True)
        if mount.type in ("cgroup", "cgroup2") and not options.bind
    ]


def _devices(spec: Spec, user: bool) -> list[Operation]:
    # A /dev that comes from outside as it is, is not ours to fill.
    if any(m.destination.rstrip("/") == "/dev" and {"bind", "rbind"} & set(m.options) for m in spec.mounts):
        return []
    nodes = {device.path: device for device in (*DEFAULT, *spec.linux.devices)}
    make = BindDevices if user else MakeDevices
    return [make(tuple(nodes.values())), LinkDevices()]


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


def _limits(process: ProcessSpec, preserve_fds: int, user: bool) -> list[Operation]:
    return [
        ConnectStdio(),
        *([] if process.oom_score_adj is None or user else [SetOomScore(process.oom_score_adj)]),
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


def _security(spec: Spec, process: ProcessSpec, compile: Compile) -> tuple[list[Operation], list[Operation]]:
    """Operations before and after the credentials: seccomp without no_new_privs needs CAP_SYS_ADMIN."""
    after: list[Operation] = [SetNoNewPrivileges()] if process.no_new_privileges else []
    if spec.linux.seccomp is None:
        return [], after
    program, flags = compile(spec.linux.seccomp)
    load = LoadSeccomp(Filter(program), flags)
    return ([], [*after, load]) if process.no_new_privileges else ([load], after)
