"""The few iptables calls the plugins need, on whichever variant the host's `iptables` is.

Rules go in by `iptables-restore --noflush`: one process, one transaction, and a declared chain is
emptied without touching any other. Fact relied on: with --noflush a line ":CHAIN - [0:0]" creates the
chain or flushes it; the built-in chains are left alone when they are not declared.
"""

from __future__ import annotations

import os

from cni import programs
from cni.errors import FirewallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Iptables:
    """One address family. Each call runs one process (3–16 ms); none holds state between calls."""

    def __init__(self, version: int = 4) -> None:
        self._name = "iptables" if version == 4 else "ip6tables"

    def has_rule(self, table: str, chain: str, rule: Sequence[str]) -> bool:
        """True when the rule is in the chain. A missing chain is a plain False."""
        return self._run("", ["-w", "5", "-t", table, "-C", chain, *rule], must=False) is not None

    def rules(self, table: str, chain: str | None = None) -> list[list[str]]:
        """`-S` of one chain or of the whole table, as lists of words; empty when there is no such chain."""
        command = ["-w", "5", "-t", table, "-S", *([chain] if chain else [])]
        import shlex

        text = self._run("", command, must=False)
        return [shlex.split(line) for line in (text or "").splitlines()]

    def restore(self, text: str) -> None:
        """Apply a restore script in one transaction. Raises FirewallError with what iptables said."""
        self._run(text, ["--noflush", "-w", "5"], must=True, suffix="-restore")

    def _run(self, text: str, words: Sequence[str], *, must: bool, suffix: str = "") -> str | None:
        program = programs.find(self._name + suffix, _search_path())
        if program is None:
            raise FirewallError(f"Could not run {self._name}{suffix}: ENOENT (apt install iptables)")
        try:
            status, told, complaint = programs.run([program, *words], text)
        except OSError as error:
            raise FirewallError(f"Could not run {program}", str(error)) from error
        if status == 0:
            return told
        # 1 is "no such rule, chain or file"; 2 a usage error; 4 the lock or the kernel said no.
        if must or status not in (1, 2):
            raise FirewallError(f"Could not apply {self._name} rules", complaint.strip() or told.strip())
        return None


def available(version: int) -> bool:
    """Whether the host can hold rules of this family at all; where it cannot, there are none to remove."""
    return programs.find("iptables" if version == 4 else "ip6tables", _search_path()) is not None


def line(words: Sequence[str]) -> str:
    """One rule as iptables-restore reads it: it knows double quotes and backslashes only."""
    return " ".join(_quote(word) for word in words)


def _quote(word: str) -> str:
    if word and not any(c in " \"\\'" for c in word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _search_path() -> str:
    # Daemons are often started without sbin on PATH, and iptables lives there.
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
