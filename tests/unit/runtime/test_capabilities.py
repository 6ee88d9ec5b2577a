"""Selection of capabilities as CRI has it, and the child's steps for the five sets."""

from __future__ import annotations

import struct

import pytest

from runtime.capabilities import (
    DEFAULT,
    NAMES,
    CapabilityBits,
    UnknownCapability,
    bits,
    bounding_steps,
    impossible,
    mask,
    select,
    set_steps,
)
from runtime.spec import Capabilities


def test_the_default_is_containerds_nine() -> None:
    """S01: no MKNOD, NET_RAW, SETFCAP, SYS_CHROOT, AUDIT_WRITE."""
    short = {name.removeprefix("CAP_") for name in select()}
    assert short == {
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "KILL",
    }


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ((), ("ALL",), ()),
        (("NET_RAW",), ("ALL",), ("CAP_NET_RAW",)),
        (("cap_net_raw",), ("all",), ("CAP_NET_RAW",)),
        (("ALL",), (), NAMES),
        (("ALL",), ("SYS_ADMIN",), tuple(n for n in NAMES if n != "CAP_SYS_ADMIN")),
        (("NET_RAW",), ("NET_RAW",), DEFAULT),
        ((), ("KILL",), tuple(n for n in DEFAULT if n != "CAP_KILL")),
    ],
)
def test_add_and_drop(add: tuple[str, ...], drop: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """S02: names with and without CAP_, ALL, and drop over add."""
    assert set(select(add, drop)) == set(expected)


def test_an_unknown_name_is_rejected() -> None:
    with pytest.raises(UnknownCapability):
        select(("FLY",))


def test_the_bounding_set_loses_everything_else() -> None:
    steps = bounding_steps(CapabilityBits(0b101, 0, 0, 0, 0), 0b11111)
    assert [step.arguments[1] for step in steps] == [1, 3, 4]


def test_capset_carries_both_halves() -> None:
    wanted = mask(["CAP_CHOWN", "CAP_BPF"])
    capset, clear, *raised = set_steps(CapabilityBits(wanted, wanted, wanted, 0, 1))
    assert isinstance(capset.arguments[1], bytes)
    assert struct.unpack("=6I", capset.arguments[1]) == (1, 1, 0, 1 << 7, 1 << 7, 0)
    assert clear.arguments[:2] == (47, 4)
    assert [step.arguments[:3] for step in raised] == [(47, 2, 0)]


def test_what_we_do_not_hold_cannot_be_given() -> None:
    given = CapabilityBits(7, 7, 7, 0, 0).within(permitted=0b011, bounding=0b110)
    assert given == CapabilityBits(0b110, 0b010, 0b010, 0, 0)


def test_what_no_kernel_gives_is_left_out_and_named() -> None:
    """Ambient needs permitted and inheritable, effective needs permitted (capabilities(7))."""
    sets = Capabilities(
        bounding=("CAP_CHOWN", "CAP_KILL"),
        effective=("CAP_CHOWN", "CAP_KILL"),
        permitted=("CAP_CHOWN",),
        inheritable=("CAP_CHOWN", "CAP_KILL"),
        ambient=("CAP_CHOWN", "CAP_KILL"),
    )
    everything = 2**41 - 1
    given = bits(sets).within(everything, everything)
    chown, kill = mask(("CAP_CHOWN",)), mask(("CAP_KILL",))
    assert (given.effective, given.ambient, given.inheritable) == (chown, chown, chown | kill)
    assert impossible(sets) == [
        "Could not make CAP_KILL effective: it is not permitted",
        "Could not make CAP_KILL ambient: it is not permitted and inheritable",
    ]
    assert impossible(Capabilities(permitted=("CAP_CHOWN",), effective=("CAP_CHOWN",))) == []
