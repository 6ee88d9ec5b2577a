"""config.json's mounts → operations. Pure, as all planning.

Each kind of mount is made in its own way: binds from an opened tree, procfs and cgroup2 by the child that is
inside the namespaces they show, everything else from a new superblock.
"""

from __future__ import annotations

import posixpath

from runtime.cgroups.join import CgroupJoin
from runtime.errors import SpecError
from runtime.mounting import ATTR_RDONLY, KNOWN_OPTIONS, SUPERBLOCK, MountOptions, changed, parse_options
from runtime.mounts import Mount, MountCgroup, Remount
from runtime.plan import Operation
from runtime.procfs import MountProc
from runtime.spec import IdMapping, LinuxSpec, MountSpec, Spec

FOR_BINDS = KNOWN_OPTIONS - {*SUPERBLOCK, "tmpcopyup"}


def mapping_text(mappings: tuple[IdMapping, ...]) -> str:
    """As uid_map and gid_map want them."""
    return "".join(f"{m.container} {m.host} {m.size}\n" for m in mappings)


def _mount_options(spec: Spec) -> list[MountOptions]:
    return [parse_options(mount.options) for mount in spec.mounts]


def mounts(spec: Spec, *, cgroups: bool, tree: tuple[str, ...] = ()) -> list[Operation]:
    """Mounts in the order of config.json; `cgroups`: those of cgroup trees, too, whose options are `tree` and
    stay that. Raises SpecError."""
    made = [
        _mount(spec, mount, options, f"mounts[{index}]", cgroups, tree)
        for index, (mount, options) in enumerate(zip(spec.mounts, _mount_options(spec), strict=True))
    ]
    return [operation for operation in made if operation is not None]


def _mount(
    spec: Spec, mount: MountSpec, options: MountOptions, where: str, cgroups: bool, tree: tuple[str, ...]
) -> Operation | None:
    if options.remount:
        return Remount(mount.destination, options)
    if options.bind or mount.type == "bind":
        return _bind(spec, mount, options, where)
    if mount.type in ("cgroup", "cgroup2"):
        return _cgroup(mount, options, tree) if cgroups else None
    if not mount.type:
        raise SpecError(f"{where}.type", "is missing")
    if options.idmap or mount.uid_mappings or mount.gid_mappings:
        raise SpecError(where, f"idmapped {mount.type} is not supported")
    if mount.type == "proc":
        return MountProc(mount.destination, options)
    if _protected_late(mount, options):
        options = changed(options, set=options.set & ~ATTR_RDONLY, tree_set=options.tree_set & ~ATTR_RDONLY)
    label = spec.linux.mount_label
    if mount.type == "mqueue":
        return Mount(mount.destination, mount.type, mount.source, options, label=label)
    if label and mount.type != "sysfs":
        options = changed(options, data=(*options.data, f"context={label}"))
    return Mount(mount.destination, mount.type, mount.source, options)


def protection(spec: Spec) -> list[Operation]:
    """What makes those file systems read-only that are filled first: a tmpfs, where the places of mounts
    below it are made, and /dev, which gets its devices, its console and what hooks bring. As runc and crun
    do."""
    found: dict[str, Operation] = {}
    for mount, options in zip(spec.mounts, _mount_options(spec), strict=True):
        if found:
            found.pop(posixpath.normpath(mount.destination), None)  # it is covered
        if _protected_late(mount, options):
            # Also for rro: nothing is below a new file system when it is mounted.
            change = Remount(mount.destination, MountOptions(set=ATTR_RDONLY))
            found[posixpath.normpath(mount.destination)] = change
    return list(found.values())


def _protected_late(mount: MountSpec, options: MountOptions) -> bool:
    if not (options.set | options.tree_set) & ATTR_RDONLY:
        return False
    made = not (options.remount or options.bind or mount.type == "bind")
    return made and (mount.type == "tmpfs" or posixpath.normpath(mount.destination) == "/dev")


def _bind(spec: Spec, mount: MountSpec, options: MountOptions, where: str) -> Mount:
    if not mount.source:
        raise SpecError(f"{where}.source", "is missing")
    mappings = _mount_mappings(spec, mount, options, where)
    bound = changed(
        options, bind=True, data=(), copy_up=False, idmap=options.idmap or ("idmap" if mappings[0] else "")
    )
    return Mount(mount.destination, "bind", mount.source, bound, mappings)


