"""A control plane of upstream's own programs (hack/upstream-apiserver), and our agent and proxy joined to it.

Nothing of ours is on the other side of the API here: etcd keeps the objects, kube-apiserver defaults,
validates and authorises, kube-controller-manager makes Endpoints and tokens, kube-scheduler binds. Ours are
the files of certificates and kubeconfigs, whose form is upstream's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from e2e_node import NODE_IP, REPOSITORY, Node

from controlplane import authority
from kubelet_py.paths import NodePaths

PROGRAMS = REPOSITORY / ".cache/upstream/bin"
NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
NODE_NAME = "ours"
CLUSTER_CIDR, SERVICE_CIDR = "10.244.0.0/16", "10.96.0.0/12"
ISSUER = "https://kubernetes.default.svc.cluster.local"
ETCD = "http://127.0.0.1:2379"


def missing() -> list[str]:
    """The programs that are not there."""
    return [name for name in NAMES if not (PROGRAMS / name).exists()]


class UpstreamCluster:
    """Started step by step; `stop` ends every process that was started, ours first."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.paths = NodePaths(node.root)
        self.data = node.root / "upstream"
        self.data.mkdir()
        self.paths.logs.mkdir(parents=True, exist_ok=True)
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start_control_plane(self) -> None:
        authority.ensure(
            authority.Cluster(self.paths.config, NODE_IP, NODE_NAME, service_cluster_ip_range=SERVICE_CIDR)
        )
        self._start("etcd", _etcd(self.data))
        self.start_apiserver()
        self._start("kube-controller-manager", _controllers(self.paths))
        self._start("kube-scheduler", _scheduler(self.paths))

    def start_apiserver(self) -> None:
        self._start("kube-apiserver", _apiserver(self.paths))
        self.node.until("kube-apiserver is ready", self._ready, 120)

    def _ready(self) -> bool:
        self.check()
        return self.node.kubectl("get", "--raw", "/readyz", check=False, timeout=20).out == "ok"

    def start_agent(self, *options: str) -> None:
        argv = [
            "--root", str(self.node.root), "--node-name", NODE_NAME, "--node-ip", NODE_IP,
            "--cluster-cidr", CLUSTER_CIDR, "--service-cidr", SERVICE_CIDR, *options,
        ]  # fmt: skip
        self._start("agent", [sys.executable, "-m", "kubelet_py.agent", *argv])

    def start_proxy(self) -> None:
        argv = [
            "--kubeconfig", str(self.paths.kubeconfig("proxy")), "--hostname-override", NODE_NAME,
            "--cluster-cidr", CLUSTER_CIDR,
        ]  # fmt: skip
        self._start("proxy", [sys.executable, "-m", "proxy", *argv])

    def proxy_is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen("http://127.0.0.1:10256/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def check(self) -> None:
        """Raise AssertionError if one of the processes has ended by itself."""
        for name, process in self._running:
            code = process.poll()
            assert code is None, f"{name} ended with {code}: {self.node.last_words()}"

    def end(self, name: str) -> None:
        """End one process, by its own way of ending."""
        _end(self._taken(name))

    def kill(self, name: str) -> None:
        """End one process without a word."""
        process = self._taken(name)
        process.kill()
        process.wait(20)

    def _taken(self, name: str) -> subprocess.Popen[bytes]:
        process = dict(self._running)[name]
        self._running.remove((name, process))
        return process

    def stop(self) -> None:
        """End every process, the newest first, and take the proxy's rules out of the kernel."""
        while self._running:
            _, process = self._running.pop()
            _end(process)
        subprocess.run([sys.executable, "-m", "proxy", "--cleanup"], cwd=REPOSITORY, check=True)

    def _start(self, name: str, argv: Sequence[str]) -> None:
        with (self.paths.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY), "HOME": str(self.node.home)},
                start_new_session=True,
            )
        self._running.append((name, process))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)


def _etcd(data: Path) -> list[str]:
    return [
        str(PROGRAMS / "etcd"), "--data-dir", str(data / "etcd"), "--listen-client-urls", ETCD,
        "--advertise-client-urls", ETCD, "--listen-peer-urls", "http://127.0.0.1:2380",
        "--log-level", "warn",
    ]  # fmt: skip


def _apiserver(paths: NodePaths) -> list[str]:
    pki = paths.pki
    return [
        str(PROGRAMS / "kube-apiserver"),
        f"--etcd-servers={ETCD}",
        f"--advertise-address={NODE_IP}",
        "--secure-port=6443",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-key-file={pki / 'sa.pub'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        f"--service-account-issuer={ISSUER}",
        f"--api-audiences={ISSUER}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        # As upstream does by default since 1.21: tokens by TokenRequest, in a projected volume.
        "--feature-gates=BoundServiceAccountTokenVolume=true",
    ]


def _controllers(paths: NodePaths) -> list[str]:
    pki = paths.pki
    return [
        str(PROGRAMS / "kube-controller-manager"),
        f"--kubeconfig={paths.kubeconfig('controller-manager')}",
        f"--service-account-private-key-file={pki / 'sa.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--cluster-signing-cert-file={pki / 'ca.crt'}",
        f"--cluster-signing-key-file={pki / 'ca.key'}",
        "--use-service-account-credentials=true",
        "--allocate-node-cidrs=true",
        f"--cluster-cidr={CLUSTER_CIDR}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--leader-elect=false",
        "--port=0",
        "--bind-address=127.0.0.1",
    ]


def _scheduler(paths: NodePaths) -> list[str]:
    return [
        str(PROGRAMS / "kube-scheduler"),
        f"--kubeconfig={paths.kubeconfig('scheduler')}",
        "--leader-elect=false",
        "--port=0",
        "--bind-address=127.0.0.1",
    ]

