"""Starts `kubelet-py-oci` from one file that holds the code of all its modules.

A command that lives for 15 ms cannot spend 8 of them on looking for its modules: path entries are listed,
sources and bytecode files are examined and read, forty times. oci_launcher.py has put the code into one file
instead, in the order of their imports; this is the program at its head. A module whose source is not as it
was then, by time or size, is not trusted, and then none is: the ordinary import does it all.
"""

from __future__ import annotations

import gc
import sys
from _frozen_importlib_external import ExtensionFileLoader
from marshal import loads
from posix import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any

    # name, its source file, time (ns) and size of that, the folder of a package or "", its code
    Module = tuple[str, str, int, int, str, CodeType]
    Packed = tuple[str, str, int, int, str, bytes]


def boot(eager: tuple[Module, ...], lazy: tuple[Packed, ...], extensions: dict[str, str]) -> None:
    """Imports the eager modules, in order; the lazy ones are loaded from here when they are asked for, and
    extension modules from the files named."""
    for _, path, time, size, _, _ in (*eager, *lazy):
        try:
            found = stat(path)
        except OSError:
            return
        if found.st_mtime_ns != time or found.st_size != size:
            return
    modules = sys.modules
    kind = type(sys)
    for name, path, _, _, folder, _ in eager:
        module = modules[name] = kind(name)
        module.__file__ = path
        module.__package__ = name if folder else name.rpartition(".")[0]
        if folder:
            module.__path__ = [folder]
    sys.meta_path.insert(0, Later({module[0]: module for module in lazy}, extensions))
    for name, _, _, _, _, code in eager:
        exec(code, modules[name].__dict__)
        parent, _, tail = name.rpartition(".")
        if parent:
            setattr(modules[parent], tail, modules[name])
    gc.freeze()


class Later:
    """Finds and loads the modules that only some commands need."""

    def __init__(self, modules: dict[str, Packed], extensions: dict[str, str]) -> None:
        self._modules = modules
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
        if name not in self._modules:
            return None
        _, path, _, _, folder, _ = self._modules[name]
        spec = kind(name, self, origin=path, is_package=bool(folder))
        spec.has_location = True
        if folder:
            spec.submodule_search_locations = [folder]
        return spec

    def create_module(self, _spec: object) -> None:
        """As importlib wants it: an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Runs its code."""
        exec(loads(self._modules[module.__name__][5]), module.__dict__)
