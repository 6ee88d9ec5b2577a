"""Flags of `kubelet-py-oci`, as callers of runc and crun pass them.

Each flag is acted upon or refused by name. Some are accepted because their only value here is what we do
anyway (`--cgroup-manager cgroupfs`, `--rootless false`).
"""

from __future__ import annotations

import argparse
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = "0.1.0"
SPEC_VERSION = "1.2.0"
DEFAULT_ROOT = "/run/kubelet-py-oci"

# flag → (section, key) of linux.resources
LIMITS = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-share": ("cpu", "shares"),
    "cpu-idle": ("cpu", "idle"),
    "cpuset-cpus": ("cpu", "cpus"),
    "cpuset-mems": ("cpu", "mems"),
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "pids-limit": ("pids", "limit"),
}
TEXTS = ("cpuset-cpus", "cpuset-mems")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `.command` is the command's name. Ends the program on --help and wrong usage."""
    parser = argparse.ArgumentParser(prog="kubelet-py-oci", description="An OCI container runtime.")
    version = f"kubelet-py-oci version {VERSION}\nspec: {SPEC_VERSION}"
    parser.add_argument(
        "--version", "-v", action="version", version=version, help="print the version and end"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder of the containers' state")
    parser.add_argument("--log", default="", help="file that errors and warnings are appended to")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--debug", action="store_true", help="log what was asked for, too")
    parser.add_argument("--systemd-cgroup", action="store_true", help="refused: cgroups are made directly")
    parser.add_argument("--cgroup-manager", choices=("cgroupfs",), default="cgroupfs")
    parser.add_argument("--rootless", choices=("auto", "false"), default="auto", help="root is needed")
    groups = {
        **dict.fromkeys(("create", "run"), _creation),
        **dict.fromkeys(("start", "kill", "delete", "pause", "resume"), _lifecycle),
        **dict.fromkeys(("state", "ps", "list", "events", "spec", "features"), _queries),
        "exec": _exec,
        "update": _update,
    }
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    words = sys.argv[1:] if argv is None else argv
    named = [groups[word] for word in words if word in groups]
    # Making a parser costs a quarter of a millisecond: with one command in sight, only its group is made.
    for add in named if len(named) == 1 else dict.fromkeys(groups.values()):
        add(commands)
    return parser.parse_args(words)


def _creation(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, text in (("create", "make a container"), ("run", "create, start and wait")):
        command = _command(commands, name, text)
        command.add_argument("--bundle", "-b", default=".", help="folder with config.json")
        command.add_argument("--config", "-f", default="", help="configuration file instead of the bundle's")
        command.add_argument("--console-socket", default="", help="socket that gets the terminal")
        command.add_argument("--pid-file", default="")
        command.add_argument("--preserve-fds", type=int, default=0, help="descriptors from 3 on to keep")
        command.add_argument("--no-pivot", action="store_true", help="change the root without pivot_root")
        if name == "run":
            command.add_argument("--detach", "-d", action="store_true", help="do not wait")
            command.add_argument("--keep", action="store_true", help="do not delete it afterwards")
        command.add_argument("id")


def _lifecycle(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _command(commands, "start", "start a created container").add_argument("id")
    command = _command(commands, "kill", "send a signal")
    command.add_argument("--all", "-a", action="store_true", help="to all its processes")
    command.add_argument("id")
    command.add_argument("signal", nargs="?", default="SIGTERM")
    command = _command(commands, "delete", "remove a stopped container")
    command.add_argument("--force", "-f", action="store_true", help="kill it first")
    command.add_argument("id")
    _command(commands, "pause", "stop all its processes").add_argument("id")
    _command(commands, "resume", "continue them").add_argument("id")


def _queries(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _command(commands, "state", "print its state").add_argument("id")
    command = _command(commands, "ps", "list its processes")
    command.add_argument("--format", "-f", choices=("table", "json"), default="table")
    command.add_argument("id")
    command.add_argument("options", nargs=argparse.REMAINDER, help="options of ps(1) for the table")
    command = _command(commands, "list", "list containers")
    command.add_argument("--quiet", "-q", action="store_true", help="ids only")
    command.add_argument("--format", "-f", choices=("table", "json"), default="table")
    command = _command(commands, "events", "print usage and out-of-memory kills")
    command.add_argument("--stats", action="store_true", help="one reading, then end")
    command.add_argument("--interval", default="5s", help="time between readings: 5s, 500ms")
    command.add_argument("id")
    command = _command(commands, "spec", "write a config.json to start from")
    command.add_argument("--bundle", "-b", default=".")
    _command(commands, "features", "print what this runtime supports")


def _exec(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _command(commands, "exec", "run one more process")
    command.add_argument("--process", "-p", default="", help="file with a process object")
    command.add_argument("--cwd", default=None)
    command.add_argument("--env", "-e", action="append", default=[])
    command.add_argument("--user", "-u", default="", help="uid[:gid]")
    command.add_argument("--additional-gids", "-g", action="append", type=int, default=[])
    command.add_argument("--cap", "-c", action="append", default=[], help="add a capability")
    command.add_argument("--no-new-privs", action="store_true")
    command.add_argument("--tty", "-t", action="store_true")
    command.add_argument("--console-socket", default="")
    command.add_argument("--detach", "-d", action="store_true")
    command.add_argument("--pid-file", default="")
    command.add_argument("--preserve-fds", type=int, default=0, help="descriptors from 3 on to keep")
    command.add_argument("id")
    command.add_argument("args", nargs=argparse.REMAINDER)


def _update(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _command(commands, "update", "change the limits of a container")
    command.add_argument("--resources", "-r", default="", help="file with linux.resources, - for stdin")
    for flag in LIMITS:
        command.add_argument(f"--{flag}", type=str if flag in TEXTS else _number, default=None)
    command.add_argument("id")


def _number(text: str) -> int:
    """A whole number, or bytes with a unit as runc takes them: 64M, 1g."""
    units = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    clean = text.lower().removesuffix("b") if text[-2:-1].isalpha() else text.lower()
    if clean[-1:] in units:
        return int(clean[:-1]) * units[clean[-1]]
    return int(clean)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text)
