"""`kubelet-py lab down`: cut everything off, and take away what the lab's description names.

Works as well after a SIGKILL of everything, or of `lab up` half-way: cgroups, link and folder have names that
follow from the lab's folder, and nothing else of the host was touched.
"""

from __future__ import annotations

import argparse
import shutil
import time

from kubelet_py.cli.lab import wires
from kubelet_py.cli.lab.branch import Branch
from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.layout import SWITCH, LabPaths
from kubelet_py.cli.lab.machines import Machines
from kubelet_py.cli.lab.up import locked
from kubelet_py.cli.up import require_root


def run(args: argparse.Namespace, paths: LabPaths) -> int:
    require_root("lab down")
    if not paths.lock.exists():
        print(f"There is no lab in {paths.root}")
        return 0
    started = time.monotonic()
    with locked(paths):
        remove(paths)
    print(f"Took the lab away after {time.monotonic() - started:.2f} s")
    return 0


def remove(paths: LabPaths) -> None:
    """Everything of the lab. Raises LabError where a process does not end; safe to repeat."""
    branch = Branch.of_host(paths.cgroup)
    machines = Machines(paths, branch)
    names = sorted(folder.name for folder in paths.machines.iterdir()) if paths.machines.exists() else []
    branch.kill()
    machines.cut_power(*(name for name in names if name != SWITCH), *((SWITCH,) if SWITCH in names else ()))
    branch.remove()
    wires.disconnect_host(paths.link)
    try:
        shutil.rmtree(paths.root)
    except OSError as error:
        raise LabError(f"Could not remove {error.filename}: {error.strerror} (remove it by hand)") from error
