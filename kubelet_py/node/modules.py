"""Kernel modules a node needs: Debian's kernel has overlay and br_netfilter as modules, and a machine that
has just booted has not loaded them yet.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

FILESYSTEMS = Path("/proc/filesystems")


def load(module: str) -> str | None:
    """Load a module; None, or what modprobe complained about. One that is loaded already is fine."""
    return _modprobe(module)


def loadable(module: str) -> bool:
    """Whether `load` would find it, or it is there already. Changes nothing."""
    return _modprobe("--dry-run", module) is None


def has_filesystem(name: str, filesystems: Path = FILESYSTEMS) -> bool:
    """Whether the kernel knows a type of file system now."""
    return name in filesystems.read_text().split()


def _modprobe(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["modprobe", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"modprobe: {error.strerror}"
    if done.returncode == 0:
        return None
    return done.stderr.strip() or f"modprobe: exit code {done.returncode}"
