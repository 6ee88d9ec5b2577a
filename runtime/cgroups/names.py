"""Where cgroups are when we make them ourselves: paths as they are given. Pure."""

from __future__ import annotations

import os

PREFIX = "kubelet-py-oci"


class PlainNames:
    """A group holds groups, or it is a pod's and has a home for the pod's containers. Here both are folders,
    and a group is its own home."""

    def group(self, *names: str) -> str:
        """The cgroup for a chain of names, outermost first."""
        return "/".join(names)

    def group_of(self, home: str) -> str:
        """The group that a home is in."""
        return home

    def container(self, cgroups_path: str, identity: str) -> str:
        """A container's cgroup by its config.json and its id."""
        return os.path.normpath(cgroups_path or f"/{PREFIX}-{identity}").strip("/")
