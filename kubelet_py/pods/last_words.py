"""A container's termination message: what it left in its file, or its log's end where its policy says so.

Both are read from their end, as upstream does (kuberuntime's getTerminationMessage, tail.ReadAtMost). The
files lie where a container or whoever mounts the folder can write: nothing about them is trusted.
"""

from __future__ import annotations

import os
from pathlib import Path

from kubelet_py.pods.model import ANNOTATION_MESSAGE_FILE, ANNOTATION_MESSAGE_POLICY
from runtime.service import Container

FILE_BYTES = 4096
LOG_BYTES = 2048
LOG_LINES = 80
# A line of a CRI log has its time, stream and tag before it, and may be cut into many.
LOG_READ = 16 * LOG_BYTES


def of(container: Container) -> str:
    """The message of a container that has ended: the runtime's own, if any, and then the container's."""
    annotations = container.config.annotations
    file = annotations.get(ANNOTATION_MESSAGE_FILE)
    text = _end(Path(file), FILE_BYTES).decode(errors="replace") if file else ""
    fallback = annotations.get(ANNOTATION_MESSAGE_POLICY) == "FallbackToLogsOnError"
    if not text and fallback and container.exit_code:
        text = log_end(_end(Path(container.config.log_path), LOG_READ).decode(errors="replace"))
    return ": ".join(part for part in (container.message, text) if part)


def log_end(cri_log: str) -> str:
    """The messages of the last lines of a CRI log: at most 80 lines and 2048 bytes."""
    whole = []
    # Only "\n" ends a line: what else looks like an end (a progress bar's "\r") is the container's.
    for line in cri_log.removesuffix("\n").split("\n")[-LOG_LINES:]:
        _, _, rest = line.partition(" ")
        _, _, rest = rest.partition(" ")
        tag, found, message = rest.partition(" ")
        if found:
            whole.append(message + ("" if tag.startswith("P") else "\n"))
    return "".join(whole).encode()[-LOG_BYTES:].decode(errors="ignore")


def _no_link(path: str, flags: int) -> int:
    # Whoever can write to our folders (a hostPath volume) must not have us read another file of the host, nor
    # wait for ever on a FIFO.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _end(file: Path, most: int) -> bytes:
    """The last bytes of a file; nothing for one that is not there or cannot be read."""
    try:
        with open(file, "rb", opener=_no_link) as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - most))
            return stream.read(most)
    except OSError:
        return b""
