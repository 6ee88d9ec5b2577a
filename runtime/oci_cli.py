"""`kubelet-py-oci`: the command line that callers of runc and crun expect, over runtime/oci_container.py.

Errors go to standard error as one line, and to `--log FILE` as callers read them (text or JSON lines); the
exit code is 1 (255 for an `exec` that could not start its process, as runc's), or the container's own for
`run` and `exec`. Warnings go to the log when there is one: standard error may be the container's.

A start is short enough for imports to count: what one command alone needs is imported by that.
"""

from __future__ import annotations

import gc
import os
import sys
import time

from runtime import cgroups, json_text, signals
from runtime.capabilities import UnknownCapability
from runtime.errors import RuntimeFailure, StateError, errno_name
from runtime.linux import LinuxKernel
from runtime.oci_arguments import parse
from runtime.oci_container import Runtime, read_config, wait
from runtime.oci_flags import Arguments
from runtime.oci_options import Options
from runtime.oci_state import STOPPED, Store
from runtime.spec import parse_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.launch import Process


ENTERING = frozenset({"create", "run", "exec"})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = Arguments()
    try:
        parse(argv, arguments)
        if not arguments.command:
            return 0
        if arguments.log:
            _check_log(arguments)
        if arguments.debug:
            _debug(arguments, f"kubelet-py-oci {' '.join(sys.argv[1:] if argv is None else argv)}")
        return COMMANDS[arguments.command](arguments)
    except (RuntimeFailure, OSError, UnknownCapability) as error:
        text = " ".join(str(error).split())
        print(f"kubelet-py-oci: {text}", file=sys.stderr)
        if getattr(arguments, "log", ""):
            _report(arguments, text)
        return 255 if arguments.command == "exec" else 1


def program() -> None:
    """main as a program of its own: ends without taking the interpreter apart, which costs 2 ms."""
    _have_streams()
    _use_a_read_only_python()
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        os.write(2, f"kubelet-py-oci: Could not write the output: {error.strerror}\n".encode())
        code = 1
    os._exit(code)


def _have_streams() -> None:
    """Opens /dev/null for those of descriptors 0 to 2 that the caller has closed, as the runtime of Go's
    programs does: what we open would get their numbers, and the container have it as its stdio
    (CVE-2024-21626)."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number, this one
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)


def _use_a_read_only_python() -> None:
    """The launcher does so itself; others begin again, to start anything in a container (oci_again.py)."""
    if os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY:
        if sys._xoptions:
            from runtime.oci_again import MARK, name_process

            if MARK in sys._xoptions:
                name_process()
    elif not ENTERING.isdisjoint(sys.argv):
        from runtime.oci_again import begin_again

        begin_again()


def _report(arguments: Arguments, text: str) -> None:
    """An error that standard error has got already; a wrong command line may name a log that cannot be."""
    try:
        _log(arguments, "error", text)
    except OSError as error:
        problem = f"Could not write the log {arguments.log}: {errno_name(error.errno or 0)}"
        print(f"kubelet-py-oci: {problem}", file=sys.stderr)


def _check_log(arguments: Arguments) -> None:
    """Nothing is done whose problems would be lost: without its log a command does not begin."""
    path = arguments.log
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644))
    except OSError as error:
        arguments.log = ""  # where this error cannot be written either
        raise StateError(f"Could not open the log {path}: {errno_name(error.errno or 0)}") from error


def _log(arguments: Arguments, level: str, text: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if arguments.log_format == "json":
        line = json_text.dumps({"level": level, "msg": text, "time": stamp})
    else:
        line = f'time="{stamp}" level={level} msg={json_text.dumps(text)}'
    with open(arguments.log, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def _debug(arguments: Arguments, text: str) -> None:
    """To standard error where there is no log, as runc does."""
    if arguments.log:
        _log(arguments, "debug", text)
    else:
        print(f"kubelet-py-oci: {text}", file=sys.stderr)


def _complain(arguments: Arguments, problems: Sequence[str]) -> None:
    """Warnings: to the log; without one to standard error, unless that is a container's, which would take
    them for its own words: then to the file `warnings` beside the container's state."""
    for problem in problems:
        if arguments.log:
            _log(arguments, "warning", problem)
        elif arguments.command in ("create", "exec") and not os.isatty(2):
            Store(arguments.root).note(arguments.id, problem)
        else:
            print(f"kubelet-py-oci: {problem}", file=sys.stderr)


