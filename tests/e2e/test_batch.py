"""Jobs and DaemonSets on a real node: numbers, sidecars, retries, and what kubectl says of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_node import Node, pod

pytestmark = pytest.mark.e2e


@pytest.fixture
def out(node: Node) -> Iterator[Path]:
    folder = node.root / "out"
    folder.mkdir(mode=0o777)
    yield folder
    shutil.rmtree(folder)


def template(line: str, out: Path | None = None, **spec: Any) -> dict[str, Any]:
    body = pod("x", ["sh", "-c", line], **spec)["spec"]
    if out is not None:
        body["volumes"] = [{"name": "out", "hostPath": {"path": str(out)}}]
        for container in body["containers"]:
            container["volumeMounts"] = [{"name": "out", "mountPath": "/out"}]
    return {"spec": body}


def job(name: str, line: str, out: Path | None = None, policy: str = "Never", **spec: Any) -> dict[str, Any]:
    body = {"template": template(line, out, restartPolicy=policy), **spec}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": body}


def completed(node: Node, name: str) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        status: dict[str, Any] = node.get("job", name).get("status") or {}
        done = any(c["type"] == "Complete" for c in status.get("conditions") or ())
        return status if done else None

    return dict(node.until(f"job {name} complete", there))


def test_each_number_runs_once_and_knows_itself(node: Node, out: Path) -> None:
    line = "echo $JOB_COMPLETION_INDEX $(hostname) >> /out/said; echo done $JOB_COMPLETION_INDEX"
    node.apply(job("numbers", line, out, completions=3, parallelism=2, completionMode="Indexed"))
    status = completed(node, "numbers")
    assert (status["succeeded"], status["completedIndexes"]) == (3, "0-2")
    said = sorted((out / "said").read_text().splitlines())
    assert said == ["0 numbers-0", "1 numbers-1", "2 numbers-2"]
    assert node.kubectl("logs", "job/numbers").out.startswith("done ")
    node.kubectl("delete", "job", "numbers")
    node.until("its pods are gone", lambda: not node.kubectl("get", "pods", "-o", "name").out)


def test_a_sidecar_does_not_keep_a_job_from_its_end(node: Node) -> None:
    body = job("sided", "echo work")
    spec = body["spec"]["template"]["spec"]
    side = {**spec["containers"][0], "name": "side", "restartPolicy": "Always"}
    side["command"] = ["sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait"]
    spec["initContainers"] = [side]
    node.apply(body)
    assert completed(node, "sided")["succeeded"] == 1
    node.kubectl("delete", "job", "sided")


def test_the_node_tries_again_what_failed(node: Node, out: Path) -> None:
    line = "test -e /out/tried && exit 0; touch /out/tried; exit 1"
    node.apply(job("again", line, out, policy="OnFailure", backoffLimit=3))
    status = completed(node, "again")
    assert (status["succeeded"], status.get("failed", 0)) == (1, 0)
    node.kubectl("delete", "job", "again")


def test_a_daemon_runs_here_and_is_replaced(node: Node) -> None:
    labels = {"app": "daemon"}
    body = template("trap 'exit 0' TERM; sleep 3600 & wait") | {"metadata": {"labels": labels}}
    spec = {"selector": {"matchLabels": labels}, "template": body}
    node.apply({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "daemon"}, "spec": spec})
    node.kubectl("rollout", "status", "ds/daemon", "--timeout=60s")
    first = node.kubectl("get", "pods", "-l", "app=daemon", "-o", "name").out.split()
    assert len(first) == 1
    node.kubectl("rollout", "restart", "ds/daemon")
    node.kubectl("rollout", "status", "ds/daemon", "--timeout=60s")
    later = node.kubectl("get", "pods", "-l", "app=daemon", "-o", "name").out.split()
    assert len(later) == 1
    assert later != first
    node.kubectl("delete", "ds", "daemon")