def without_effect(spec: Spec) -> list[str]:
    """What a bind mount cannot have: options of a file system that is mounted already. mount(2) takes them
    and does nothing, and so callers give them; the warning says so."""
    found = []
    for mount in spec.mounts:
        bound = mount.type == "bind" or "bind" in mount.options or "rbind" in mount.options
        if bound and "remount" not in mount.options and not FOR_BINDS.issuperset(mount.options):
            named = ", ".join(
                option
                for option in mount.options
                if option not in FOR_BINDS and not option.startswith(("idmap=", "ridmap="))
            )
            if not named:
                continue
            found.append(f"Could not use {named} for {mount.destination}: it is a bind mount")
    return found


def early(options: MountOptions, user: bool) -> bool:
    """Whether a mount's source has to be opened before the namespaces are made."""
    return bool(options.idmap) or (user and options.bind)


def _mount_mappings(spec: Spec, mount: MountSpec, options: MountOptions, where: str) -> tuple[str, str]:
    """The mount's own mappings, the option's, or the container's for the option alone."""
    if bool(mount.uid_mappings) != bool(mount.gid_mappings):
        raise SpecError(where, "needs both uidMappings and gidMappings, or none")
    if mount.uid_mappings:
        return mapping_text(mount.uid_mappings), mapping_text(mount.gid_mappings)
    if not options.idmap:
        return "", ""
    if options.idmap_by:
        return _mappings_of_option(spec.linux, options.idmap_by, where)
    if not (spec.linux.uid_mappings and spec.linux.gid_mappings):
        raise SpecError(f"{where}.options", f"{options.idmap} needs mappings of the mount or the container")
    return mapping_text(spec.linux.uid_mappings), mapping_text(spec.linux.gid_mappings)


def _mappings_of_option(linux: LinuxSpec, text: str, where: str) -> tuple[str, str]:
    """crun's `idmap=uids=0-1000-10#10-2000-5;gids=0-1000-10` (crun(1), "Mount extensions"): ids of the file
    system from the first number on are seen as those from the second on, as many as the third says. Raises
    SpecError."""
    found = {}
    for part in text.split(";"):
        name, _, ranges = part.partition("=")
        mappings = {"uids": linux.uid_mappings, "gids": linux.gid_mappings}.get(name)
        if mappings is None or name in found:
            raise SpecError(f"{where}.options", f"idmap={text} is not uids=FROM-TO-COUNT;gids=FROM-TO-COUNT")
        found[name] = "".join(_range(one, mappings, where) for one in ranges.split("#"))
    if len(found) != 2:
        raise SpecError(f"{where}.options", f"idmap={text} needs both uids and gids")
    return found["uids"], found["gids"]


def _range(text: str, mappings: tuple[IdMapping, ...], where: str) -> str:
    """One line of uid_map. With @ the second number is the container's; the mapping that has the first one
    says by how much the host's differ (crun again)."""
    numbers = text.removeprefix("@").split("-")
    if len(numbers) != 3 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise SpecError(f"{where}.options", f"{text} is not three numbers with - between them")
    inside, outside, size = map(int, numbers)
    if text.startswith("@"):
        held = [m for m in mappings if m.container <= inside < m.container + m.size]
        outside += held[0].host - held[0].container if held else 0
    return f"{inside} {outside} {size}\n"


def _cgroup(mount: MountSpec, options: MountOptions, tree: tuple[str, ...]) -> MountCgroup:
    data = dict.fromkeys((*tree, *options.data))  # each once, in order
    return MountCgroup(mount.destination, options, ",".join(data))


def cgroup_mounts(spec: Spec, tree: tuple[str, ...] = ()) -> list[Operation]:
    """The cgroup2 trees that the container's child mounts for itself. `tree` as for `mounts`."""
    return [
        _cgroup(mount, options, tree)
        for mount, options in zip(spec.mounts, _mount_options(spec), strict=True)
        if mount.type in ("cgroup", "cgroup2") and not options.bind
    ]


def cgroup_binds(spec: Spec, cgroup: CgroupJoin | None) -> list[Operation]:
    """The container's own cgroup in place of a tree that a user namespace may not mount, as runc does."""
    if cgroup is None or not cgroup.unified:
        return []
    return [
        Mount(mount.destination, "bind", cgroup.unified, MountOptions(True, set=options.set))
        for mount, options in zip(spec.mounts, _mount_options(spec), strict=True)
        if mount.type in ("cgroup", "cgroup2") and not options.bind
    ]
