"""What the switch does to frames: rules for nft in its bridge, made anew from the cables' states. Pure.

Loss is a random number for each frame, each way; so it needs no sch_netem, which the kernels of many VMs
lack. A port is known by its name; a delayed machine's port is its relay's (relay.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.layout import HOST
from kubelet_py.cli.lab.state import Cable, Lab, Machine

TABLE = "kubelet-py-lab"
ALL = "*"
FINENESS = 10_000  # of loss: a hundredth of a per cent
LONGEST_DELAY = 60_000.0
UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def port(machine: Machine) -> str:
    """The machine's port in the bridge."""
    return slow_port(machine.name) if machine.cable.delay else machine.name


def slow_port(name: str) -> str:
    return f"{name}-slow"


def ruleset(lab: Lab) -> str:
    """All of the table, to be put in place in one transaction."""
    ports = {machine.name: port(machine) for machine in lab.machines} | {HOST: HOST}
    forward, arriving, leaving = [], [], []
    for machine in lab.machines:
        own = ports[machine.name]
        for name in machine.cable.apart:
            if name == ALL:
                forward += [f'iifname "{own}" drop', f'oifname "{own}" drop']
                arriving.append(f'iifname "{own}" drop')
                leaving.append(f'oifname "{own}" drop')
            else:
                other = ports[name]
                forward += [f'iifname "{a}" oifname "{b}" drop' for a, b in ((own, other), (other, own))]
        if machine.cable.loss:
            lost = _lost(machine.cable.loss)
            forward += [f'iifname "{own}" {lost}', f'oifname "{own}" {lost}']
    chains = (("forward", forward), ("input", arriving), ("output", leaving))
    return "\n".join(_lines(chains)) + "\n"


def _lost(loss: float) -> str:
    """The end of a rule that drops so many of a hundred frames; nft compares with less than all only."""
    faces = round(loss * FINENESS / 100)
    return "drop" if faces >= FINENESS else f"numgen random mod {FINENESS} < {faces} drop"


def _lines(chains: Sequence[tuple[str, Sequence[str]]]) -> Iterator[str]:
    yield f"table bridge {TABLE}"  # so that there is one to delete
    yield f"delete table bridge {TABLE}"
    yield f"table bridge {TABLE} {{"
    for hook, rules in chains:
        if rules:
            yield f"  chain {hook} {{ type filter hook {hook} priority 0; policy accept;"
            yield from (f"    {rule}" for rule in rules)
            yield "  }"
    yield "}"


def describe(cable: Cable) -> str:
    """One word or two for `lab status`."""
    parts = []
    if ALL in cable.apart:
        parts.append("cut")
    elif cable.apart:
        parts.append(f"cut from {','.join(cable.apart)}")
    if cable.delay:
        parts.append(f"delay {cable.delay:g}ms")
    if cable.loss:
        parts.append(f"loss {cable.loss:g}%")
    return ", ".join(parts) or "ok"


def parse_delay(text: str) -> float:
    """Milliseconds of "50ms", "0.2s", "250us" or "0". Raises LabError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)|0", text)
    delay = float(found[1]) * UNITS[found[2]] if found and found[1] else 0.0
    if found is None or delay > LONGEST_DELAY:
        raise LabError(f"{text!r} is no delay (write it like 50ms or 1.5s, at most 60s; 0 ends it)")
    return delay


def parse_loss(text: str) -> float:
    """Per cent of "5%" or "0". Raises LabError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)%|0", text)
    loss = float(found[1]) if found and found[1] else 0.0
    if found is None or loss > 100:
        raise LabError(f"{text!r} is no loss (write it like 5% or 0.5%; 0 ends it)")
    return loss
