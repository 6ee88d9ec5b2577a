"""PURE: which of a pod's files lie on the disk that runs short, and what of the node's own does.

A node may keep its images on a file system of their own (imagefs), with the containers' writable layers or
without them. Whoever ends a pod for a disk that has none of its files gains nothing. Source: upstream's
pkg/kubelet/eviction/helpers.go (buildSignalToRankFunc, buildSignalToNodeReclaimFuncs). As there, a pod has no
share in images, and its logs count as the node's disk.
"""

from __future__ import annotations

from enum import Enum, auto

from kubelet_py.node.thresholds import IMAGE_FS, IMAGE_INODES, NODE_FS, NODE_INODES

LAYERS, LOGS, VOLUMES = "layers", "logs", "volumes"
EVERYTHING = frozenset({LAYERS, LOGS, VOLUMES})
CONTAINERS, IMAGES = "containers", "images"

_NODE, _IMAGE = (NODE_FS, NODE_INODES), (IMAGE_FS, IMAGE_INODES)


class Disks(Enum):
    """What shares a file system."""

    ONE = auto()
    IMAGES_AND_LAYERS_APART = auto()
    IMAGES_APART = auto()


def laid_out(node: int, images: int, containers: int) -> Disks:
    """By the numbers of the devices that the state's, the images' and the containers' folders are on."""
    if images == node:
        return Disks.ONE
    return Disks.IMAGES_AND_LAYERS_APART if containers == images else Disks.IMAGES_APART


def counted(disks: Disks, signal: str) -> frozenset[str]:
    """The parts of a pod's files that a signal of some disk is about."""
    if disks is Disks.IMAGES_AND_LAYERS_APART:
        return EVERYTHING - {LAYERS} if signal in _NODE else frozenset({LAYERS})
    if disks is Disks.IMAGES_APART and signal in _IMAGE:
        return frozenset()
    return EVERYTHING


def reclaimable(disks: Disks, signal: str) -> frozenset[str]:
    """What of the node's own may go before a pod does: dead containers, unused images."""
    if disks is Disks.IMAGES_AND_LAYERS_APART:
        return frozenset() if signal in _NODE else frozenset({CONTAINERS, IMAGES})
    if disks is Disks.IMAGES_APART:
        return frozenset({IMAGES} if signal in _IMAGE else {CONTAINERS})
    return frozenset({CONTAINERS, IMAGES})
