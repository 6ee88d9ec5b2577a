"""A node whose certificates live for seconds: the agent gets them by a token, and lives through their ends.

The control plane is told to sign for so short a time (--cluster-signing-duration); nothing else is unusual.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
import yaml
from e2e_node import NODE_IP, REPOSITORY, Node

from controlplane import authority
from kubelet_py.node import x509
from kubelet_py.paths import NodePaths

pytestmark = pytest.mark.e2e

NAME = "brief"
SIGNED_SECONDS = 15  # a certificate is renewed when 70 to 90 % of its life is over
SERVICE_CIDR = "10.96.0.0/12"
# What the agent is told lies in a file, in a drop-in beside it, and in flags.
CONFIG = {"nodeLeaseDurationSeconds": 40, "rotateCertificates": True, "nodeStatusReportFrequency": "5m"}
DROP_IN = {"nodeLeaseDurationSeconds": 4, "nodeStatusUpdateFrequency": "1s"}


@dataclass(frozen=True)
class Brief:
    node: Node
    paths: NodePaths
    agent: subprocess.Popen[bytes]

    def client(self) -> x509.Certificate:
        """The certificate that the agent logs in with now."""
        return x509.read((self.paths.certificates / "kubelet-client-current.pem").read_bytes())

    def shown(self) -> x509.Certificate:
        """What port 10250 shows."""
        return x509.read(ssl.get_server_certificate((NODE_IP, 10250)).encode())

    def renewed(self) -> float:
        """When the node's heartbeat came last."""
        text = self.node.get("lease", NAME, "kube-node-lease")["spec"]["renewTime"]
        return _seconds(text)

    def reported(self) -> float:
        """When the node's status was sent last."""
        conditions = self.node.get("node", NAME)["status"]["conditions"]
        return max(_seconds(condition["lastHeartbeatTime"]) for condition in conditions)

    def requests(self) -> list[Any]:
        found: list[Any] = self.node.kubectl("get", "csr", "-o", "json").json()["items"]
        return found


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def start(node: Node, paths: NodePaths, module: str, *argv: str) -> subprocess.Popen[bytes]:
    with (paths.logs / f"{module.partition('.')[0]}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "HOME": str(node.home)},
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def brief(unstarted_node: Node) -> Iterator[Brief]:
    node = unstarted_node
    paths = NodePaths(node.root)
    paths.logs.mkdir(parents=True, exist_ok=True)
    authority.ensure(authority.Cluster(paths.config, NODE_IP, NAME, service_cluster_ip_range=SERVICE_CIDR))
    paths.kubeconfig("kubelet").unlink()
    config = paths.config / "kubelet.json"
    config.write_text(json.dumps(CONFIG))
    drop_ins = paths.config / "kubelet.conf.d"
    drop_ins.mkdir()
    (drop_ins / "10-often.conf").write_text(json.dumps(DROP_IN))
    running = [
        start(
            node, paths, "controlplane.main", "--config-dir", str(paths.config), "--data-dir",
            str(paths.store), "--advertise-address", NODE_IP, "--service-cluster-ip-range", SERVICE_CIDR,
            "--cluster-signing-duration", f"{SIGNED_SECONDS}s",
        )
    ]  # fmt: skip
    try:
        node.until(
            "the API server is ready",
            lambda: node.kubectl("get", "--raw", "/readyz", check=False).out == "ok",
        )
        login = yaml.safe_load(paths.kubeconfig("admin").read_text())
        token = node.cli("token", "create").out.strip()
        login["users"] = [{"name": login["users"][0]["name"], "user": {"token": token}}]
        paths.kubeconfig("bootstrap-kubelet").write_text(json.dumps(login))
        agent = start(
            node, paths, "kubelet_py.agent", "--root", str(node.root), "--hostname-override", NAME,
            "--node-ip", NODE_IP, "--config", str(config), "--config-dir", str(drop_ins),
            "--rotate-server-certificates=true", "--bootstrap-kubeconfig",
            str(paths.kubeconfig("bootstrap-kubelet")),
        )  # fmt: skip
        running.append(agent)
        node.until("the node is there", lambda: node.kubectl("get", "node", NAME, check=False).code == 0, 120)
        yield Brief(node, paths, agent)
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(30)


def test_the_agent_outlives_its_certificates(brief: Brief) -> None:
    node, first = brief.node, brief.client()
    assert first.common_name == f"system:node:{NAME}" and first.organizations == ("system:nodes",)
    assert SIGNED_SECONDS <= first.not_after - first.not_before <= SIGNED_SECONDS * 1.2
    server = node.until("port 10250 is open", lambda: _or_none(brief))
    assert (server.common_name, server.addresses) == (f"system:node:{NAME}", (NODE_IP,))
    over = max(first.not_after, server.not_after)
    node.until("a heartbeat after the end of both", lambda: brief.renewed() > over + 1, 120)
    assert brief.client().public_key != first.public_key, "another key, too"
    node.until("another certificate is shown", lambda: (now := _or_none(brief)) and now.not_after > over)
    assert brief.agent.poll() is None
    # It asked for the next one as itself, not by the token; that goes on for as long as it runs.
    node.until(
        "a renewal as the node itself",
        lambda: any(
            each["spec"]["username"] == f"system:node:{NAME}"
            and each["spec"]["signerName"] == "kubernetes.io/kube-apiserver-client-kubelet"
            and (each.get("status") or {}).get("certificate")
            for each in brief.requests()
        ),
        120,
    )


def test_a_status_that_stays_is_not_sent_again(brief: Brief) -> None:
    """It looks every second; the heartbeat is the Lease's alone."""
    brief.node.until("no report for five seconds", lambda: brief.renewed() - brief.reported() > 5)


def test_a_node_that_is_deleted_comes_back_at_once(brief: Brief) -> None:
    """Its next report would be due in five minutes."""
    node = brief.node
    uid = node.get("node", NAME)["metadata"]["uid"]
    node.kubectl("delete", "node", NAME)

    def another() -> bool:
        found = node.kubectl("get", "node", NAME, "-o", "jsonpath={.metadata.uid}", check=False)
        return found.code == 0 and found.out != uid

    node.until("the node is another one", another)


def _or_none(brief: Brief) -> x509.Certificate | None:
    """Nobody listens before the first certificate is signed."""
    try:
        return brief.shown()
    except OSError:
        return None
