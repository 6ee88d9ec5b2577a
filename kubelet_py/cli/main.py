"""The command `kubelet-py`: one module per subcommand, imported only when it is asked for.

This package is the only place that imports every room (DESIGN.md, section 2). Exit codes: 0 done, 1 could
not (one line on stderr says why and what to do), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from kubelet_py.cli.errors import CommandError

COMMANDS = {
    "up": "kubelet_py.cli.up",
    "status": "kubelet_py.cli.status",
    "kubeconfig": "kubelet_py.cli.status",
    "down": "kubelet_py.cli.cleanup",
    "reset": "kubelet_py.cli.cleanup",
    "image": "kubelet_py.cli.image",
    "inspect": "kubelet_py.cli.inspect",
    "doctor": "kubelet_py.cli.doctor.command",
    "node": "kubelet_py.cli.node",
    "token": "kubelet_py.cli.token",
    "join": "kubelet_py.cli.join",
    "leave": "kubelet_py.cli.join",
    "install": "kubelet_py.cli.install",
    "uninstall": "kubelet_py.cli.install",
    "lab": "kubelet_py.cli.lab_command",
}


class ShowVersion(argparse.Action):
    """Looks the version up when it is asked for: a checkout that nobody installed has none, and runs."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from kubelet_py.release import release

        print(f"kubelet-py {release() or 'of a checkout that is not installed'}")
        parser.exit()


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The command line's parser; with `only`, no other subcommand's module is imported."""
    parser = argparse.ArgumentParser(
        prog="kubelet-py",
        description="A Kubernetes node that a person can read: API server, kubelet, proxy and container "
        "runtime on this machine.",
        epilog="Start with `kubelet-py up --detach`, then `export KUBECONFIG=$(kubelet-py kubeconfig)` "
        "and use kubectl. `kubelet-py COMMAND --help` explains each command.",
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = [COMMANDS[only]] if only in COMMANDS else dict.fromkeys(COMMANDS.values())
    for module in modules:
        importlib.import_module(module).register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(arguments[0] if arguments else None)
    args = parser.parse_args(arguments)
    try:
        return int(args.handler(args))
    except CommandError as error:
        print(f"kubelet-py {args.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
