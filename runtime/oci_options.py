"""What the caller of create, run and exec wants besides the configuration: checked, and handed over."""

from __future__ import annotations

import os
import sys

from runtime import json_text
from runtime.errors import SpecError, StateError, errno_name
from runtime.records import Record, replaced

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.launch import Process
    from runtime.spec import ProcessSpec, Spec


class Options(Record):
    """What the caller of create, run and exec wants besides the configuration. `preserve_fds`: how many
    descriptors from 3 on the process keeps. `sockets`: how many of them, the first ones, are systemd's for
    it. `notify`: systemd's socket for who is ready (oci_notify.py); `stays`: the caller of run does, and need
    not wait for that."""

    console_socket: str = ""
    pid_file: str = ""
    preserve_fds: int = 0
    no_pivot: bool = False
    new_keyring: bool = True
    sockets: int = 0
    notify: str = ""
    stays: bool = False


PLAIN = Options()


def activated(process: ProcessSpec, sockets: int) -> ProcessSpec:
    """Told of the sockets that it is started with (sd_listen_fds(3)); it is the first process of its own."""
    if not sockets:
        return process
    names = ("LISTEN_FDS=", "LISTEN_PID=")
    env = [entry for entry in process.env if not entry.startswith(names)]
    return replaced(process, env=(*env, f"LISTEN_FDS={sockets}", "LISTEN_PID=1"))


def check_descriptors(count: int) -> None:
    """What is to be kept must have been handed to us; one of our own would be a leak."""
    if not count:
        return
    import fcntl

    for fd in range(3, 3 + count):
        try:
            own = fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        except OSError:
            own = 1
        if own:
            raise StateError(f"Could not keep descriptor {fd}: it is not open (see --preserve-fds)")


def read_object(path: str, *, stdin: bool = False) -> dict[str, Any]:
    """The JSON object in a file that a flag names; with `stdin`, "-" stands for standard input. Raises
    StateError."""
    try:
        if stdin and path == "-":
            found = json_text.loads(sys.stdin.read())
        else:
            with open(path, encoding="utf-8") as file:
                found = json_text.loads(file.read())
    except OSError as error:
        raise StateError(f"Could not read {path}: {errno_name(error.errno or 0)}") from error
    except ValueError as error:
        raise StateError(f"Could not read {path}: it is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise StateError(f"Could not read {path}: an object is needed")
    return found


def check_options(spec: Spec, options: Options) -> None:
    check_descriptors(options.preserve_fds)
    if spec.root is None:
        raise SpecError("root", "is missing")
    if spec.process is None:
        raise SpecError("process", "is missing")
    if options.console_socket and not spec.process.terminal:
        raise SpecError("process.terminal", "is false, but a console socket was given")


def deliver_console(process: Process, console_socket: str) -> None:
    """Hands the terminal's master side over, as callers of runc expect: one descriptor, its name as data."""
    if process.console < 0 or not console_socket:
        return
    import socket  # 2 ms, for callers with a console socket alone

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        try:
            channel.connect(console_socket)
        except OSError as error:
            name = errno_name(error.errno or 0)
            raise StateError(f"Could not connect to console socket {console_socket}: {name}") from error
        socket.send_fds(channel, [b"/dev/ptmx"], [process.console])
    os.close(process.console)


def write_pid_file(path: str, pid: int) -> None:
    """Whole or not at all: callers watch for the file. Raises StateError."""
    try:
        with open(f"{path}.new", "wb") as file:
            file.write(b"%d" % pid)
        os.rename(f"{path}.new", path)
    except OSError as error:
        raise StateError(f"Could not write the pid file {path}: {errno_name(error.errno or 0)}") from error
