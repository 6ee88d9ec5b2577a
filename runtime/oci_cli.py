"""`kubelet-py-oci`: the command line that callers of runc and crun expect, over runtime/oci_container.py.

Errors go to standard error as one line, and to `--log FILE` as callers read them (text or JSON lines); the
exit code is 1, or the container's own for `run` and `exec`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence

from runtime import cgroups
from runtime.capabilities import DEFAULT, NAMES, UnknownCapability, normalise
from runtime.errors import RuntimeFailure, StateError
from runtime.linux import LinuxKernel
from runtime.machine import this_machine
from runtime.mounting import KNOWN_OPTIONS
from runtime.namespaces import FLAGS
from runtime.oci_container import Runtime, changed, read_config, wait
from runtime.oci_relay import relay
from runtime.oci_state import Store
from runtime.seccomp import filter as seccomp
from runtime.seccomp.profile import ARCHITECTURES, runtime_default
from runtime.spec import HOOKS, parse_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = "0.1.0"
SPEC_VERSION = "1.2.0"
DEFAULT_ROOT = "/run/kubelet-py-oci"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (RuntimeFailure, OSError, UnknownCapability) as error:
        text = str(error)
        print(f"kubelet-py-oci: {text}", file=sys.stderr)
        if arguments.log:
            _log(arguments.log, arguments.log_format, text)
        return 1


def _log(path: str, form: str, text: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if form == "json":
        line = json.dumps({"level": "error", "msg": text, "time": stamp})
    else:
        line = f'time="{stamp}" level=error msg={json.dumps(text)}'
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kubelet-py-oci", description="An OCI container runtime.")
    version = f"kubelet-py-oci version {VERSION}\nspec: {SPEC_VERSION}"
    parser.add_argument("--version", "-v", action="version", version=version)
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder of the containers' state")
    parser.add_argument("--log", default="", help="file that errors are appended to")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text, run in (("create", "make a container", _create), ("run", "create, start and wait", _run)):
        command = _command(commands, name, text, run)
        command.add_argument("--bundle", "-b", default=".", help="folder with config.json")
        command.add_argument("--console-socket", default="", help="socket that gets the terminal")
        command.add_argument("--pid-file", default="")
        if name == "run":
            command.add_argument("--detach", "-d", action="store_true", help="do not wait")
            command.add_argument("--keep", action="store_true", help="do not delete it afterwards")
        command.add_argument("id")
    for name, text, run in (
        ("start", "start a created container", _start),
        ("state", "print its state", _state),
        ("pause", "stop all its processes", _pause),
        ("resume", "continue them", _resume),
        ("ps", "list its processes", _ps),
    ):
        command = _command(commands, name, text, run)
        if name == "ps":
            command.add_argument("--format", "-f", choices=("table", "json"), default="table")
        command.add_argument("id")
    command = _command(commands, "kill", "send a signal", _kill)
    command.add_argument("--all", "-a", action="store_true", help="to all its processes")
    command.add_argument("id")
    command.add_argument("signal", nargs="?", default="SIGTERM")
    command = _command(commands, "delete", "remove a stopped container", _delete)
    command.add_argument("--force", "-f", action="store_true", help="kill it first")
    command.add_argument("id")
    command = _command(commands, "list", "list containers", _list)
    command.add_argument("--quiet", "-q", action="store_true", help="ids only")
    command.add_argument("--format", "-f", choices=("table", "json"), default="table")
    _exec_parser(commands)
    command = _command(commands, "spec", "write a config.json to start from", _spec)
    command.add_argument("--bundle", "-b", default=".")
    _command(commands, "features", "print what this runtime supports", _features)
    return parser


def _command(commands: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _exec_parser(commands: Any) -> None:
    command = _command(commands, "exec", "run one more process", _exec)
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
    command.add_argument("id")
    command.add_argument("args", nargs=argparse.REMAINDER)


def _runtime(arguments: argparse.Namespace) -> Runtime:
    return Runtime(Store(arguments.root), LinuxKernel(), cgroups.detect())


def _complain(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"kubelet-py-oci: {problem}", file=sys.stderr)


def _create(arguments: argparse.Namespace) -> int:
    config = read_config(arguments.bundle)
    if (config.get("process") or {}).get("terminal") and not arguments.console_socket:
        raise StateError("Could not create container: it has a terminal (give --console-socket)")
    _, process = _runtime(arguments).create(
        arguments.id, arguments.bundle, console_socket=arguments.console_socket, pid_file=arguments.pid_file
    )
    _complain(process.warnings)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    runtime = _runtime(arguments)
    _, process = runtime.create(
        arguments.id, arguments.bundle, console_socket=arguments.console_socket, pid_file=arguments.pid_file
    )
    _complain(process.warnings)
    _complain(runtime.start(arguments.id))
    if arguments.detach:
        return 0
    relay(process, own_console=process.console >= 0 and not arguments.console_socket)
    code = wait(process)
    if not arguments.keep:
        _complain(runtime.delete(arguments.id, force=True))
    return code


def _start(arguments: argparse.Namespace) -> int:
    _complain(_runtime(arguments).start(arguments.id))
    return 0


def _state(arguments: argparse.Namespace) -> int:
    print(json.dumps(_runtime(arguments).state(arguments.id), indent=2))
    return 0


def _pause(arguments: argparse.Namespace) -> int:
    _runtime(arguments).freeze(arguments.id, True)
    return 0


def _resume(arguments: argparse.Namespace) -> int:
    _runtime(arguments).freeze(arguments.id, False)
    return 0


def _ps(arguments: argparse.Namespace) -> int:
    pids = _runtime(arguments).processes(arguments.id)
    if arguments.format == "json":
        print(json.dumps(pids))
        return 0
    print("PID       COMMAND")
    for pid in pids:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except FileNotFoundError:
            continue
        print(f"{pid:<9} {command}")
    return 0


def signal_number(name: str) -> int:
    """`9`, `KILL` and `SIGKILL` → 9. Raises StateError."""
    if name.isascii() and name.isdigit() and 0 < int(name) <= 64:
        return int(name)
    full = name.upper() if name.upper().startswith("SIG") else "SIG" + name.upper()
    try:
        return int(signal.Signals[full])
    except KeyError:
        raise StateError(f"Could not send signal {name!r}: no such signal") from None


def _kill(arguments: argparse.Namespace) -> int:
    _runtime(arguments).kill(arguments.id, signal_number(arguments.signal), everyone=arguments.all)
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    _complain(_runtime(arguments).delete(arguments.id, force=arguments.force))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    store = Store(arguments.root)
    states = [store.describe(container) for container in store.all()]
    if arguments.quiet:
        for state in states:
            print(state["id"])
    elif arguments.format == "json":
        print(json.dumps(states))
    else:
        print(f"{'ID':<20} {'PID':<8} {'STATUS':<10} {'BUNDLE':<40} CREATED")
        for s in states:
            print(f"{s['id']:<20} {s['pid']:<8} {s['status']:<10} {s['bundle']:<40} {s['created']}")
    return 0


def _exec(arguments: argparse.Namespace) -> int:
    runtime = _runtime(arguments)
    process = parse_process(_exec_process(arguments, runtime.store.load(arguments.id).config["process"]))
    if process.terminal and arguments.detach and not arguments.console_socket:
        raise StateError("Could not detach with a terminal (give --console-socket)")
    started = runtime.exec(
        arguments.id, process, console_socket=arguments.console_socket, pid_file=arguments.pid_file
    )
    _complain(started.warnings)
    if arguments.detach:
        return 0
    relay(started, own_console=started.console >= 0 and not arguments.console_socket)
    return wait(started)


def _exec_process(arguments: argparse.Namespace, base: dict[str, Any]) -> dict[str, Any]:
    """The process object of an exec: from a file, or the container's with the flags' changes."""
    if arguments.process:
        with open(arguments.process, encoding="utf-8") as file:
            return dict(json.load(file))
    if not arguments.args:
        raise StateError("Could not execute: no command was given (kubelet-py-oci exec ID COMMAND)")
    user = dict(base.get("user") or {})
    if arguments.user:
        uid, _, gid = arguments.user.partition(":")
        if not uid.isdigit() or (gid and not gid.isdigit()):
            raise StateError(f"Could not use user {arguments.user!r}: numbers are needed (uid[:gid])")
        user = {"uid": int(uid), "gid": int(gid or 0)}
    if arguments.additional_gids:
        user["additionalGids"] = arguments.additional_gids
    sets = {name: list(values) for name, values in (base.get("capabilities") or {}).items()}
    for capability in arguments.cap:
        for name in ("bounding", "effective", "permitted"):
            sets.setdefault(name, []).append(normalise(capability))
    return changed(
        base,
        {
            "args": arguments.args,
            "cwd": arguments.cwd,
            "env": [*(base.get("env") or []), *arguments.env],
            "user": user,
            "capabilities": sets,
            "noNewPrivileges": True if arguments.no_new_privs else None,
            "terminal": arguments.tty,
        },
    )


def _spec(arguments: argparse.Namespace) -> int:
    path = os.path.join(arguments.bundle, "config.json")
    with open(path, "x", encoding="utf-8") as file:
        json.dump(example_config(), file, indent=2)
        file.write("\n")
    return 0


def example_config() -> dict[str, Any]:
    """A config.json with the defaults a pod's container gets, running `sh` on a terminal."""
    hardened = ["nosuid", "noexec", "nodev"]
    sets = {name: list(DEFAULT) for name in ("bounding", "effective", "permitted")}
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": sets,
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "container",
        "mounts": [
            _mount("/proc", "proc", "proc", []),
            _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
            _mount("/dev/pts", "devpts", "devpts",
                   ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            _mount("/dev/shm", "tmpfs", "shm", [*hardened, "mode=1777", "size=65536k"]),
            _mount("/dev/mqueue", "mqueue", "mqueue", hardened),
            _mount("/sys", "sysfs", "sysfs", [*hardened, "ro"]),
            _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*hardened, "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
                            "/proc/interrupts", "/sys/firmware", "/sys/devices/virtual/powercap"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": runtime_default(DEFAULT, this_machine().name),
        },
    }  # fmt: skip


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}


def _features(_arguments: argparse.Namespace) -> int:
    """The features document (runtime-spec features.md)."""
    document = {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": [kind for kind in HOOKS if kind not in ("createContainer", "startContainer")],
        "mountOptions": sorted(KNOWN_OPTIONS),
        "linux": {
            "namespaces": sorted(kind for kind in FLAGS if kind != "user"),
            "capabilities": list(NAMES),
            "cgroup": {"v1": cgroups.detect().name == "hybrid", "v2": True, "systemd": False},
            "seccomp": {
                "enabled": True,
                "actions": sorted(seccomp.ACTIONS),
                "operators": [f"SCMP_CMP_{name}" for name in seccomp.OPERATORS],
                "archs": [ARCHITECTURES[this_machine().name]],
                "supportedFlags": sorted(seccomp.FLAGS),
            },
            "apparmor": {"enabled": os.path.exists("/sys/kernel/security/apparmor")},
            "selinux": {"enabled": os.path.exists("/sys/fs/selinux/status")},
        },
    }
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
