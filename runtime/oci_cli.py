"""`kubelet-py-oci`: the command line that callers of runc and crun expect, over runtime/oci_container.py.

Errors go to standard error as one line, and to `--log FILE` as callers read them (text or JSON lines); the
exit code is 1, or the container's own for `run` and `exec`. Warnings go to the log when there is one:
standard error may be the container's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence

from runtime import cgroups
from runtime.capabilities import UnknownCapability, normalise
from runtime.errors import RuntimeFailure, StateError
from runtime.linux import LinuxKernel
from runtime.oci_arguments import parse
from runtime.oci_container import Options, Runtime, changed, read_config, wait
from runtime.oci_relay import relay
from runtime.oci_state import STOPPED, Store
from runtime.spec import parse_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = parse(argv)
    try:
        if arguments.debug and arguments.log:
            _log(arguments, "debug", f"kubelet-py-oci {' '.join(sys.argv[1:] if argv is None else argv)}")
        if arguments.systemd_cgroup:
            raise StateError("Could not use the systemd cgroup driver: only cgroupfs is supported")
        return COMMANDS[arguments.command](arguments)
    except (RuntimeFailure, OSError, UnknownCapability) as error:
        text = str(error)
        print(f"kubelet-py-oci: {text}", file=sys.stderr)
        if arguments.log:
            _log(arguments, "error", text)
        return 1


def _log(arguments: Namespace, level: str, text: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if arguments.log_format == "json":
        line = json.dumps({"level": level, "msg": text, "time": stamp})
    else:
        line = f'time="{stamp}" level={level} msg={json.dumps(text)}'
    with open(arguments.log, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def _complain(arguments: Namespace, problems: Sequence[str]) -> None:
    """Warnings: to the log; without one to standard error, unless that is a container's, which would take
    them for its own words: then to the file `warnings` beside the container's state."""
    for problem in problems:
        if arguments.log:
            _log(arguments, "warning", problem)
        elif arguments.command in ("create", "exec") and not os.isatty(2):
            Store(arguments.root).note(arguments.id, problem)
        else:
            print(f"kubelet-py-oci: {problem}", file=sys.stderr)


def _runtime(arguments: Namespace) -> Runtime:
    return Runtime(Store(arguments.root), LinuxKernel(), cgroups.detect())


def _options(arguments: Namespace) -> Options:
    return Options(
        arguments.console_socket, arguments.pid_file, arguments.preserve_fds,
        getattr(arguments, "no_pivot", False),
    )  # fmt: skip


def _create(arguments: Namespace) -> int:
    config = read_config(arguments.bundle, arguments.config)
    if (config.get("process") or {}).get("terminal") and not arguments.console_socket:
        raise StateError("Could not create container: it has a terminal (give --console-socket)")
    runtime = _runtime(arguments)
    _, process = runtime.create(arguments.id, arguments.bundle, config, _options(arguments))
    _complain(arguments, process.warnings)
    return 0


def _run(arguments: Namespace) -> int:
    runtime = _runtime(arguments)
    config = read_config(arguments.bundle, arguments.config)
    _, process = runtime.create(arguments.id, arguments.bundle, config, _options(arguments))
    _complain(arguments, process.warnings)
    _complain(arguments, runtime.start(arguments.id))
    if arguments.detach:
        return 0
    relay(process, own_console=process.console >= 0 and not arguments.console_socket)
    code = wait(process)
    if not arguments.keep:
        _complain(arguments, runtime.delete(arguments.id, force=True))
    return code


def _start(arguments: Namespace) -> int:
    _complain(arguments, _runtime(arguments).start(arguments.id))
    return 0


def _state(arguments: Namespace) -> int:
    print(json.dumps(_runtime(arguments).state(arguments.id), indent=2))
    return 0


def _pause(arguments: Namespace) -> int:
    _runtime(arguments).freeze(arguments.id, True)
    return 0


def _resume(arguments: Namespace) -> int:
    _runtime(arguments).freeze(arguments.id, False)
    return 0


def _ps(arguments: Namespace) -> int:
    pids = _runtime(arguments).processes(arguments.id)
    if arguments.format == "json":
        print(json.dumps(pids))
        return 0
    from runtime.oci_documents import process_table

    for line in process_table(pids, arguments.options):
        print(line)
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


def _kill(arguments: Namespace) -> int:
    _runtime(arguments).kill(arguments.id, signal_number(arguments.signal), everyone=arguments.all)
    return 0


def _delete(arguments: Namespace) -> int:
    _complain(arguments, _runtime(arguments).delete(arguments.id, force=arguments.force))
    return 0


def _list(arguments: Namespace) -> int:
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


def _update(arguments: Namespace) -> int:
    from runtime.oci_usage import wanted

    _runtime(arguments).update(arguments.id, wanted(arguments))
    return 0


def _events(arguments: Namespace) -> int:
    from runtime.oci_usage import follow, seconds, stats

    runtime = _runtime(arguments)
    cgroup = runtime.cgroup(arguments.id)
    if arguments.stats:
        print(json.dumps(stats(arguments.id, cgroup.stats())))
        return 0
    container = runtime.store.load(arguments.id)
    follow(
        arguments.id,
        cgroup,
        lambda: runtime.store.status(container) != STOPPED,
        lambda event: print(json.dumps(event), flush=True),
        seconds(arguments.interval),
    )
    return 0


def _exec(arguments: Namespace) -> int:
    runtime = _runtime(arguments)
    process = parse_process(_exec_process(arguments, runtime.store.load(arguments.id).config["process"]))
    if process.terminal and arguments.detach and not arguments.console_socket:
        raise StateError("Could not detach with a terminal (give --console-socket)")
    started = runtime.exec(arguments.id, process, _options(arguments))
    _complain(arguments, started.warnings)
    if arguments.detach:
        return 0
    relay(started, own_console=started.console >= 0 and not arguments.console_socket)
    return wait(started)


def _exec_process(arguments: Namespace, base: dict[str, Any]) -> dict[str, Any]:
    """The process object of an exec: from a file, or the container's with the flags' changes."""
    if arguments.process:
        with open(arguments.process, encoding="utf-8") as file:
            return dict(json.load(file))
    command = arguments.args[1:] if arguments.args[:1] == ["--"] else arguments.args
    if not command:
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
            "args": command,
            "cwd": arguments.cwd,
            "env": [*(base.get("env") or []), *arguments.env],
            "user": user,
            "capabilities": sets,
            "noNewPrivileges": True if arguments.no_new_privs else None,
            "terminal": arguments.tty,
        },
    )


def _spec(arguments: Namespace) -> int:
    from runtime.oci_documents import example_config

    path = os.path.join(arguments.bundle, "config.json")
    with open(path, "x", encoding="utf-8") as file:
        json.dump(example_config(), file, indent=2)
        file.write("\n")
    return 0


def _features(_arguments: Namespace) -> int:
    from runtime.oci_documents import features

    print(json.dumps(features(), indent=2))
    return 0


COMMANDS = {
    "create": _create, "run": _run, "start": _start, "state": _state, "kill": _kill, "delete": _delete,
    "pause": _pause, "resume": _resume, "ps": _ps, "list": _list, "events": _events, "update": _update,
    "exec": _exec, "spec": _spec, "features": _features,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
