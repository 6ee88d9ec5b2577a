"""`kubelet-py install` and `uninstall`: the node as a service of systemd, started at every boot.

Installed is what this machine is: a cluster of its own (with `up`'s options, or as the last `up` left it), or
the node that `join` made of it (installation.py). `uninstall` leaves the machine as it was before.
"""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path

from kubelet_py.cli import installation, join, unit, up
from kubelet_py.cli import settings as node_settings
from kubelet_py.cli.cleanup import down, remove_state
from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.systemd import Systemd
from kubelet_py.paths import NodePaths


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    install = subparsers.add_parser(
        "install",
        help="have systemd run the node, at boot too",
        description="Write a systemd unit for the node of this machine, enable it at boot, start it, and "
        "return when the node is Ready: a cluster of its own (API server and node), or after `join` the node "
        "that joined. Pods that run already run on. Typed again, it writes the unit anew and restarts it, as "
        "after an upgrade of the package.",
        epilog="`kubelet-py uninstall` undoes it. Environment variables of the service, such as HTTPS_PROXY, "
        f"belong into {unit.ENVIRONMENT_FILE}.",
    )
    install.add_argument("--print", action="store_true", dest="show", help="print the unit, change nothing")
    up.add_options(install)
    install.set_defaults(handler=run_install)
    uninstall = subparsers.add_parser(
        "uninstall",
        help="undo `install`, and end the node",
        description="Stop the unit and remove it, end the node's pods, and remove its state as `reset` does; "
        "a node that joined also leaves its cluster, as by `leave`.",
    )
    uninstall.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    uninstall.add_argument("--yes", "-y", action="store_true", help="do not ask")
    uninstall.add_argument(
        "--keep-state", action="store_true",
        help="keep images, objects and certificates on the disk, for a later `up` or `install`",
    )  # fmt: skip
    uninstall.set_defaults(handler=run_uninstall)


def run_install(args: argparse.Namespace, systemd: Systemd | None = None) -> int:
    paths = NodePaths(args.root.resolve())
    text = unit.text(paths, unit.program())
    if args.show:
        print(text, end="")
        return 0
    up.require_root("install")
    systemd = systemd or Systemd()
    systemd.require()
    try:
        settings = up.settings_for(args, paths)
        installation.start(paths, settings, systemd, args.timeout)
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, str(error))
        raise CommandError(f"Could not use {error.filename or paths.root}: {code}") from error
    return 0


def run_uninstall(args: argparse.Namespace, systemd: Systemd | None = None) -> int:
    up.require_root("uninstall")
    paths = NodePaths(args.root.resolve())
    systemd = systemd or Systemd()
    settings = node_settings.load(paths)
    name = unit.name(paths)
    if settings is None and not systemd.installed(name):
        raise CommandError("there is no node here (install one: kubelet-py install)")
    if not args.yes and not args.keep_state:
        if not sys.stdin.isatty():
            raise CommandError("this removes all pods, images and certificates of the node (say --yes)")
        answer = input(f"Remove all pods, images, objects and certificates below {paths.root}? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was done")
    if systemd.installed(name):
        systemd.remove(name)
        print(f"Removed {name}", flush=True)
    if settings is not None and settings.server and not args.keep_state:
        join.leave(paths, settings)
        return 0
    down(paths, say=print)
    if not args.keep_state:
        remove_state(paths)
        print("Removed the node's state from the disk")
    return 0
