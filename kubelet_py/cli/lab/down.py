"""`kubelet-py lab down`: cut everything off, and take away what the lab's description names.

Works as well after a SIGKILL of everything, or of `lab up` half-way: cgroups, link and folder have names that
follow from the lab's folder, and nothing else of the host was touched.
"""

from __future__ import annotations

import argparse
import shutil
import time

from kubelet_py.cli.lab import state, wires
from kubelet_py.cli.lab.branch import Branch
from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.layout import LabPaths
from kubelet_py.cli.up import require_root


def run(args: argparse.Namespace, paths: LabPaths) -> int:
    require_root("lab down")
    started = time.monotonic()
    branch = Branch.of_host(paths.cgroup)
    if paths.lock.exists():
        with state.locked(paths):
            remove(paths)
    elif branch.exists() or wires.has_link(paths.link):  # somebody has removed the folder already
        remove(paths)
    else:
        print(f"There is no lab in {paths.root}")
        return 0
    print(f"Took the lab away after {time.monotonic() - started:.2f} s")
    return 0


def remove(paths: LabPaths) -> None:
    """Everything of the lab. Raises LabError where a process does not end; safe to repeat."""
    branch = Branch.of_host(paths.cgroup)
    branch.kill()
    branch.wait_empty()
    branch.remove()
    wires.disconnect_host(paths.link)
    try:
        if paths.machines.exists():
            shutil.rmtree(paths.machines)
        for file in (paths.kubelet_config, paths.state.with_suffix(".new"), paths.state, paths.lock):
            file.unlink(missing_ok=True)
        # A folder that is a mount point is somebody's disk, and stays.
        if paths.root.exists() and not paths.root.is_mount() and not any(paths.root.iterdir()):
            paths.root.rmdir()
    except OSError as error:
        raise LabError(f"Could not remove {error.filename}: {error.strerror} (remove it by hand)") from error
