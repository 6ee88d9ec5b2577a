"""Rules into the kernel: one `iptables-restore --noflush` per sync, holding only what changed.

Facts relied on: with --noflush a declared user chain (":KUBE-SVC-x - [0:0]") is created or emptied and all
others stay; each table is committed as one transaction, so there is never a moment without rules; and
"-X" works in the same transaction once nothing refers to the chain. The `iptables` found on PATH decides
between the nft and the legacy variant: its -save and -restore must be of the same kind, since rules of the
two kinds do not see each other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from proxy.errors import IptablesError
from proxy.rules import FIXED_CHAINS, HASHED_PREFIXES, JUMPS, TABLES, Jump, Ruleset

_MISSING = "Could not find {} on PATH (install it: apt-get install iptables)"


@dataclass(frozen=True, slots=True)
class SavedTable:
    """One table as iptables-save shows it; rules with their leading "-A <chain>"."""

    policies: Mapping[str, str] = field(default_factory=dict)
    chains: frozenset[str] = frozenset()
    rules: tuple[str, ...] = ()

    def has(self, jump: Jump) -> bool:
        return bool(self.jumps(jump.chain, jump.target))

    def jumps(self, chain: str, target: str) -> list[str]:
        """Rules of a chain that lead to `target`; what they match is written differently by the variants."""
        return [r for r in self.rules if r.startswith(f"-A {chain} ") and r.endswith(f" -j {target}")]


Saved = Mapping[str, SavedTable]


class Iptables:
    """The host's iptables, or ip6tables. Raises IptablesError at once when it is missing or mixed."""

    def __init__(self, path: str | None = None, version: int = 4) -> None:
        self.version = version
        self._path = (path if path is not None else os.environ.get("PATH", "")) + ":/usr/sbin:/sbin"
        self._main, self._save, self._restore = (
            self._find(f"{'iptables' if version == 4 else 'ip6tables'}{suffix}")
            for suffix in ("", "-save", "-restore")
        )
        self.variant = self._variant(self._main)
        for program in (self._save, self._restore):
            if self._variant(program) != self.variant:
                raise IptablesError(
                    f"Could not use {program}: it is not of the {self.variant} variant as {self._main} is "
                    "(update-alternatives --config iptables)"
                )

    def _find(self, name: str) -> str:
        found = shutil.which(name, path=self._path)
        if found is None:
            raise IptablesError(_MISSING.format(name))
        return found

    def _variant(self, program: str) -> str:
        text = self._run([program, "--version"])
        return "nft" if "nf_tables" in text else "legacy"

    def save(self) -> Saved:
        """Every table there is; the kernel makes none for being asked."""
        return parse_save(self._run([self._save]))

    def restore(self, script: str) -> None:
        self._run([self._restore, "--noflush", "-w", "5"], script)

    def has_chains(self, chain: str) -> bool:
        """True when `chain` stands in each of our tables."""
        for table in TABLES:
            done = self._call([self._main, "-w", "5", "-t", table, "-S", chain], "")
            if done.returncode != 0:
                return False
        return True

    def drop_empty_tables(self) -> None:
        """nft variant: remove those of our tables that hold nothing any more, as before the first rule.

        The legacy variant's tables belong to kernel modules and cannot be removed.
        """
        if self.variant != "nft":
            return
        nft = shutil.which("nft", path=self._path)
        saved = self.save()
        for name in TABLES:
            table = saved.get(name)
            if table is None or table.chains or table.rules or set(table.policies.values()) - {"ACCEPT"}:
                continue
            self._run([self._main, "-w", "5", "-t", name, "-X"])
            if nft is not None:
                self._run([nft, "delete", "table", "ip" if self.version == 4 else "ip6", name])

    def _run(self, command: list[str], text: str = "") -> str:
        done = self._call(command, text)
        if done.returncode != 0:
            raise IptablesError(f"Could not run {os.path.basename(command[0])}: {done.stderr.strip()[:500]}")
        return done.stdout

    def _call(self, command: list[str], text: str) -> subprocess.CompletedProcess[str]:
        # A file in memory, whole before the program starts: a pipe takes a page at a time, and 1,000 Services
        # are some 300 turns between the two processes.
        with open(os.memfd_create("rules"), "w+") as script:
            script.write(text)
            script.seek(0)
            return subprocess.run(command, stdin=script, capture_output=True, text=True, check=False)


def parse_save(text: str) -> Saved:
    """PURE: the output of iptables-save."""
    found: dict[str, SavedTable] = {}
    policies: dict[str, str] = {}
    chains: set[str] = set()
    rules: list[str] = []
    name = ""
    for line in text.splitlines():
        if line.startswith("*"):
            name, policies, chains, rules = line[1:].strip(), {}, set(), []
        elif line.startswith(":"):
            chain, policy = line[1:].split()[:2]
            if policy == "-":
                chains.add(chain)
            else:
                policies[chain] = policy
        elif line.startswith("-A"):
            rules.append(line.rstrip())
        elif line == "COMMIT":
            found[name] = SavedTable(policies, frozenset(chains), tuple(rules))
    return found


def ours(chain: str) -> bool:
    return chain in FIXED_CHAINS or chain.startswith(HASHED_PREFIXES)


def full_script(wanted: Ruleset, saved: Saved) -> str:
    """PURE: everything anew, missing jumps first in their chains, our chains that nobody wants removed."""
    script: list[str] = []
    for name in TABLES:
        table = saved.get(name, SavedTable())
        stale = {c for c in table.chains if ours(c)} - set(wanted[name])
        jumps = [f"-I {j.chain} {j.rule}" for j in JUMPS if j.table == name and not table.has(j)]
        script += _table(name, wanted[name], stale, jumps)
    return "\n".join([*script, ""])


def partial_script(previous: Ruleset, wanted: Ruleset) -> str:
    """PURE: the chains that differ between two rule sets; empty when none does."""
    script: list[str] = []
    for name in TABLES:
        before, after = previous[name], wanted[name]
        changed = {chain: rules for chain, rules in after.items() if before.get(chain) != rules}
        stale = set(before) - set(after)
        if changed or stale:
            script += _table(name, changed, stale, ())
    return "\n".join([*script, ""]) if script else ""


def cleanup_script(saved: Saved) -> str:
    """PURE: all our chains and the jumps to them away, nothing else; empty when there is nothing of ours."""
    script: list[str] = []
    for name in TABLES:
        table = saved.get(name, SavedTable())
        chains = {c for c in table.chains if ours(c)}
        jumps = [
            "-D " + rule.removeprefix("-A ")
            for chain, target in dict.fromkeys((j.chain, j.target) for j in JUMPS if j.table == name)
            for rule in table.jumps(chain, target)
        ]
        if chains or jumps:
            script += _table(name, {}, chains, jumps)
    return "\n".join([*script, ""]) if script else ""


def _table(
    name: str, chains: Mapping[str, tuple[str, ...]], stale: Iterable[str], jumps: Iterable[str]
) -> list[str]:
    gone = sorted(stale)
    return [
        f"*{name}",
        *(f":{chain} - [0:0]" for chain in [*chains, *gone]),
        *(f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules),
        *jumps,
        *(f"-X {chain}" for chain in gone),
        "COMMIT",
    ]
