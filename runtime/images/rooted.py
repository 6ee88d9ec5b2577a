"""Opening folders below a folder as if it were the root of the file system.

openat2(RESOLVE_IN_ROOT) makes the kernel itself resolve symbolic links, absolute ones and `..` included,
inside the folder (Linux 5.6). The number of the call is the same on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import os

_SYS_OPENAT2 = 437
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x01, 0x02, 0x10
_CONFINED = _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS | _RESOLVE_IN_ROOT

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(root: int, path: bytes) -> int:
    """A descriptor (O_PATH) of the folder `path` below the folder `root`; raises OSError."""
    how = _OpenHow(os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _CONFINED)
    for _ in range(100):
        found = _libc.syscall(
            _SYS_OPENAT2, root, ctypes.c_char_p(path), ctypes.byref(how), ctypes.sizeof(how)
        )
        if found >= 0:
            return int(found)
        number = ctypes.get_errno()
        if number != errno.EAGAIN:  # EAGAIN: a rename or mount somewhere made `..` uncertain
            break
    raise OSError(number, os.strerror(number), os.fsdecode(path))
