"""Starts `kubelet-py-oci` from one file that holds the code of all its modules.

A command that lives for 15 ms cannot spend 8 of them on looking for its modules: path entries are listed,
sources and bytecode files are examined and read, forty times. oci_launcher.py has put the code into one file
instead, in the order of their imports; this is the program at its head. A module whose source is not as it
was then, by time or size, is not trusted, and then none is: the ordinary import does it all. Modules that
only some commands import lie in a file of their own, and are looked at one by one when they are asked for
(as all late imports, never by a set-up thread, for which paths may mean the container's files).
"""

from __future__ import annotations

import gc
import sys
from _frozen_importlib_external import MAGIC_NUMBER, ExtensionFileLoader
from marshal import loads
from posix import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any

    # name, its source file, time (ns) and size of that, the folder of a package or "", its code
    Module = tuple[str, str, int, int, str, CodeType]
    Packed = tuple[str, str, int, int, str, bytes]


def boot(
    eager: tuple[Module, ...],
    beside: dict[str, Packed],
    late: str,
    lazy: frozenset[str],
    extensions: dict[str, str],
) -> None:
    """Imports the eager modules, in order. What they need `beside` is at hand; the lazy ones are loaded from
    the file `late` when they are asked for, and extension modules from the files named."""
    if not all(same(path, time, size) for _, path, time, size, _, _ in eager):
        return
    modules = sys.modules
    kind = type(sys)
    for name, path, _, _, folder, _ in eager:
        module = modules[name] = kind(name)
        module.__file__ = path
        module.__package__ = name if folder else name.rpartition(".")[0]
        if folder:
            module.__path__ = [folder]
    sys.meta_path.insert(0, Later(beside, late, lazy, extensions))
    for name, _, _, _, _, code in eager:
        exec(code, modules[name].__dict__)
        parent, _, tail = name.rpartition(".")
        if parent:
            setattr(modules[parent], tail, modules[name])
    gc.freeze()


def same(path: str, time: int, size: int) -> bool:
    """Whether a source file is as it was when its code was put away."""
    try:
        found = stat(path)
    except OSError:
        return False
    return found.st_mtime_ns == time and found.st_size == size


class Later:
    """Finds and loads the modules that only some commands need."""

    def __init__(
        self, modules: dict[str, Packed], late: str, lazy: frozenset[str], extensions: dict[str, str]
    ) -> None:
        self._modules = modules
        self._late = late
        self._lazy = lazy
        self._extensions = extensions

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> Any:
        """As importlib wants it."""
        kind: Any = type(sys.__spec__)
        if name in self._extensions:
            path = self._extensions[name]
            try:
                stat(path)
            except OSError:
                return None
            return kind(name, ExtensionFileLoader(name, path), origin=path)
        if name in self._lazy:
            self._read()
        if name not in self._modules:
            return None
        _, path, time, size, folder, _ = self._modules[name]
        if not same(path, time, size):
            return None
        spec = kind(name, self, origin=path, is_package=bool(folder))
        spec.has_location = True
        if folder:
            spec.submodule_search_locations = [folder]
        return spec

    def _read(self) -> None:
        """Adds what the file has; nothing if it is not there or another interpreter's."""
        self._lazy = frozenset()
        try:
            with open(self._late, "rb", 0) as file:
                magic, data = file.read(4), file.read()
        except OSError:
            return
        if magic == MAGIC_NUMBER:
            self._modules |= loads(data)

    def create_module(self, _spec: object) -> None:
        """As importlib wants it: an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Runs its code."""
        exec(loads(self._modules[module.__name__][5]), module.__dict__)
