"""Flags of `kubelet-py-oci`, as callers of runc and crun pass them.

Each flag is acted upon or refused by name. Some are accepted because their only value here is what we do
anyway (`--rootless false`, `--no-subreaper`).
"""

from __future__ import annotations

import sys

from runtime.oci_flags import Arguments, HelpAsked, UsageError, help_text, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.oci_flags import Command, Flag

VERSION = "0.1.0"
SPEC_VERSION = "1.2.0"
DEFAULT_ROOT = "/run/kubelet-py-oci"
PROGRAM = "kubelet-py-oci"

SWITCH, TEXT, TEXTS, COUNT, NUMBERS, WHOLE, BYTES = (
    "yes or no", "text", "texts", "a number from 0 on", "numbers", "a whole number",
    "a number (of bytes: 64M)",
)  # fmt: skip

# flag → (section, key) of linux.resources
LIMITS = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-share": ("cpu", "shares"),
    "cpu-idle": ("cpu", "idle"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpuset-cpus": ("cpu", "cpus"),
    "cpuset-mems": ("cpu", "mems"),
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "pids-limit": ("pids", "limit"),
}

GENERAL: tuple[Flag, ...] = (
    ("root", "", TEXT, "folder of the containers' state"),
    ("log", "", TEXT, "file that errors and warnings are appended to"),
    ("log-format", "", ("text", "json"), "how they are written"),
    ("debug", "", SWITCH, "log what was asked for, too"),
    ("systemd-cgroup", "", SWITCH, "as --cgroup-manager systemd"),
    ("cgroup-manager", "", ("cgroupfs", "systemd"), "who makes the cgroups"),
    ("rootless", "", ("auto", "false"), "root is needed"),
    ("version", "v", SWITCH, "print the version and end"),
)

_MAKING: tuple[Flag, ...] = (
    ("bundle", "b", TEXT, "folder with config.json"),
    ("config", "f", TEXT, "configuration file instead of the bundle's"),
    ("console-socket", "", TEXT, "socket that gets the terminal"),
    ("pid-file", "", TEXT, "file for the number of its first process"),
    ("preserve-fds", "", COUNT, "descriptors from 3 on to keep"),
    ("no-pivot", "", SWITCH, "change the root without pivot_root"),
    ("no-new-keyring", "", SWITCH, "keep the caller's session keyring"),
)


def _kind(limit: str) -> str:
    return TEXT if limit.startswith("cpuset") else BYTES if limit.startswith("memory") else WHOLE


_FORMAT: Flag = ("format", "f", ("table", "json"), "how to print it")

COMMANDS: dict[str, Command] = {
    "create": (_MAKING, ("id",), "make a container"),
    "run": (
        (
            *_MAKING,
            ("detach", "d", SWITCH, "do not wait for its end"),
            ("keep", "", SWITCH, "do not delete it afterwards"),
            ("no-subreaper", "", SWITCH, "adopt no orphans, which is never done here"),
        ),
        ("id",),
        "create, start, wait and delete",
    ),
    "start": ((), ("id",), "start a created container"),
    "state": ((), ("id",), "print its state"),
    "kill": ((("all", "a", SWITCH, "to all its processes"),), ("id", "signal?"), "send a signal"),
    "delete": ((("force", "f", SWITCH, "kill it first"),), ("id",), "remove a stopped container"),
    "exec": (
        (
            ("process", "p", TEXT, "file with a process object"),
            ("cwd", "", TEXT, "working directory"),
            ("env", "e", TEXTS, "NAME=VALUE, one more variable"),
            ("user", "u", TEXT, "uid[:gid]"),
            ("additional-gids", "g", NUMBERS, "one more group"),
            ("cap", "c", TEXTS, "add a capability"),
            ("no-new-privs", "", SWITCH, "set no_new_privs"),
            ("process-label", "", TEXT, "SELinux label"),
            ("apparmor", "", TEXT, "AppArmor profile"),
            ("tty", "t", SWITCH, "give it a terminal"),
            ("console-socket", "", TEXT, "socket that gets the terminal"),
            ("detach", "d", SWITCH, "do not wait for its end"),
            ("pid-file", "", TEXT, "file for the number of the process"),
            ("preserve-fds", "", COUNT, "descriptors from 3 on to keep"),
            ("cgroup", "", TEXTS, "cgroup below the container's: [controller,…:]path"),
            ("ignore-paused", "", SWITCH, "into a paused container, too"),
        ),
        ("id", "args*"),
        "run one more process in it",
    ),
    "list": ((("quiet", "q", SWITCH, "ids only"), _FORMAT), (), "list containers"),
    "ps": ((_FORMAT,), ("id", "options*"), "list its processes; OPTIONS are those of ps(1)"),
    "pause": ((), ("id",), "stop all its processes"),
    "resume": ((), ("id",), "continue them"),
    "update": (
        (
            ("resources", "r", TEXT, "file with linux.resources, - for standard input"),
            *(
                (flag, "", _kind(flag), f"linux.resources.{'.'.join(place)}")
                for flag, place in LIMITS.items()
            ),
        ),
        ("id",),
        "change its limits",
    ),
    "events": (
        (
            ("stats", "", SWITCH, "one reading, then end"),
            ("interval", "", TEXT, "time between readings: 5s, 500ms"),
        ),
        ("id",),
        "print usage and out-of-memory kills",
    ),
    "spec": (
        (("bundle", "b", TEXT, "folder that it is written to"),),
        (),
        "write a config.json to start from",
    ),
    "features": ((), (), "print what this runtime supports"),
}

DEFAULTS = {
    "root": DEFAULT_ROOT, "log-format": "text", "cgroup-manager": "cgroupfs", "rootless": "auto",
    "bundle": ".", "format": "table", "interval": "5s", "no-new-privs": None,
}  # fmt: skip


def parse(argv: Sequence[str] | None, found: Arguments) -> None:
    """Reads the command line into `found`; `.command` is the command's name, "" when --version or --help has
    been answered here. Raises UsageError."""
    words = sys.argv[1:] if argv is None else argv
    try:
        read(found, words, GENERAL, COMMANDS, DEFAULTS)
    except HelpAsked as asked:
        print(help_text(PROGRAM, asked.command, GENERAL, COMMANDS))
        found.command = ""
        return
    if found.version:
        print(f"{PROGRAM} version {VERSION}\nspec: {SPEC_VERSION}")
        found.command = ""


__all__ = ["COMMANDS", "GENERAL", "LIMITS", "Arguments", "UsageError", "parse"]
