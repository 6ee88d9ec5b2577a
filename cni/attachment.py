"""What a container was attached with, and what ADD answered, on disk until DEL.

File names and content are those of libcni's cache, version 1. Nothing is synced: after a power cut no
container lives, and a file that is then empty is as good as none; DEL goes by the present configuration.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cni.conflist import NetworkList
from cni.errors import IoFailure
from cni.types import Result

Capabilities = Mapping[str, Any]


class Attachment:
    """One cached attachment: what was asked for and, once ADD is done, what it answered."""

    def __init__(
        self,
        folder: Path,
        network: NetworkList,
        container_id: str,
        ifname: str,
        args: dict[str, str],
        capabilities: Capabilities,
    ) -> None:
        self.network = network
        self.container_id = container_id
        self.ifname = ifname
        self.args = args
        self.capabilities = dict(capabilities)
        self._folder = folder
        self._name = f"{network.name}-{container_id}-{ifname}"
        self._path = f"{folder}/{self._name}"

    def begin(self) -> None:
        """Note on disk what is asked for, without a result."""
        head = self._head()
        fresh = f"{self._folder}/.{self._name}.new"
        try:
            os.makedirs(self._folder, exist_ok=True)
            _write(fresh, os.O_CREAT | os.O_TRUNC, head + b"null}\n")
            os.rename(fresh, self._path)
        except OSError as error:
            raise IoFailure(f"Could not write the CNI result {self._path}", str(error)) from error

    def finish(self, result: Result) -> None:
        """Put the result in the place that `begin` left for it, the end of the file.

        A new file in the old one's place would be 0.3 ms more: ext4 then writes it out at once. A writer that
        is killed in between leaves the first line whole, which says what is to be undone.
        """
        tail = json.dumps(result.to_json(self.network.version)).encode() + b"}\n"
        try:
            _write(self._path, 0, tail, at=len(self._head()))
        except OSError as error:
            raise IoFailure(f"Could not write the CNI result {self._path}", str(error)) from error

    def _head(self) -> bytes:
        """One line, and the key on the next."""
        body = {
            "kind": "cniCacheV1",
            "containerId": self.container_id,
            "ifName": self.ifname,
            "networkName": self.network.name,
            "cniArgs": [[key, value] for key, value in self.args.items()],
            "capabilityArgs": self.capabilities,
            "config": {
                "name": self.network.name,
                "cniVersion": self.network.version,
                "disableCheck": self.network.disable_check,
                "plugins": list(self.network.plugins),
            },
        }
        return json.dumps(body)[:-1].encode() + b',\n"result": '

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    @staticmethod
    def find(folder: Path, container_id: str, ifname: str) -> tuple[Attachment, Result | None] | None:
        suffix = f"-{container_id}-{ifname}"
        for path in _files(folder, suffix):
            try:
                body = _read(path)
                if body is None or body["containerId"] != container_id or body["ifName"] != ifname:
                    continue
                network = NetworkList.parse(body["config"])
                args = dict(body.get("cniArgs") or ())
                capabilities = dict(body.get("capabilityArgs") or {})
                result = Result.from_json(body["result"]) if body.get("result") else None
            except (OSError, ValueError, KeyError, TypeError) as error:
                text = f"Could not read the CNI result {path} (remove the file)"
                raise IoFailure(text, repr(error)) from error
            return Attachment(folder, network, container_id, ifname, args, capabilities), result
        return None

    @staticmethod
    def all(folder: Path) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for path in _files(folder):
            with contextlib.suppress(ValueError, KeyError):  # an unreadable file is DEL's to complain about
                if (body := _read(path)) is not None:
                    found.append((body["containerId"], body["ifName"]))
        return found


def _write(path: str, flags: int, data: bytes, *, at: int = 0) -> None:
    handle = os.open(path, flags | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        if os.pwrite(handle, data, at) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)


def _read(path: Path) -> dict[str, Any] | None:
    """A file's content; without the result if its writer was killed writing that; None of an empty one.
    Raises ValueError."""
    data = path.read_bytes()
    if not data.strip(b"\0"):
        return None
    try:
        body: dict[str, Any] = json.loads(data)
    except ValueError:
        head, line_end, _ = data.partition(b"\n")
        if not line_end:
            raise
        body = json.loads(head.rstrip(b",") + b"}")
    return body


def _files(folder: Path, suffix: str = "") -> list[Path]:
    try:
        names = os.listdir(folder)
        return [folder / name for name in names if name.endswith(suffix) and not name.startswith(".")]
    except FileNotFoundError:
        return []
