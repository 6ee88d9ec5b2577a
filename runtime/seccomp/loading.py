"""When a container's filter is loaded, and by what: a part of the plans of containers and execs."""

from __future__ import annotations

from runtime.errors import SpecError
from runtime.kernel import Filter
from runtime.process import LoadSeccomp, SetNoNewPrivileges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.plan import Operation
    from runtime.spec import ProcessSpec, Spec

    Compile = Callable[[Mapping[str, Any]], tuple[bytes, int]]


def loading(
    spec: Spec, process: ProcessSpec, compile: Compile, *, waits: bool
) -> tuple[list[Operation], list[Operation], bool]:
    """Operations before and after the credentials (seccomp without no_new_privs needs CAP_SYS_ADMIN), and
    whether the filter has a listener."""
    after: list[Operation] = [SetNoNewPrivileges()] if process.no_new_privileges else []
    if spec.linux.seccomp is None:
        return [], after, False
    profile = spec.linux.seccomp
    program, flags = compile(profile)
    load: Operation = LoadSeccomp(Filter(program), flags)
    listening = False
    if _may_notify(profile):
        from runtime.seccomp.filter import listener
        from runtime.seccomp.listener import LoadListeningSeccomp

        listening = listener(profile) is not None
        if listening and not waits:
            raise SpecError("linux.seccomp", "SCMP_ACT_NOTIFY is not possible here: who takes the listener?")
        load = LoadListeningSeccomp(Filter(program), flags) if listening else load
    if process.no_new_privileges:
        return [], [*after, load], listening
    return [load], after, listening


def _may_notify(profile: Mapping[str, Any]) -> bool:
    """Whether it is worth to import what looks closely."""
    actions = (profile.get("defaultAction"), *(rule.get("action") for rule in profile.get("syscalls") or ()))
    asked = profile.get("listenerPath") or profile.get("listenerMetadata")
    return "SCMP_ACT_NOTIFY" in actions or bool(asked)
