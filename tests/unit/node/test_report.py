"""What the Node's status says where a part of the agent cannot answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kubelet_py.config import Config
from kubelet_py.node.report import NodeReport
from kubelet_py.node.status import read_machine
from kubelet_py.pods.context import NodeFacts
from runtime.images.store import ImageStore


def test_images_that_cannot_be_read_do_not_keep_the_status_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts: dict[str, Any] = {
        "users": SimpleNamespace(supported=True),
        "network": SimpleNamespace(problem=lambda: None),
        "cni": SimpleNamespace(ours=lambda: True),
        "cgroups": SimpleNamespace(missing_features=list),
        "enforcement": SimpleNamespace(problems=()),
        "guard": SimpleNamespace(pressures=frozenset, shutting_down=lambda: False),
    }
    report = NodeReport(
        config=Config(),
        node=NodeFacts("n1", ("192.0.2.1",)),
        machine=read_machine(tmp_path),
        handlers=[""],
        images=ImageStore(tmp_path),
        **parts,
    )
    (tmp_path / "images.json").write_text("{ half a fi")
    said = report.status(1.0, {})
    assert said["images"] == [] and "Failed to list images" in caplog.text
    assert any(one["type"] == "Ready" and one["status"] == "True" for one in said["conditions"])
