"""By which kubeconfig `up` asks whether the node is there."""

from __future__ import annotations

import json
from pathlib import Path

from kubelet_py.cli.readiness import _Client
from kubelet_py.paths import NodePaths


def write(file: Path, port: int) -> None:
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {}}],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(document))
    new.rename(file)


def test_one_client_is_kept_until_the_kubeconfig_is_another(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path)
    write(paths.kubeconfig("kubelet"), 1001)
    client = _Client(paths)
    joined = client.current()
    assert client.current() is joined
    write(paths.kubeconfig("kubelet"), 1002)
    moved = client.current()
    assert moved is not joined and client.current() is moved
    write(paths.kubeconfig("admin"), 1002)  # the administrator's counts first
    assert client.current() is not moved
    client.close()
