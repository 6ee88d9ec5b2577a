"""What a reclaim takes, and that the disk has it back before anybody looks: else a pod goes for nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from pods_in_words import NOW, down, pod, up, view

from kubelet_py.config import Config
from kubelet_py.node.disks import Disks
from kubelet_py.node.guard import CLEARING_SECONDS, Guard
from kubelet_py.node.signals import Signals
from kubelet_py.node.thresholds import IMAGE_FS, NODE_FS, Amount, Threshold
from kubelet_py.paths import NodePaths
from kubelet_py.pods.model import PodView
from kubelet_py.pods.record import PodRecord


class Runtime:
    def __init__(self) -> None:
        self.steps: list[str] = []

    def remove_container(self, container_id: str) -> None:
        self.steps.append(f"remove {container_id}")

    def wait_for_removals(self, seconds: float) -> bool:
        self.steps.append(f"wait {seconds:g}")
        return True


def record(uid: str, **more: Any) -> PodRecord:
    body = pod()
    return PodRecord({**body, "metadata": {**body["metadata"], "uid": uid}}, NOW, **more)


def guard(
    folder: Path, runtime: Runtime, views: dict[str, PodView], remove_log: Callable[[str], None]
) -> Guard:
    nothing = cast(Any, None)
    return Guard(
        config=Config(),
        paths=NodePaths(folder),
        machine=nothing,
        cgroups=nothing,
        runtime=cast(Any, runtime),
        records=lambda: [record("over", cleaned=True), record("crashing")],
        view=views.__getitem__,
        wake=lambda uid: None,
        volumes=lambda pod: {},
        reclaim_images=lambda: runtime.steps.append("images"),
        remove_log=remove_log,
        event=lambda *event: None,
        tell=lambda *event: None,
        changed=lambda: None,
    )


def test_a_reclaim_removes_what_is_over_with_its_logs_and_waits_until_it_is_gone(tmp_path: Path) -> None:
    views = {"over": view(down(), up("late")), "crashing": view(down("crashed"))}
    runtime = Runtime()
    made = guard(tmp_path, runtime, views, lambda identifier: runtime.steps.append(f"log {identifier}"))
    made.reclaim(Threshold(NODE_FS, Amount(1)))
    assert runtime.steps == ["log c-0", "remove c-0", "images", f"wait {CLEARING_SECONDS:g}"]


def test_a_reclaim_for_a_disk_without_images_leaves_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime()
    made = guard(tmp_path, runtime, {"over": view(down())}, lambda identifier: None)
    for layout, signal, steps in (
        (Disks.IMAGES_APART, NODE_FS, ["remove c-0"]),
        (Disks.IMAGES_APART, IMAGE_FS, ["images"]),
        (Disks.IMAGES_AND_LAYERS_APART, NODE_FS, []),
    ):
        runtime.steps.clear()
        monkeypatch.setattr(Signals, "disks", lambda self, layout=layout: layout)
        made.reclaim(Threshold(signal, Amount(1)))
        assert runtime.steps == [*steps, f"wait {CLEARING_SECONDS:g}"]


def test_a_log_that_stays_keeps_the_node_from_nothing(tmp_path: Path) -> None:
    def stays(identifier: str) -> None:
        raise OSError(errno.EIO, "Input/output error", "/var/log/pods/x/0.log")

    runtime = Runtime()
    guard(tmp_path, runtime, {"over": view(down())}, stays).reclaim(Threshold(NODE_FS, Amount(1)))
    assert runtime.steps == ["images", f"wait {CLEARING_SECONDS:g}"]
