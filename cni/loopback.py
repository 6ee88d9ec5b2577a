"""Brings `lo` up inside a container's network namespace, which the kernel creates it down in."""

from __future__ import annotations

import sys

from cni.errors import PluginFailure
from cni.netlink import Netlink
from cni.netns import left_behind, opened
from cni.rtnetlink import set_link
from cni.types import IP, Interface, Request, Result

_LO = 1  # the loopback device of every namespace has ifindex 1


class Loopback:
    def add(self, request: Request) -> Result:
        """Set lo up; a previous plugin's result passes through unchanged (SPEC section 4)."""
        with opened(request.netns) as netns, Netlink(netns) as inside:
            inside.batch([set_link(_LO, up=True)])
            addresses = inside.addresses(_LO)
        if request.prev_result is not None:
            return request.prev_result
        return Result(
            interfaces=(Interface("lo", mac="00:00:00:00:00:00", sandbox=request.netns),),
            ips=tuple(IP(a.address, interface=0) for a in addresses),
        )

    def delete(self, request: Request) -> None:
        """Set lo down; a namespace that is gone, or is our own by a reused pid, is left alone."""
        if not request.netns:
            return
        with left_behind(request.netns) as netns:
            if netns is not None:
                with Netlink(netns) as inside:
                    inside.batch([set_link(_LO, up=False)])

    def check(self, request: Request) -> None:
        with opened(request.netns) as netns, Netlink(netns) as inside:
            link = inside.link(_LO)
        if link is None or not link.up:
            raise PluginFailure("Could not find lo up in the container's network namespace")

    def gc(self, request: Request) -> None:
        """Nothing outlives a namespace here."""

    def status(self, request: Request) -> None:
        """Always ready."""


if __name__ == "__main__":
    from cni.skeleton import main

    sys.exit(main("loopback"))