def _runtime(arguments: Arguments) -> Runtime:
    """Who makes cgroups is asked for by those commands that make some; a container knows who made its own."""
    manager = cgroups.SYSTEMD if arguments.systemd_cgroup else arguments.cgroup_manager
    if arguments.command not in ("create", "run"):
        manager = cgroups.CGROUPFS
    return Runtime(Store(arguments.root), LinuxKernel(), cgroups.choose(manager))


def _options(arguments: Arguments) -> Options:
    sockets = _sockets() if arguments.command != "exec" else 0
    return Options(
        arguments.console_socket, arguments.pid_file, arguments.preserve_fds + sockets,
        getattr(arguments, "no_pivot", False), not getattr(arguments, "no_new_keyring", False), sockets,
        os.environ.get("NOTIFY_SOCKET", ""),
        stays=arguments.command == "run" and not arguments.detach,
    )  # fmt: skip


def _sockets() -> int:
    """How many sockets, from descriptor 3 on, systemd gave to this very process (sd_listen_fds(3)); they are
    for the container, as with runc and crun."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return 0
    return int(count)


def _need_console(arguments: Arguments, terminal: bool) -> None:
    """Who does not stay has to hand the terminal to somebody."""
    if terminal and not arguments.console_socket:
        raise StateError(f"Could not {arguments.command}: there is a terminal (give --console-socket)")


def _create(arguments: Arguments) -> int:
    config = read_config(arguments.bundle, arguments.config)
    _need_console(arguments, bool((config.get("process") or {}).get("terminal")))
    _, process = _runtime(arguments).create(arguments.id, arguments.bundle, config, _options(arguments))
    _complain(arguments, process.warnings)
    return 0


def _run(arguments: Arguments) -> int:
    config = read_config(arguments.bundle, arguments.config)
    if arguments.detach:
        _need_console(arguments, bool((config.get("process") or {}).get("terminal")))
    runtime = _runtime(arguments)
    container, process = runtime.run(arguments.id, arguments.bundle, config, _options(arguments))
    _complain(arguments, process.warnings)
    if arguments.detach:
        return 0
    code = _attend(arguments, process)
    if not arguments.keep:
        _complain(arguments, runtime.remove(container))
    return code


def _attend(arguments: Arguments, process: Process) -> int:
    """Stays until the process has ended; signals that ask us to end go to it. Its exit code."""
    for number in (signals.SIGTERM, signals.SIGINT, signals.SIGHUP, signals.SIGQUIT):
        signals.handle(number, lambda got, _frame: _pass(process.pid, got))
    if process.console >= 0 and not arguments.console_socket:
        from runtime.oci_console import relay

        gc.enable()
        relay(process.console)
    return wait(process)


def _pass(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _start(arguments: Arguments) -> int:
    notify = os.environ.get("NOTIFY_SOCKET", "")
    _runtime(arguments).start(arguments.id, Options(notify=notify))
    return 0


def _state(arguments: Arguments) -> int:
    print(json_text.pretty(_runtime(arguments).state(arguments.id)))
    return 0


def _pause(arguments: Arguments) -> int:
    _runtime(arguments).freeze(arguments.id, True)
    return 0


def _resume(arguments: Arguments) -> int:
    _runtime(arguments).freeze(arguments.id, False)
    return 0


def _ps(arguments: Arguments) -> int:
    pids = _runtime(arguments).processes(arguments.id)
    if arguments.format == "json":
        print(json_text.dumps(pids))
        return 0
    from runtime.oci_documents import process_table

    for line in process_table(pids, arguments.options):
        print(line)
    return 0


def _kill(arguments: Arguments) -> int:
    try:
        # 0 is none: whether the process is there is asked, and nothing more.
        number = 0 if arguments.signal == "0" else signals.number(arguments.signal or "SIGTERM")
    except ValueError:
        raise StateError(f"Could not send signal {arguments.signal!r}: no such signal") from None
    _runtime(arguments).kill(arguments.id, number, everyone=arguments.all)
    return 0


def _delete(arguments: Arguments) -> int:
    _complain(arguments, _runtime(arguments).delete(arguments.id, force=arguments.force))
    return 0


def _list(arguments: Arguments) -> int:
    runtime = _runtime(arguments)
    containers = runtime.store.all()
    if arguments.quiet:
        for container in containers:
            print(container.id)
        return 0
    states = [runtime.described(container) for container in containers]
    if arguments.format == "json":
        print(json_text.dumps(states))
        return 0
    print(f"{'ID':<20} {'PID':<8} {'STATUS':<10} {'BUNDLE':<40} {'CREATED':<22} OWNER")
    for s in states:
        print(
            f"{s['id']:<20} {s['pid']:<8} {s['status']:<10} {s['bundle']:<40} {s['created']:<22} {s['owner']}"
        )
    return 0


def _update(arguments: Arguments) -> int:
    from runtime.oci_usage import wanted

    _runtime(arguments).update(arguments.id, wanted(arguments))
    return 0


def _events(arguments: Arguments) -> int:
    from runtime.oci_usage import follow, seconds, stats

    runtime = _runtime(arguments)
    container = runtime.store.load(arguments.id)
    if runtime.store.status(container) == STOPPED:
        raise StateError(f"Could not tell events of container {container.id}: it is not running")
    cgroup = runtime.cgroup(arguments.id)
    if arguments.stats:
        print(json_text.dumps(stats(arguments.id, cgroup)))
        return 0
    gc.enable()  # what oci_launcher.py writes starts without
    follow(
        arguments.id,
        cgroup,
        lambda: runtime.store.status(container) != STOPPED,
        lambda event: print(json_text.dumps(event), flush=True),
        seconds(arguments.interval),
    )
    return 0


def _exec(arguments: Arguments) -> int:
    from runtime.oci_exec import below, wanted

    runtime = _runtime(arguments)
    process = parse_process(wanted(arguments, runtime.store.load(arguments.id).config["process"]))
    if arguments.detach:
        _need_console(arguments, process.terminal)
    if arguments.console_socket and not process.terminal:
        raise StateError("Could not exec: there is a console socket, but no terminal (give --tty)")
    started = runtime.exec(
        arguments.id, process, _options(arguments), below(arguments.cgroup), paused=arguments.ignore_paused
    )
    _complain(arguments, started.warnings)
    return 0 if arguments.detach else _attend(arguments, started)


def _spec(arguments: Arguments) -> int:
    from runtime.oci_documents import example_config

    path = os.path.join(arguments.bundle, "config.json")
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(json_text.pretty(example_config()) + "\n")
    except FileExistsError:
        raise StateError(f"Could not write {path}: it exists (remove it first)") from None
    except OSError as error:
        raise StateError(f"Could not write {path}: {errno_name(error.errno or 0)}") from error
    return 0


def _features(_arguments: Arguments) -> int:
    from runtime.oci_documents import features

    print(json_text.pretty(features()))
    return 0


COMMANDS = {
    "create": _create, "run": _run, "start": _start, "state": _state, "kill": _kill, "delete": _delete,
    "pause": _pause, "resume": _resume, "ps": _ps, "list": _list, "events": _events, "update": _update,
    "exec": _exec, "spec": _spec, "features": _features,
}  # fmt: skip


if __name__ == "__main__":
    program()
