"""`kubelet-py lab exec`, `kubectl` and `kubeconfig`: going into a machine, and talking to the cluster from
outside.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from kubelet_py.cli.lab import state
from kubelet_py.cli.lab.branch import Branch
from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.layout import CONTROL, SWITCH, LabPaths
from kubelet_py.cli.lab.machines import Machines
from kubelet_py.cli.lab.state import Lab
from kubelet_py.cli.up import require_root


def run(args: argparse.Namespace, paths: LabPaths) -> int:
    """Becomes the command, so that terminal, signals and exit code are its own."""
    lab = state.require(paths)
    if args.verb == "kubeconfig":
        print(paths.kubeconfig)
    elif args.verb == "image":
        return _image(args.command_line, lab, paths)
    elif args.verb == "kubectl":
        _kubectl(args.command_line, paths)
    else:
        if args.name != SWITCH:
            lab.machine(args.name)
        _exec(args.name, args.command_line, paths)
    return 0


def lab_command(paths: LabPaths, *arguments: str) -> list[str]:
    """The command line of another verb of this lab."""
    return [sys.executable, "-m", "kubelet_py", "lab", "--root", str(paths.root), *arguments]


def _image(arguments: list[str], lab: Lab, paths: LabPaths) -> int:
    """In this host's namespaces, where files and registries can be reached, on each node's disk in turn."""
    require_root("lab image")
    if not arguments:
        raise LabError(f"say what to do with which image: {paths.command} image --help")
    for machine in lab.nodes:
        root = str(paths.disk(machine.name))
        command = [sys.executable, "-m", "kubelet_py", "image", *arguments, "--root", root]
        done = subprocess.run(command)
        if done.returncode != 0:
            return done.returncode
    return 0


def _kubectl(arguments: list[str], paths: LabPaths) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise LabError(f"Could not find kubectl (install it; its kubeconfig is {paths.kubeconfig})")
    if not os.access(paths.kubeconfig, os.R_OK):
        raise LabError(f"Could not read {paths.kubeconfig} (try `sudo {paths.command} kubectl …`)")
    os.execve(kubectl, [kubectl, *arguments], os.environ | {"KUBECONFIG": str(paths.kubeconfig)})


def _exec(name: str, line: list[str], paths: LabPaths) -> None:
    require_root("lab exec")
    command = line[1:] if line[:1] == ["--"] else line
    if not command:
        raise LabError(f"say what to run: {paths.command} exec {name} -- COMMAND")
    argv = Machines(paths, Branch.of_host(paths.cgroup)).enter(name, command)
    own = str(Path(sys.executable).parent)
    environment = dict(os.environ)
    environment.pop("KUBECONFIG", None)
    if name == CONTROL:
        environment["KUBECONFIG"] = "/etc/kubelet-py/admin.conf"
    if own not in environment.get("PATH", "").split(":"):
        environment["PATH"] = f"{environment.get('PATH', os.defpath)}:{own}"
    nsenter = shutil.which("nsenter")
    if nsenter is None:
        raise LabError("Could not find nsenter (install it: apt-get install util-linux)")
    os.chdir("/")
    os.execve(nsenter, argv, environment)
