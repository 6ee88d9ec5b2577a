from __future__ import annotations

import pytest

from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.up import require_overlay, require_wireguard


class Modules:
    """A kernel that has overlayfs after `load`, or never."""

    def __init__(self, *, loaded: bool, loadable: bool) -> None:
        self.loaded, self.loadable, self.asked = loaded, loadable, 0

    def known(self, name: str) -> bool:
        return self.loaded

    def load(self, name: str) -> str | None:
        self.asked += 1
        self.loaded = self.loadable
        return None if self.loadable else "FATAL: Module overlay not found"


def test_overlayfs_is_loaded_on_a_machine_that_has_just_booted() -> None:
    modules = Modules(loaded=False, loadable=True)
    require_overlay(modules.known, modules.load)
    assert modules.asked == 1


def test_nothing_is_loaded_where_overlayfs_is_known() -> None:
    modules = Modules(loaded=True, loadable=True)
    require_overlay(modules.known, modules.load)
    assert modules.asked == 0


def test_a_kernel_without_overlayfs_is_refused_with_the_reason() -> None:
    modules = Modules(loaded=False, loadable=False)
    with pytest.raises(CommandError, match="Module overlay not found"):
        require_overlay(modules.known, modules.load)


def test_a_kernel_that_cannot_encrypt_is_told_of_before_anything_is_made() -> None:
    with pytest.raises(CommandError, match=r"this kernel has no WireGuard \(Error: Unknown"):
        require_wireguard(lambda: "Error: Unknown device type.")
    require_wireguard(lambda: "")
