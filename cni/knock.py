"""What one of our plugin programs does first: ask the agent to do the work, and do it here if there is none.

Starting Python takes some 10 ms, importing the plugins' modules as long again; a running agent has both
behind it, and knows besides which rules are there. So a program hands its standard streams and its CNI_*
variables to the agent's socket beside it (see `warm`) and waits for the exit status. Only built-in modules
are imported on that way.
"""

import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, error, socket
from posix import environ

SOCKET = ".warm"
REFUSED, ACCEPTED = b"r", b"a"


def main(kind: str, folder: str) -> int:
    """Exit status of the plugin `kind`, whose program lies in `folder`."""
    variables = [key + b"=" + value for key, value in environ.items() if key.startswith(b"CNI_")]
    if variables:
        status = _ask(folder, b"\0".join([kind.encode(), *variables]))
        if status is not None:
            return status
    from cni.skeleton import main as work_here

    return work_here(kind, folder)


def _ask(folder: str, message: bytes) -> "int | None":
    """The status that the agent answered; None when it is not there or not for us: then stdin is unread."""
    channel = socket(AF_UNIX, SOCK_SEQPACKET)
    try:
        channel.connect(f"{folder}/{SOCKET}")
        streams = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1))
        channel.sendmsg([message], [(SOL_SOCKET, SCM_RIGHTS, streams)])
        if channel.recv(1) != ACCEPTED:
            return None
    except error:
        return None
    try:
        answer = channel.recv(1)
    except error:
        answer = b""
    if answer:
        return answer[0]
    words = "Could not finish: the agent stopped (try again)"
    sys.stdout.write('{"cniVersion":"1.1.0","code":11,"msg":"%s"}\n' % words)  # noqa: UP031
    return 1
