"""Capability names, numbers and the sets a container gets.

The kernel has five sets per thread (capabilities(7)). A container that says nothing gets containerd 2's
default, nine capabilities; `inheritable` and `ambient` stay empty (CVE-2022-24769, CVE-2022-29162: a
non-empty inheritable set lets a file's inheritable bits raise privileges).
"""

from __future__ import annotations

import struct

from runtime.kernel import Step
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.spec import Capabilities

NAMES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
    "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
NUMBERS = {name: number for number, name in enumerate(NAMES)}

DEFAULT = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
    "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
)  # fmt: skip

_VERSION_3 = 0x20080522
PR_CAPBSET_READ, PR_CAPBSET_DROP = 23, 24
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4


class UnknownCapability(ValueError):
    """A name that is no capability; `args[0]` is the name as written."""


def normalise(name: str) -> str:
    """`net_raw`, `NET_RAW` and `CAP_NET_RAW` → `CAP_NET_RAW`. Raises UnknownCapability."""
    full = name.upper() if name.upper().startswith("CAP_") else "CAP_" + name.upper()
    if full not in NUMBERS:
        raise UnknownCapability(name)
    return full


def select(
    add: Iterable[str] = (), drop: Iterable[str] = (), default: Iterable[str] = DEFAULT
) -> tuple[str, ...]:
    """The set after `drop`, then `add`, as CRI has it: ALL first in each list; a name in both is dropped
    unless it was dropped by ALL only.

    Returns names in the kernel's order. Raises UnknownCapability.
    """
    added, dropped = [a.upper() for a in add], [d.upper() for d in drop]
    chosen = set(default)
    if "ALL" in added:
        chosen = set(NAMES)
    if "ALL" in dropped:
        chosen = set()
    chosen |= {normalise(name) for name in added if name != "ALL"}
    chosen -= {normalise(name) for name in dropped if name != "ALL"}
    return tuple(name for name in NAMES if name in chosen)


def mask(names: Iterable[str]) -> int:
    """The bits of a set."""
    return sum(1 << NUMBERS[name] for name in set(names))


class CapabilityBits(Record):
    """The five sets as bits."""

    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int

    def within(self, permitted: int, bounding: int) -> CapabilityBits:
        """What of it can be given by somebody who holds `permitted` and `bounding`: the kernel refuses the
        rest, and what a process does not have in the sets that effective and ambient build on."""
        held = permitted & bounding
        own, inherited = self.permitted & held, self.inheritable & held
        return CapabilityBits(
            self.bounding & bounding, self.effective & own, own, inherited, self.ambient & own & inherited
        )


def bits(sets: Capabilities | None) -> CapabilityBits:
    """Bits of the five sets; none at all for None."""
    if sets is None:
        return CapabilityBits(0, 0, 0, 0, 0)
    return CapabilityBits(
        mask(sets.bounding),
        mask(sets.effective),
        mask(sets.permitted),
        mask(sets.inheritable),
        mask(sets.ambient),
    )


def impossible(sets: Capabilities) -> list[str]:
    """What of the sets no kernel gives, in words: a configuration that asks for it is run without
    (config.md, "capabilities")."""
    permitted = set(sets.permitted)
    effective = set(sets.effective) - permitted
    ambient = set(sets.ambient) - (permitted & set(sets.inheritable))
    return [
        *(f"Could not make {name} effective: it is not permitted" for name in sorted(effective)),
        *(f"Could not make {name} ambient: it is not permitted and inheritable" for name in sorted(ambient)),
    ]


def withheld(sets: Capabilities | None, permitted: int, bounding: int) -> list[str]:
    """What of the sets somebody who holds `permitted` and `bounding` cannot give, in words (config.md wants a
    warning, too)."""
    wanted = bits(sets)
    missing = (wanted.permitted | wanted.bounding) & ~(permitted & bounding)
    names = ", ".join(name for name, number in NUMBERS.items() if missing >> number & 1)
    return [f"Could not give {names}: EPERM (we have none ourselves)"] if names else []


def bounding_steps(wanted: CapabilityBits, held: int) -> list[Step]:
    """Drop from the bounding set (`held` now) what is not wanted; needs CAP_SETPCAP, so it comes before
    capset."""
    dropped = held & ~wanted.bounding
    return [
        Step("prctl", (PR_CAPBSET_DROP, number, 0, 0, 0)) for number in range(64) if dropped >> number & 1
    ]


def set_steps(wanted: CapabilityBits) -> list[Step]:
    """capset, then the ambient set (which needs permitted and inheritable to be there)."""
    low = 0xFFFFFFFF
    header = struct.pack("=Ii", _VERSION_3, 0)
    data = struct.pack(
        "=6I",
        wanted.effective & low, wanted.permitted & low, wanted.inheritable & low,
        wanted.effective >> 32, wanted.permitted >> 32, wanted.inheritable >> 32,
    )  # fmt: skip
    steps = [
        Step("capset", (header, data)),
        Step("prctl", (PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)),
    ]
    steps += [
        Step("prctl", (PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0))
        for number in range(64)
        if wanted.ambient >> number & 1
    ]
    return steps
