"""Which version of kubelet-py this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """The installed version; "" of a checkout that nobody installed, which runs all the same."""
    try:
        return version("kubelet-py")
    except PackageNotFoundError:
        return ""
