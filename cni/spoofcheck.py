"""A pod may send only from its own MAC address: `macspoofchk` of the bridge plugin.

    table bridge kubelet-py-cni
        set checked   interfaces that are looked at
        set known     interface . the MAC address of its pod
        chain prerouting: iifname @checked iifname . ether saddr != @known drop

Upstream's plugin makes two chains for each pod in a table that others use, too; here a pod is two elements
in a table of our own. Both speak through `nft`, one transaction at a time. An interface's name is a new
one's again some day, so what is known of it is replaced, not added to.
"""

from __future__ import annotations

import os

from cni import programs
from cni.errors import FirewallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

TABLE = "bridge kubelet-py-cni"
_BASE = f"""\
add table {TABLE}
add set {TABLE} checked {{ type ifname; }}
add set {TABLE} known {{ type ifname . ether_addr; }}
add chain {TABLE} prerouting {{ type filter hook prerouting priority -300; }}
flush chain {TABLE} prerouting
add rule {TABLE} prerouting iifname @checked iifname . ether saddr != @known drop
"""


def hold(interface: str, mac: str) -> None:
    """From now on only frames from `mac` pass the bridge's port `interface`. Raises FirewallError."""
    lines = [f"delete element {TABLE} known {{ {pair} }}" for pair in _pairs({interface})]
    lines += [f'add element {TABLE} known {{ "{interface}" . {mac} }}']
    lines += [f'add element {TABLE} checked {{ "{interface}" }}']
    _nft(_BASE + "\n".join(lines) + "\n")


def release(interfaces: Collection[str]) -> None:
    """Forget interfaces; those that are not known are no error."""
    while pairs := _pairs(interfaces):
        names = ", ".join(sorted({pair.split(" . ")[0] for pair in pairs}))
        lines = [f"delete element {TABLE} known {{ {', '.join(pairs)} }}"]
        try:
            _nft("\n".join([*lines, f"delete element {TABLE} checked {{ {names} }}", ""]))
        except FirewallError:
            if _pairs(interfaces) == pairs:
                raise  # otherwise somebody else was forgetting them


def interfaces() -> set[str]:
    """The interfaces that are looked at."""
    return {pair.split(" . ")[0].strip('"') for pair in _pairs(None)}


def held(interface: str, mac: str) -> bool:
    return f'"{interface}" . {mac}' in _pairs({interface})


def tear_down() -> None:
    """Remove the table if no interface is looked at, of this network or another."""
    if _list() is not None and not interfaces():
        _nft(f"delete table {TABLE}\n")


def _pairs(wanted: Collection[str] | None) -> list[str]:
    """What is known, as nft writes it, of the wanted interfaces (None: of all)."""
    _, _, elements = (_list() or "").partition("elements = {")
    pairs = [" ".join(text.split()) for text in elements.partition("}")[0].split(",")]
    named = [(pair.split(" . ")[0].strip('"'), pair) for pair in filter(None, pairs)]
    return [pair for name, pair in named if wanted is None or name in wanted]


def _list() -> str | None:
    """The set of what is known, None when there is none."""
    status, told, _ = _run(["list", "set", *TABLE.split(), "known"], "")
    return told if status == 0 else None


def _nft(script: str) -> None:
    status, _, complaint = _run(["-f", "-"], script)
    if status:
        raise FirewallError("Could not apply nft rules of macspoofchk", complaint.strip()[-500:])


def _run(words: list[str], script: str) -> tuple[int, str, str]:
    program = programs.find("nft", os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise FirewallError("Could not run nft: ENOENT (apt install nftables)")
    return programs.run([program, *words], script)
