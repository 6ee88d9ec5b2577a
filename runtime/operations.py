"""Spec → ordered operations. Pure: nothing is touched, so a plan can be printed, compared and tested without
root.

The order is runc's (standard_init_linux.go), for its reasons, most of which are CVEs: the host's /proc and
/dev/null are opened first; propagation is cut before the first mount; masks and read-only paths come after
all mounts; the working directory is entered when only the container is left; credentials last, seccomp as
late as it may.
"""

from __future__ import annotations

from runtime import pause
from runtime.capabilities import CapabilityBits, bits, impossible
from runtime.cgroups.join import CgroupJoin
from runtime.devices import DEFAULT, BindConsole, LinkDevices, MakeDevices, OpenTerminal
from runtime.errors import SpecError
from runtime.gate import placed
from runtime.mount_list import (
    cgroup_binds,
    cgroup_mounts,
    early,
    mapping_text,
    mounts,
    protection,
    without_effect,
)  # fmt: skip
from runtime.mounts import (
    BindRoot,
    EmptyRoot,
    EnterRoot,
    MaskPath,
    Mount,
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
    RaiseLoopback,
    SetHostname,
    SetSysctl,
    Undumpable,
    namespace_of_sysctl,
)  # fmt: skip
from runtime.plan import Operation, Plan
from runtime.process import (
    DEFAULT_PATH,
    CheckLabels,
    CloseDescriptors,
    ConnectStdio,
    EnterCgroup,
    EnterWorkingDirectory,
    Execute,
    ExecuteImage,
    FindExecutable,
    NewSession,
    OpenCgroup,
    ProbeExecutable,
    ResetSignals,
    RunAnywhere,
    SetCredentials,
    SetNoNewPrivileges,
    SetOomScore,
    SetRlimit,
    SetSecurityLabel,
    Start,
)  # fmt: skip
from runtime.records import Record
from runtime.seccomp.loading import loading
from runtime.seccomp.programs import compiled
from runtime.spec import CREATING, Hook, LinuxSpec, Namespace, ProcessSpec, Spec
from runtime.userns import (
    AttachRoot,
    BecomeRoot,
    BindDevices,
    EnterOwnCgroup,
    EnterUserNamespace,
    OpenMappedRoot,
    OpenRoot,
    RaiseLimits,
    SetTimeOffsets,
    host_id,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.bare import Bare

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


def sandbox_plan(
    spec: Spec, *, cgroup: CgroupJoin | None, join: Mapping[str, str] | None = None, empty: str = ""
) -> Plan:
    """The pause process in the namespaces that `spec` names, with sysctls and hostname, in an empty root.
    Those in `join` (type → path) are there already. `empty`: path of a mount namespace that has such a root
    (see empty_root.py)."""
    new, joined = _namespaces(spec, join or {})
    user = "user" in new
    adjustment = spec.process.oom_score_adj if spec.process else None
    return _plan(
        [
            *_entering(cgroup, user),
            *([RaiseLimits((), adjustment)] if user else []),
            *_joining(joined),
            *([JoinNamespace("mount", empty)] if empty else []),
            *_making(spec, tuple(dict.fromkeys(("mount", *new)))),
            *([] if empty else [SetPropagation("rprivate")]),
            *_settings(spec, new, joined, {}),
            *([] if empty else [EmptyRoot(), PivotRoot()]),
            *_born(None if user else cgroup, new, joined),
            NewSession(),
            ConnectStdio(),
            *([] if adjustment is None or user else [SetOomScore(adjustment)]),
            ResetSignals(),
            CloseDescriptors(),
            SetCredentials(PAUSE_USER, PAUSE_USER, (), bits(None)),
            SetNoNewPrivileges(),
            ExecuteImage("pause", pause.image()),
            Start(),
        ],
        cgroup,
        spec,
        apart=user,
    )


def container_plan(
    spec: Spec,
    *,
    rootfs: Rootfs | None,
    join: Mapping[str, str],
    cgroup: CgroupJoin | None,
    wait_on: Operation | None = None,
    preserve_fds: int = 0,
    reopen_null: bool = False,
    pivot: bool = True,
    new_keyring: bool = True,
    compile: Compile = compiled,
    bare: Bare | None = None,
    tree: tuple[str, ...] = (),
    gate: int = -1,
) -> Plan:
    """A container: the root from `rootfs` or else from spec.root.path (absolute), namespaces joined by `join`
    (type → path) or as the spec says. `wait_on` is put before the execve (OCI create waits there for start).
    `preserve_fds` descriptors from 3 on stay open; `reopen_null` is ConnectStdio's. `pivot` False is for a
    root in a ramfs, which pivot_root(2) refuses to leave. `compile` makes a seccomp filter of a profile.
    `bare`: an empty mount namespace to begin with, if that will do. `tree`: the options of the host's cgroup2
    tree, which a container without a new cgroup namespace would take off it. `gate`: a descriptor at which
    the child waits when all is set up, right before the execve unless the filter forbids it."""
    process = spec.process
    if process is None:
        raise SpecError("process", "is missing")
    new, joined = _namespaces(spec, join)
    shared = any(namespace.type == "mount" for namespace in joined)
    if "mount" not in new and not shared:
        raise SpecError("linux.namespaces", "a container needs a mount namespace, new or joined")
    user = "user" in new or any(namespace.type == "user" for namespace in joined)
    before, after, listening = loading(spec, process, compile, waits=wait_on is not None)
    waiting = [wait_on] if wait_on else []
    first = 3 + preserve_fds
    early_gate, kept_gate, late_gate, first = placed(gate, spec, first) if gate >= 0 else ([], [], [], first)
    hooked = any(spec.hooks.get(kind) for kind in CREATING)
    birth, follow, hooks = _early(hooked) if hooked or wait_on else ([], [], [])
    foreign = user and "cgroup" not in new  # a cgroup namespace of the host's: mounting it is not for us
    born = _born(None if user else cgroup, new, joined)
    tree = () if "cgroup" in new else tree
    mounted = [
        *mounts(spec, cgroups=bool(birth) and not foreign, tree=tree),
        *(cgroup_binds(spec, cgroup) if foreign else []),
    ]
    usual = rootfs is None or birth or user or shared or not pivot
    if bare and (rootfs is None or usual or not bare.fits(spec, rootfs, mounted)):
        bare = None
    held = user or bare is not None  # the sources of binds are
    propagation = spec.linux.rootfs_propagation
    # Unbindable is for the finished root: the bundle's has to be bound first.
    before_root = "rprivate" if propagation.endswith("unbindable") else propagation or "rslave"
    return _plan(
        [
            Undumpable(),
            OpenHost(),
            *_labels(spec, process),
            *_own_cgroup(cgroup, user),
            OwnFolder(),
            *([RaiseLimits(process.rlimits, process.oom_score_adj)] if user else []),
            *(bare.opened(spec, rootfs) if bare and rootfs else []),  # first: its line leads mountinfo
            *(OpenSource(m) for m in mounted if isinstance(m, Mount) and early(m.options, held)),
            *([_early_root(spec, rootfs)] if user else []),
            *_joining(joined),
            *([JoinNamespace("mount", bare.path)] if bare else []),
            *_making(spec, new),
            *([RaiseLoopback()] if "network" in new else []),
            *([] if shared else [SetPropagation("rprivate" if bare else before_root)]),
            *([] if bare else [OpenNull()]),
            bare.attached() if bare else AttachRoot() if user else _root(spec, rootfs),
            *([*birth, *born] if birth else []),
            *mounted,
            *_devices(spec, user),
            OpenTerminal(process.user.uid, process.console_size),
            BindConsole(),
            *_settings(spec, new, joined, join),
            *hooks,
            *protection(spec),
            *(_protect(path) for path in spec.linux.readonly_paths),
            *(MaskPath(path) for path in spec.linux.masked_paths),
            *([ProtectRoot()] if spec.root and spec.root.readonly else []),
            EnterRoot() if shared or bare else PivotRoot() if pivot else MoveRoot(),
            *([SetRootPropagation(propagation)] if propagation else []),
            EnterWorkingDirectory(process.cwd),
            FindExecutable(process.args[0], _search_path(process), strict=wait_on is not None),
            *(follow if birth else born),
            *([] if foreign or birth else cgroup_mounts(spec, tree)),
            RunAnywhere(),
            NewSession(new_keyring),
            *_scheduling(spec, process),
            ProbeExecutable(process.args, process.env),
            *_limits(process, preserve_fds, user, reopen_null),
            # Before the seccomp filter, which may not know what waiting needs; a filter with a listener comes
            # first, because its listener is handed over by create.
            *early_gate,
            *([] if listening else [*waiting, *kept_gate, CloseDescriptors(first, now=True)]),
            *before,
            *_credentials(process),
            *after,
            *(waiting if listening else []),
            *late_gate,
            Execute(process.args, process.env),
            Start(),
        ],
        cgroup,
        spec,
        process,
        apart=user or any(namespace.type == "time" for namespace in joined),
    )


def _early(hooked: bool) -> tuple[list[Operation], list[Operation], list[Operation]]:
    """Birth of a child that is there before the root is finished, its way into the root, and hooks."""
    from runtime.early import BearChild, FollowRoot, RunHooks

    return [BearChild()], [FollowRoot()], [RunHooks()] if hooked else []


def exec_plan(
    spec: Spec,
    process: ProcessSpec,
    *,
    init_pid: int,
    cgroup: CgroupJoin | None,
    init_start_time: int | None = None,
    preserve_fds: int = 0,
    reopen_null: bool = False,
    executable: str = "",
    compile: Compile = compiled,
    wait_on: Operation | None = None,
) -> Plan:
    """One more process in a running container. `init_start_time` (clock ticks) guards against a recycled
    pid. `wait_on` as for containers. `executable` is run under the name args[0] instead of the program of
    that name."""
    before, after, listening = loading(spec, process, compile, waits=wait_on is not None)
    waiting = [wait_on] if wait_on else []
    user, kinds, apart = _kinds_of(spec)
    affinity = process.scheduling and (process.scheduling.initial_cpus or process.scheduling.final_cpus)
    return _plan(
        [
            Undumpable(),
            OpenHost(),
            *_labels(spec, process),
            *(_starting_cpus(process) if affinity else []),
            *_own_cgroup(cgroup, user),
            OwnFolder(),
            *([RaiseLimits(process.rlimits, process.oom_score_adj)] if user else []),
            JoinProcess(init_pid, kinds, init_start_time),
            OpenTerminal(process.user.uid, process.console_size),
            EnterWorkingDirectory(process.cwd, make=False),
            FindExecutable(executable or process.args[0], _search_path(process)),
            *_born(None if user else cgroup, (), ()),
            *_same_cgroup_root(spec),
            *(_cpus(process) if affinity else [RunAnywhere()]),
            NewSession(),
            *_scheduling(spec, process),
            ProbeExecutable(process.args, process.env),
            *_limits(process, preserve_fds, user, reopen_null),
            *([] if listening else [*waiting, CloseDescriptors(3 + preserve_fds, now=True)]),
            *before,
            *_credentials(process),
            *after,
            *(waiting if listening else []),
            Execute(process.args, process.env),
            Start(),
        ],
        cgroup,
        process=process,
        apart=apart,
    )


def _same_cgroup_root(spec: Spec) -> list[Operation]:
    """Into the container's cgroup namespace, if it has one: the host's is nobody's to join who has entered a
    user namespace (EPERM)."""
    own = any(namespace.type == "cgroup" for namespace in spec.linux.namespaces)
    return [JoinCgroupNamespace()] if own else []


def hook_plan(
    spec: Spec, hook: Hook, *, init_pid: int, cgroup: CgroupJoin | None, env: tuple[str, ...] = ()
) -> Plan:
    """A createContainer hook: a program of the host's, in the namespaces of a container whose process has not
    changed its root yet (config.md, "createContainer Hooks"), with all that we may do. `env`: the environment
    of who runs it, which a hook without one gets (crun's way): not the container's, or an image had the
    host's program load its libraries by LD_PRELOAD (CVE-2025-23266)."""
    user, kinds, apart = _kinds_of(spec)
    every = 2**64 - 1
    return _plan(
        [
            Undumpable(),
            OpenHost(),
            *_own_cgroup(cgroup, user),
            OwnFolder(),
            JoinProcess(init_pid, kinds),
            FindExecutable(hook.path, ""),
            *_born(None if user else cgroup, (), ()),
            *_same_cgroup_root(spec),
            NewSession(),
            ConnectStdio(),
            ResetSignals(),
            CloseDescriptors(3),
            SetCredentials(0, 0, (), CapabilityBits(every, every, every, 0, 0)),
            Execute(hook.args or (hook.path,), env if hook.env is None else hook.env),
            Start(),
        ],
        cgroup,
        apart=apart,
    )


def _kinds_of(spec: Spec) -> tuple[bool, tuple[str, ...], bool]:
    """Of a running container: whether it has a user namespace, what to join, and whether that takes a process
    of its own."""
    listed = {namespace.type for namespace in spec.linux.namespaces}
    kinds = ("mount", "uts", "ipc", "network", "pid", *sorted(listed & {"user", "time"}))
    return "user" in listed, kinds, not listed.isdisjoint({"user", "time"})


def _scheduling(spec: Spec, process: ProcessSpec) -> list[Operation]:
    if process.scheduling is None and spec.linux.personality is None and spec.linux.memory_policy is None:
        return []
    from runtime.scheduling import operations

    return operations(spec, process)


def _starting_cpus(process: ProcessSpec) -> list[Operation]:
    from runtime.scheduling import ChooseStartingCpus

    initial = process.scheduling.initial_cpus if process.scheduling else ()
    return [ChooseStartingCpus(initial)] if initial else []


def _cpus(process: ProcessSpec) -> list[Operation]:
    from runtime.scheduling import ChooseCpus

    return [ChooseCpus(process.scheduling.final_cpus if process.scheduling else ())]


def _labels(spec: Spec, process: ProcessSpec) -> list[Operation]:
    selinux = bool(process.selinux_label or spec.linux.mount_label)
    return [CheckLabels(_confined(process), selinux)] if selinux or _confined(process) else []


def _plan(
    operations: list[Operation],
    cgroup: CgroupJoin | None,
    spec: Spec | None = None,
    process: ProcessSpec | None = None,
    *,
    apart: bool = False,
) -> Plan:
    linux = spec.linux if spec else LinuxSpec()
    mappings = (mapping_text(linux.uid_mappings), mapping_text(linux.gid_mappings))
    late = cgroup.late if cgroup else ()
    unknown = process.capabilities.unknown if process and process.capabilities else ()
    notes = (*without_effect(spec),) if spec else ()
    notes += tuple(f"Could not give capability {name!r}: there is none of that name" for name in unknown)
    if process and process.capabilities:
        notes += tuple(impossible(process.capabilities))
    return Plan(tuple(operations), late, apart, mappings, _offsets_text(linux), notes)


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


def _entering(cgroup: CgroupJoin | None, user: bool) -> list[Operation]:
    return [Undumpable(), OpenHost(), *_own_cgroup(cgroup, user), OwnFolder()]


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
    # Only rslave and rprivate have cut the mount that the root lies in off by now.
    shared = spec.linux.rootfs_propagation in ("shared", "rshared", "slave", "private")
    if rootfs is not None:
        return MountOverlay(rootfs.layers, rootfs.upper, rootfs.work, shared)
    return BindRoot(_root_path(spec), shared)


def _early_root(spec: Spec, rootfs: Rootfs | None) -> Operation:
    """The root of a container in a user namespace, made while the host's folders are open to us."""
    if rootfs is None:
        return OpenRoot(_root_path(spec))
    linux = spec.linux
    if not (linux.uid_mappings and linux.gid_mappings):
        raise SpecError("linux.uidMappings", "an overlay root in a user namespace needs its mappings")
    texts = mapping_text(linux.uid_mappings), mapping_text(linux.gid_mappings)
    owner = host_id(linux.uid_mappings, 0), host_id(linux.gid_mappings, 0)
    return OpenMappedRoot(rootfs.layers, rootfs.upper, rootfs.work, texts, owner)


def _protect(path: str) -> Operation:
    return ProtectPath(path) if path.strip("/") else ProtectRoot()


def _root_path(spec: Spec) -> str:
    if spec.root is None or not spec.root.path.startswith("/"):
        raise SpecError("root.path", "must be an absolute path here")
    return spec.root.path


def _devices(spec: Spec, user: bool) -> list[Operation]:
    # A /dev that comes from outside as it is, is not ours to fill.
    if any(m.destination.rstrip("/") == "/dev" and {"bind", "rbind"} & set(m.options) for m in spec.mounts):
        return []
    nodes = {device.path: device for device in (*DEFAULT, *spec.linux.devices)}
    make = BindDevices if user else MakeDevices
    return [make(tuple(nodes.values())), LinkDevices()]


def _settings(
    spec: Spec, new: tuple[str, ...], joined: tuple[Namespace, ...], join: Mapping[str, str]
) -> list[Operation]:
    own = {*new, *(namespace.type for namespace in joined)}
    for name in spec.linux.sysctl:
        if namespace_of_sysctl(name) not in own:
            raise SpecError("linux.sysctl", f"{name} is not in a separate kernel namespace")
    settings: list[Operation] = [SetSysctl(name, value) for name, value in spec.linux.sysctl.items()]
    # In a pod the sandbox has named the namespace that its containers join.
    if (spec.hostname or spec.domainname) and "uts" not in join:
        if "uts" not in own:
            field = "hostname" if spec.hostname else "domainname"
            raise SpecError(field, "needs a UTS namespace in linux.namespaces")
        settings.insert(0, SetHostname(spec.hostname, spec.domainname))
    return settings


def _search_path(process: ProcessSpec) -> str:
    for entry in process.env:
        if entry.startswith("PATH="):
            return entry[5:]
    return DEFAULT_PATH


def _limits(process: ProcessSpec, preserve_fds: int, user: bool, reopen_null: bool) -> list[Operation]:
    return [
        ConnectStdio(reopen_null),
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
