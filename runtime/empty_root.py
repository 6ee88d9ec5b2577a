"""A mount namespace with nothing in it, made once, of which every pod's pause gets a copy.

Otherwise each pause would copy the host's mounts only to leave them: pivot_root looks at every thread of the
host, and detaching the old root waits for an RCU grace period (0.2 ms each, milliseconds on a busy machine).
A copy of this one is a copy of two mounts: a tmpfs, read-only, in which nothing can be made, over the
kernel's initramfs, which no mount namespace is without. It is the agent's, held by a descriptor; what was
copied from it stays when it goes.
"""

from __future__ import annotations

import logging
import os

from runtime.kernel import Kernel
from runtime.mounts import EmptyRoot, PivotRoot, SetPropagation
from runtime.namespaces import CLONE_FS, FLAGS
from runtime.own_thread import in_thread_of_its_own
from runtime.plan import NO_STDIO, Context

log = logging.getLogger(__name__)


class EmptyNamespace:
    """Made when it is constructed; `path` is good until `close`. Raises OSError."""

    def __init__(self, kernel: Kernel) -> None:
        self._descriptor = -1
        in_thread_of_its_own(lambda: self._make(kernel))
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @classmethod
    def of(cls, kernel: Kernel) -> EmptyNamespace | None:
        """None where it cannot be made: then each pause makes its own, or tells why not."""
        try:
            return cls(kernel)
        except OSError as error:
            log.warning("Could not make an empty mount namespace, left it to each pod error=%s", error)
            return None

    def _make(self, kernel: Kernel) -> None:
        kernel.unshare(CLONE_FS | FLAGS["mount"])
        context = Context(NO_STDIO, False)
        made = kernel.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
        try:
            for operation in (SetPropagation("rprivate"), EmptyRoot(), PivotRoot()):
                operation.run(kernel, context)
        except BaseException:
            kernel.close(made)
            raise
        finally:
            context.close(kernel)
        self._descriptor = made

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
