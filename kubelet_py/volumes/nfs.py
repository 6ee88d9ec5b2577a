"""nfs volumes: mounted by the host's own client, where there is one.

The kernel's NFS client wants addresses, versions and security settings worked out by mount.nfs, a package of
its own (Debian: nfs-common). Without it the pod waits, and its event says what to install.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from kubelet_py.errors import VolumeError
from kubelet_py.pods.model import Object
from kubelet_py.volumes import mounting

CLIENT = "mount.nfs"
SECONDS = 120.0
PLACES = "/usr/sbin:/sbin:/usr/bin:/bin"
Run = Callable[[Sequence[str]], tuple[int, str]]
"""Runs a command to its end: (exit code, what it said)."""


def set_up(
    source: Object,
    folder: Path,
    options: Sequence[str] = (),
    *,
    run: Run | None = None,
    places: str = PLACES,
) -> Path:
    """The share, mounted at `folder`. VolumeError with upstream's text when that fails.

    `places`: where the client may be, as in PATH.
    """
    if mounting.is_mounted(folder):
        return folder
    if run is None and shutil.which(CLIENT, path=places) is None:
        raise VolumeError(
            f"mount failed: this node has no {CLIENT}, which nfs volumes need (install nfs-common)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [*options, *(["ro"] if source.get("readOnly") else [])]
    arguments = ["-t", "nfs", *(["-o", ",".join(chosen)] if chosen else [])]
    arguments += [f"{source['server']}:{source['path']}", str(folder)]
    code, said = (run or _run)(["mount", *arguments])
    if code != 0:
        raise VolumeError(
            f"mount failed: exit status {code}\nMounting command: mount\n"
            f"Mounting arguments: {' '.join(arguments)}\nOutput: {said.strip()}"
        )
    return folder


def _run(command: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {SECONDS:.0f} s"
    return done.returncode, done.stdout
