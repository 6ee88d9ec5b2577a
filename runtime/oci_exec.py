"""`exec`: what its flags make of the container's process object."""

from __future__ import annotations

from runtime.capabilities import UnknownCapability, normalise
from runtime.errors import StateError
from runtime.oci_options import read_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from runtime.oci_flags import Arguments


def wanted(arguments: Arguments, base: Mapping[str, Any]) -> dict[str, Any]:
    """The process object: from a file, or the container's with the flags' changes. Raises StateError."""
    if arguments.process:
        return read_object(arguments.process)
    if not arguments.args:
        raise StateError("Could not execute: no command was given (kubelet-py-oci exec ID COMMAND)")
    changes: dict[str, Any] = {
        "args": arguments.args,
        "env": environment(base.get("env") or (), arguments.env),
        "user": _user(arguments, base.get("user") or {}),
        "terminal": arguments.tty,
    }
    if arguments.cap:
        changes["capabilities"] = _capabilities(base.get("capabilities") or {}, arguments.cap)
    if arguments.cwd:
        changes["cwd"] = arguments.cwd
    if arguments.no_new_privs is not None:
        changes["noNewPrivileges"] = arguments.no_new_privs
    if arguments.apparmor:
        changes["apparmorProfile"] = arguments.apparmor
    if arguments.process_label:
        changes["selinuxLabel"] = arguments.process_label
    return {**base, **changes}


def environment(base: Sequence[str], more: Sequence[str]) -> list[str]:
    """Both, the later of two values for one name alone: a C library would find the earlier."""
    found = {entry.partition("=")[0]: entry for entry in base}
    found.update({entry.partition("=")[0]: entry for entry in more})
    return list(found.values())


def below(flags: Sequence[str]) -> dict[str, str]:
    """--cgroup [CONTROLLER,…:]PATH, by controller; "" for all. "/" is the container's own, also where its
    first process has left that. Raises StateError."""
    found: dict[str, str] = {}
    for text in flags:
        controllers, colon, path = text.rpartition(":")
        named = controllers.split(",")
        if not path or (colon and "" in named):
            raise StateError(f"Could not use --cgroup {text}: [CONTROLLER,…:]PATH is needed")
        for controller in named:
            if controller in found:
                raise StateError(f"Could not use --cgroup {text}: there is another for the same controller")
            found[controller] = path
    return found


def _user(arguments: Arguments, base: Mapping[str, Any]) -> dict[str, Any]:
    user = dict(base)
    if arguments.user:
        uid, colon, gid = arguments.user.partition(":")
        if not _digits(uid) or (colon and not _digits(gid)):
            raise StateError(f"Could not use user {arguments.user!r}: numbers are needed (uid[:gid])")
        user["uid"] = int(uid)
        if colon:
            user["gid"] = int(gid)
    if arguments.additional_gids:
        user["additionalGids"] = [*(base.get("additionalGids") or ()), *arguments.additional_gids]
    return user


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _capabilities(base: Mapping[str, Sequence[str]], more: Sequence[str]) -> dict[str, list[str]]:
    sets = {name: list(values) for name, values in base.items()}
    for capability in more:
        try:
            known = normalise(capability)
        except UnknownCapability:
            raise StateError(f"Could not add capability {capability}: there is none of that name") from None
        for name in ("bounding", "effective", "permitted"):
            sets.setdefault(name, []).append(known)
    return sets
