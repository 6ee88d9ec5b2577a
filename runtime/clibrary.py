"""Functions of the C library, called through the C half of ctypes.

Importing `ctypes` costs 2 ms: it defines some sixty types for everybody. The few that the runtime needs are
made here, of the same `_ctypes` that it is made of. ctypes drops the interpreter lock around each call, so a
thread that waits for a child's execve does not hold up the others; errno is kept per thread.
"""

from __future__ import annotations

import _ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_CDECL, _KEEP_ERRNO = 1, 8
_NOW = 2  # RTLD_NOW
PAGE = 4096

errno: Callable[[], int] = _ctypes.get_errno
_types: dict[str, Any] = {}


def kind(code: str) -> Any:
    """A C type by its code in the struct module: l long, P pointer (takes int, bytes, None), i int, L size_t,
    c char."""
    if code not in _types:
        _types[code] = type(f"c_{code}", (_ctypes._SimpleCData,), {"_type_": code})
    return _types[code]


def at(address: int, signature: str) -> Callable[..., int]:
    """The function at an address, by the codes of its result and of its arguments."""
    result, *arguments = (kind(code) for code in signature)
    values = {"_flags_": _CDECL | _KEEP_ERRNO, "_restype_": result, "_argtypes_": tuple(arguments)}
    made: Any = type("function", (_ctypes.CFuncPtr,), values)
    function: Callable[..., int] = made(address)
    return function


def libc(name: str, signature: str) -> Callable[..., int]:
    """A function of the C library. Raises OSError."""
    handle = _ctypes.dlopen(None, _NOW)  # type: ignore[arg-type]  # the program itself, libc included
    return at(_ctypes.dlsym(handle, name), signature)


_memmove = at(_ctypes._memmove_addr, "PPPL")  # type: ignore[attr-defined]


def write(address: int, data: bytes) -> None:
    """Puts `data` at an address."""
    _memmove(address, data, len(data))


def read(address: int, pages: int) -> bytes:
    """Whole pages from an address on."""
    # Array types are kept for ever, one for each length: that is why there are few.
    held: bytes = (kind("c") * (pages * PAGE)).from_address(address).raw
    return held


def word(address: int) -> int:
    """The signed 64-bit number at an address."""
    return int(kind("l").from_address(address).value)


def buffer(size: int) -> Any:
    """Memory that a function may write to; bytes() of it is what is there."""
    return (kind("c") * size)()


def held(data: bytes) -> Any:
    """Memory with a copy of `data`, for as long as what is returned is kept."""
    made = buffer(len(data))
    made.raw = data
    return made


def address(memory: Any) -> int:
    """Where a buffer is."""
    return int(_ctypes.addressof(memory))


class Number:
    """An int that the kernel writes to."""

    def __init__(self, value: int) -> None:
        self._held = kind("i")(value)
        self.address: int = _ctypes.addressof(self._held)

    @property
    def value(self) -> int:
        """What it is now."""
        return int(self._held.value)
