"""What systemd hears of a container that says that it is ready, and the container's words (sd_notify(3))."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

SAYS = (
    "import os, signal, socket, time; signal.signal(15, lambda *_: os._exit(5)); "
    "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); "
    "s.connect(os.environ['NOTIFY_SOCKET']); s.send(b'STATUS=soon'); time.sleep(0.3); "
    "s.send(b'STOPPING=1\\nREADY=1\\nFDSTORE=1'); time.sleep(1000)"
)


class Systemd:
    """What a unit's manager hears. A barrier is let go at once."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "systemd.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)

    def heard(self, seconds: float = 60) -> list[str]:
        """All up to a barrier, or until nothing comes any more."""
        found: list[str] = []
        while select.select([self._socket], [], [], seconds)[0]:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 4)
            for descriptor in descriptors:
                os.close(descriptor)
            found.append(data.decode())
            if descriptors:
                break
        return found

    def close(self) -> None:
        self._socket.close()
