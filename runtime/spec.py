"""OCI `config.json` → frozen values, checked at the border (runtime-spec 1.2, config.md and config-linux.md).

Everything behind this module may rely on the shapes below; everything in front of it is somebody's JSON.
Names are the specification's, in snake_case. A wrong field is named by its path, as
`process.rlimits[0].type`.
"""

from __future__ import annotations

import posixpath
from _collections_abc import Mapping  # `collections.abc` imports all of `collections`: 2 ms

from runtime.capabilities import NUMBERS
from runtime.errors import SpecError
from runtime.records import Record
from runtime.spec_reader import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.spec_extras import MemoryPolicy, Scheduling

NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
RLIMITS = (
    "CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING",
    "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
)  # fmt: skip
CAPABILITY_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
CREATING = ("prestart", "createRuntime", "createContainer")
HOOKS = (*CREATING, "startContainer", "poststart", "poststop")


class UserSpec(Record):
    """Numeric ids; `umask` None leaves 0022."""

    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()


class Rlimit(Record):
    """`resource` is the kernel's number, `name` as in RLIMIT_<name>; 2**64-1 is unlimited."""

    name: str
    resource: int
    soft: int
    hard: int


class Capabilities(Record):
    """The five sets, names with CAP_. `unknown`: names this runtime does not know, which are left out and
    reported (config.md: "MUST be logged as a warning")."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class ProcessSpec(Record):
    """config.json's process. `capabilities` None: no capability at all."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    terminal: bool = False
    console_size: tuple[int, int] | None = None
    user: UserSpec = UserSpec()
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: int | None = None
    apparmor_profile: str = ""
    selinux_label: str = ""
    scheduling: Scheduling | None = None


class RootSpec(Record):
    """`path` as written: relative to the bundle or absolute."""

    path: str
    readonly: bool = False


class IdMapping(Record):
    """`size` ids from `container` on are the host's from `host` on."""

    container: int
    host: int
    size: int


