"""Keeps a node's pods silent from boot on until the policies are known.

A policy holds from a pod's first packet because the table drops what it has not judged. After a boot there is
no table, and pods may run before the API server has told of any policy. So a file says, over the boot, that
there are policies and which addresses are this node's pods'; whoever starts first (`kubelet-py up`, or the
proxy) puts in the table with nobody known. Where both are there, the table is a former life's, and holds.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from proxy.nfnetlink import NfTables, NftError
from proxy.policy import table
from proxy.policy.rules import Wanted

log = logging.getLogger(__name__)


class Gate:
    """`file` None: nothing is remembered, and pods may speak before their policies are known."""

    def __init__(self, file: Path | None, open_tables: Callable[[], NfTables] = NfTables) -> None:
        self._file = file
        self._open = open_tables
        self._ranges: tuple[str, ...] | None = None

    def close(self) -> bool:
        """Before the first pod: whether the pods are silent now because of a file and no table."""
        ranges = self._read()
        if not ranges:
            return False
        try:
            with self._open() as kernel:
                if table.TABLE in kernel.tables():
                    return False
                kernel.commit(table.replace(table.layout(Wanted(ranges=ranges))))
        except NftError as error:
            log.error("Failed to keep pods silent until policies are known err=%s", error)
            return False
        log.info("Kept pods silent until policies are known ranges=%s", ",".join(ranges))
        return True

    def remember(self, ranges: tuple[str, ...]) -> None:
        """There are policies, and these are the ranges of the node's pods. Raises OSError."""
        if self._file is None or not ranges or ranges == self._ranges:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        new = self._file.with_name(self._file.name + ".new")
        with new.open("w") as output:
            output.write(json.dumps({"podCIDRs": ranges}) + "\n")
            output.flush()
            os.fsync(output.fileno())
        new.replace(self._file)
        self._ranges = ranges

    def forget(self) -> None:
        """There are none. Raises OSError."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._ranges = None

    def _read(self) -> tuple[str, ...]:
        if self._file is None:
            return ()
        try:
            return tuple(str(text) for text in json.loads(self._file.read_text())["podCIDRs"])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.error("Failed to read whether there were policies file=%s err=%s", self._file, error)
            return ()


NO_GATE = Gate(None)
