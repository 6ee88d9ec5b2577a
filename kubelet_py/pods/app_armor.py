"""AppArmor profiles of containers: the one that a pod asks for, and a default one that this node loads.

As containerd does, a container that names no profile gets the default one unless it is privileged, and a
Localhost profile must be loaded already. Facts relied on: the module's parameter `enabled` is Y where the
kernel confines anybody; securityfs lists the loaded profiles, one "name (mode)" a line; apparmor_parser reads
a profile from its stdin and loads it. Where securityfs or the parser is missing there is no default profile.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubelet_py.errors import CreateContainerError

log = logging.getLogger(__name__)

ENABLED = Path("/sys/module/apparmor/parameters/enabled")
SECURITYFS = Path("/sys/kernel/security")
LOADED = SECURITYFS / "apparmor/profiles"
DEFAULT = "kubelet-py-default"
PARSER_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
PARSER_SECONDS = 120.0
# Everything but what reaches the host: mounts, the kernel's settings and devices below /proc and /sys, and
# processes of others. The kernel compares resolved paths, so /proc/self is the process's own number here.
PROFILE = f"""\
profile {DEFAULT} flags=(attach_disconnected, mediate_deleted) {{
  capability,
  file,
  network,
  umount,

  signal (receive) peer=unconfined,
  signal (receive) peer={{runc,crun}},
  signal (send, receive) peer={DEFAULT},
  ptrace (read, readby, trace, tracedby) peer={DEFAULT},

  deny mount,
  deny /proc/* w,
  deny /proc/[^0-9s]*/** w,
  deny /proc/s[^y]*/** w,
  deny /proc/sysvipc/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/[^s]** w,
  deny /proc/sys/kernel/s[^h]** w,
  deny /proc/sys/kernel/sh[^m]** w,
  deny /proc/{{kcore,kmem,mem,sysrq-trigger}} rwklx,
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"""


def enabled(file: Path = ENABLED) -> bool:
    """Whether the host's kernel enforces AppArmor profiles."""
    return file.exists() and file.read_text().strip() == "Y"


def problem(context: Mapping[str, Any], host_has_it: bool) -> str:
    """Why this node refuses a pod with such a container, or ""."""
    profile = context.get("appArmorProfile") or {}
    if profile.get("type") in (None, "Unconfined"):
        return ""
    if not host_has_it:
        return "Cannot enforce AppArmor: AppArmor is not enabled on the host"
    if profile["type"] == "Localhost" and not (profile.get("localhostProfile") or "").strip():
        return 'Cannot enforce AppArmor: invalid empty AppArmor profile name: ""'
    return ""


class Profiles:
    """The kernel's profiles. The default one is loaded anew by each agent, as its text may be another."""

    def __init__(self, *, enabled: bool, loaded: Path = LOADED, search: str = PARSER_PATH) -> None:
        self._enabled = enabled
        self._loaded = loaded
        self._parser = shutil.which("apparmor_parser", path=search)
        self._is_ours = False
        self._lock = threading.Lock()

    def provide(self, context: Mapping[str, Any]) -> str:
        """process.apparmorProfile, loaded; "" for none. Raises CreateContainerError (containerd words)."""
        profile = context.get("appArmorProfile") or {}
        kind = profile.get("type")
        if kind == "Unconfined":
            return ""
        if not self._enabled:
            if kind is not None:
                # Pods are refused before (`problem`); a container that joined later is not run unconfined.
                raise _failure("apparmor is not supported")
            return ""
        if kind == "Localhost":
            return self._localhost(str(profile["localhostProfile"]))
        if context.get("privileged"):
            return ""
        if self.lacking and kind is None:
            return ""
        if self.lacking or self._parser is None:
            raise _failure("apparmor is not supported")
        self._provide_default(self._parser)
        return DEFAULT

    @property
    def lacking(self) -> str:
        """What is missing for a default profile, or ""."""
        if not self._loaded.exists():
            return str(SECURITYFS)
        return "" if self._parser else "apparmor_parser"

    def _localhost(self, name: str) -> str:
        # Without securityfs nobody can say; the kernel refuses a name that it does not know.
        if self._loaded.exists() and name not in self._names():
            raise _failure(f"apparmor profile not found {name}")
        return name

    def _provide_default(self, parser: str) -> None:
        with self._lock:
            if self._is_ours and DEFAULT in self._names():
                return
            try:
                _run(parser, "--replace", "--skip-cache", text=PROFILE)
            except OSError as error:
                raise _failure(f"failed to load apparmor profile {DEFAULT}: {error}") from error
            self._is_ours = True
            log.info("Loaded AppArmor profile name=%s", DEFAULT)

    def _names(self) -> set[str]:
        return {line.rpartition(" (")[0] for line in self._loaded.read_text().splitlines()}

    def remove_default(self, processes: Path = Path("/proc")) -> None:
        """Take the default one out of the kernel, unless a process is confined by it: it would be free then.
        Raises OSError."""
        if self._parser is None or not self._loaded.exists() or DEFAULT not in self._names():
            return
        if not any(_confined(process) for process in processes.iterdir() if process.name.isdigit()):
            _run(self._parser, "--remove", text=PROFILE)


def _confined(process: Path) -> bool:
    try:
        return (process / "attr/apparmor/current").read_text().startswith(f"{DEFAULT} (")
    except OSError:  # it ended meanwhile
        return False


def _run(*argv: str, text: str) -> None:
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=PARSER_SECONDS)
    except subprocess.TimeoutExpired as late:
        raise TimeoutError(f"{argv[0]} did not end in {PARSER_SECONDS:.0f} s") from late
    if done.returncode != 0:
        raise OSError(f"{argv[0]}: {done.stderr.strip()}")


def _failure(text: str) -> CreateContainerError:
    return CreateContainerError(
        f"failed to get container spec opts: failed to generate apparmor spec opts: {text}"
    )