class MountSpec(Record):
    """One mount; `type` and `source` are "" when absent."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


class Namespace(Record):
    """A namespace to make (`path` "") or to join."""

    type: str
    path: str = ""


class Device(Record):
    """A device node: type c, b, u or p; mode without the type bits."""

    path: str
    type: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


class Hook(Record):
    """A program run on the host or in the container; `timeout` seconds or None; `env` None: as its caller."""

    path: str
    args: tuple[str, ...]
    env: tuple[str, ...] | None
    timeout: int | None


class LinuxSpec(Record):
    """config.json's linux. `resources` and `seccomp` stay in the specification's JSON shape."""

    namespaces: tuple[Namespace, ...] = ()
    devices: tuple[Device, ...] = ()
    cgroups_path: str = ""
    resources: Mapping[str, Any] = {}
    rootfs_propagation: str = ""
    seccomp: Mapping[str, Any] | None = None
    sysctl: Mapping[str, str] = {}
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str = ""
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    time_offsets: tuple[tuple[str, int, int], ...] = ()
    personality: int | None = None
    memory_policy: MemoryPolicy | None = None


class Spec(Record):
    """A whole config.json. `root` and `process` are None when it has none (a sandbox has no root)."""

    version: str
    root: RootSpec | None
    process: ProcessSpec | None
    mounts: tuple[MountSpec, ...]
    hostname: str
    domainname: str
    linux: LinuxSpec
    hooks: Mapping[str, tuple[Hook, ...]]
    annotations: Mapping[str, str]


def parse(config: Mapping[str, Any]) -> Spec:
    """config.json as parsed by json → Spec. Raises SpecError."""
    reader = Reader(config, "")
    root = reader.object("root")
    process = reader.object("process")
    linux = reader.object("linux")
    annotations = reader.string_mapping("annotations")
    if "" in annotations:
        raise SpecError("annotations", "a key must not be empty")
    return Spec(
        version=_version(reader),
        root=_root(root) if root else None,
        process=_process(process) if process else None,
        mounts=tuple(_mount(mount) for mount in reader.objects("mounts")),
        hostname=reader.text("hostname"),
        domainname=reader.text("domainname"),
        linux=_linux(linux) if linux else LinuxSpec(),
        hooks=parse_hooks(config),
        annotations=annotations,
    )


def parse_hooks(config: Mapping[str, Any]) -> Mapping[str, tuple[Hook, ...]]:
    """The hooks alone, by kind. Raises SpecError."""
    hooks = Reader(config, "").object("hooks")
    return {name: tuple(_hook(h) for h in hooks.objects(name)) for name in HOOKS} if hooks else {}


def parse_process(config: Mapping[str, Any]) -> ProcessSpec:
    """A process object alone, as `exec --process` takes it."""
    return _process(Reader(config, "process"))


def _version(reader: Reader) -> str:
    version = reader.text("ociVersion")
    if version.split(".")[0] != "1":
        raise SpecError("ociVersion", f"{version!r} is not a 1.x version")
    return version


def _root(reader: Reader) -> RootSpec:
    path = reader.text("path")
    if not path:
        raise SpecError(reader.at("path"), "is missing")
    return RootSpec(path, reader.flag("readonly"))


def _process(reader: Reader) -> ProcessSpec:
    args, cwd = reader.texts("args"), reader.text("cwd")
    if not args:
        raise SpecError(reader.at("args"), "is missing or empty")
    if not cwd.startswith("/"):
        raise SpecError(reader.at("cwd"), f"{cwd!r} is not an absolute path")
    size = reader.object("consoleSize")
    user = reader.object("user")
    capabilities = reader.object("capabilities")
    adjustment = reader.number("oomScoreAdj", 0, low=-1000, high=1000)
    return ProcessSpec(
        args=args,
        env=_environment(reader),
        cwd=cwd,
        terminal=reader.flag("terminal"),
        console_size=(size.number("height", high=65535), size.number("width", high=65535)) if size else None,
        user=_user(user) if user else UserSpec(),
        capabilities=_capabilities(capabilities) if capabilities else None,
        rlimits=_rlimits(reader),
        no_new_privileges=reader.flag("noNewPrivileges"),
        oom_score_adj=None if reader.value.get("oomScoreAdj") is None else adjustment,
        apparmor_profile=reader.text("apparmorProfile"),
        selinux_label=reader.text("selinuxLabel"),
        scheduling=_scheduling(reader),
    )


def _environment(reader: Reader) -> tuple[str, ...]:
    """The last of two values for one name alone, as runc and crun do: a C library would find the first."""
    env = reader.texts("env")
    found: dict[str, str] = {}
    for index, entry in enumerate(env):
        name, equals, _ = entry.partition("=")
        if not (name and equals):
            raise SpecError(f"{reader.at('env')}[{index}]", f"{entry!r} is not NAME=VALUE")
        found[name] = entry
    return env if len(found) == len(env) else tuple(found.values())


def _scheduling(reader: Reader) -> Scheduling | None:
    """What few configurations have is read by a module that few processes load."""
    if {"scheduler", "ioPriority", "execCPUAffinity"}.isdisjoint(reader.value):
        return None
    from runtime.spec_extras import scheduling

    return scheduling(reader)


def _user(reader: Reader) -> UserSpec:
    gids = reader.value.get("additionalGids") or ()
    if not all(isinstance(gid, int) and 0 <= gid < 2**32 for gid in gids):
        raise SpecError(reader.at("additionalGids"), "must be a list of group ids")
    umask = None if reader.value.get("umask") is None else reader.number("umask", high=0o777)
    high = 2**32 - 2
    return UserSpec(reader.number("uid", high=high), reader.number("gid", high=high), umask, tuple(gids))


def _capabilities(reader: Reader) -> Capabilities:
    sets = [reader.texts(name) for name in CAPABILITY_SETS]
    unknown = {capability for names in sets for capability in names if capability not in NUMBERS}
    if unknown:
        sets = [tuple(capability for capability in names if capability in NUMBERS) for names in sets]
    bounding, effective, permitted, inheritable, ambient = sets
    return Capabilities(bounding, effective, permitted, inheritable, ambient, tuple(sorted(unknown)))


def _rlimits(reader: Reader) -> tuple[Rlimit, ...]:
    found: dict[str, Rlimit] = {}
    for limit in reader.objects("rlimits"):
        name = limit.text("type").removeprefix("RLIMIT_")
        if name not in RLIMITS or not limit.text("type").startswith("RLIMIT_"):
            raise SpecError(limit.at("type"), f"{limit.text('type')!r} is no resource limit")
        if name in found:
            raise SpecError(limit.at("type"), f"{limit.text('type')!r} is given twice")
        soft, hard = limit.number("soft"), limit.number("hard")
        if soft > hard:
            raise SpecError(limit.at("soft"), "is above hard")
        found[name] = Rlimit(name, RLIMITS.index(name), soft, hard)
    return tuple(found.values())


def _mount(reader: Reader) -> MountSpec:
    destination = reader.text("destination")
    if not destination:
        raise SpecError(reader.at("destination"), "is missing")
    # Relative destinations are an error in 1.2, but callers of 1.0 exist and mean "from the root".
    if not destination.startswith("/"):
        destination = "/" + destination
    if posixpath.normpath(destination).strip("/") == "":
        raise SpecError(reader.at("destination"), "must not be the root itself")
    return MountSpec(destination, reader.text("type"), reader.text("source"), reader.texts("options"),
                     _mappings(reader, "uidMappings"), _mappings(reader, "gidMappings"))  # fmt: skip


def _linux(reader: Reader) -> LinuxSpec:
    seccomp = reader.object("seccomp")
    propagation = reader.text("rootfsPropagation")
    if propagation:
        reader.one_of(
            "rootfsPropagation", propagation.removeprefix("r"), ("shared", "slave", "private", "unbindable")
        )
    return LinuxSpec(
        namespaces=_namespaces(reader),
        devices=tuple(_device(device) for device in reader.objects("devices")),
        cgroups_path=reader.text("cgroupsPath"),
        resources=reader.mapping("resources"),
        rootfs_propagation=propagation,
        seccomp=seccomp.value if seccomp else None,
        sysctl=reader.string_mapping("sysctl"),
        masked_paths=_places(reader, "maskedPaths"),
        readonly_paths=_places(reader, "readonlyPaths"),
        mount_label=reader.text("mountLabel"),
        uid_mappings=_mappings(reader, "uidMappings"),
        gid_mappings=_mappings(reader, "gidMappings"),
        time_offsets=_time_offsets(reader),
        **_extras(reader),
    )


def _places(reader: Reader, key: str) -> tuple[str, ...]:
    """Without final slashes, by which a file could not be found, and would go unprotected."""
    return tuple(path.rstrip("/") or "/" for path in reader.paths(key))


def _extras(reader: Reader) -> dict[str, Any]:
    if {"personality", "memoryPolicy", "intelRdt", "netDevices"}.isdisjoint(reader.value):
        return {}
    from runtime.spec_extras import linux_extras

    return linux_extras(reader)


def _mappings(reader: Reader, key: str) -> tuple[IdMapping, ...]:
    high = 2**32 - 1
    return tuple(
        IdMapping(entry.number("containerID", high=high), entry.number("hostID", high=high),
                  entry.number("size", low=1, high=high))
        for entry in reader.objects(key)
    )  # fmt: skip


def _time_offsets(reader: Reader) -> tuple[tuple[str, int, int], ...]:
    offsets = reader.object("timeOffsets")
    found = []
    for clock in offsets.value if offsets else ():
        entry = offsets.object(offsets.one_of(clock, clock, ("monotonic", "boottime"))) if offsets else None
        if entry is not None:
            seconds = entry.number("secs", low=-(2**62), high=2**62)
            found.append((clock, seconds, entry.number("nanosecs", high=999_999_999)))
    return tuple(found)


def _namespaces(reader: Reader) -> tuple[Namespace, ...]:
    found: dict[str, Namespace] = {}
    for entry in reader.objects("namespaces"):
        kind, path = entry.one_of("type", entry.text("type"), NAMESPACES), entry.text("path")
        if kind in found:
            raise SpecError(entry.at("type"), f"{kind!r} is given twice")
        if path and not path.startswith("/"):
            raise SpecError(entry.at("path"), f"{path!r} is not an absolute path")
        found[kind] = Namespace(kind, path)
    return tuple(found.values())


def _device(reader: Reader) -> Device:
    path = reader.text("path")
    if not path.startswith("/"):
        raise SpecError(reader.at("path"), f"{path!r} is not an absolute path")
    return Device(
        path,
        reader.one_of("type", reader.text("type"), ("c", "b", "u", "p")),
        reader.number("major", high=2**32 - 1),
        reader.number("minor", high=2**32 - 1),
        reader.number("fileMode", 0o666, high=0o7777777) & 0o7777,
        reader.number("uid", high=2**32 - 1),
        reader.number("gid", high=2**32 - 1),
    )


def _hook(reader: Reader) -> Hook:
    path = reader.text("path")
    if not path.startswith("/"):
        raise SpecError(reader.at("path"), f"{path!r} is not an absolute path")
    timeout = None if reader.value.get("timeout") is None else reader.number("timeout", low=1)
    env = None if reader.value.get("env") is None else reader.texts("env")
    return Hook(path, reader.texts("args"), env, timeout)
