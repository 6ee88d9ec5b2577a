"""A node with pods, a client and a proxier that is synced by hand, for tests of Services on real packets."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import network_lab
import pytest
from network_lab import Namespace, Server, pod_network, uplink

from cni.netlink import Netlink
from kubelet_py.node import routes
from proxy.backend import Backend
from proxy.changes import Changes
from proxy.config import ProxyConfig
from proxy.conntrack import Conntrack
from proxy.healthcheck import Health
from proxy.modes import backends
from proxy.proxier import AddressFamily, Proxier

VIP = "10.96.0.50"


class Lab:
    """A node with three pods, a client on its uplink, and a proxier that is synced by hand."""

    def __init__(self, folder: Path, mode: str, gso: int = 0) -> None:
        self.invoker = pod_network(folder, gso)
        self.client = Namespace()
        uplink(self.client)
        self.problems = routes.prepare_kernel(folder / "sysctls.json")
        self.invoker.prepare()
        with Netlink() as netlink:
            routes.ensure(
                netlink,
                bridge="kpy0",
                pod_cidr="10.244.1.0/24",
                cluster_cidr="10.244.0.0/16",
                service_cidr="10.96.0.0/12",
            )
        self.pods = [Namespace() for _ in range(3)]
        self.ips = [
            self.invoker.add(f"pod{n}", p.path).ips[0].address.split("/")[0] for n, p in enumerate(self.pods)
        ]
        self.servers: list[Server] = []
        self.mode = mode
        self.backend: Backend | None = None
        self.restart()

    def restart(self, **config: Any) -> None:
        """A proxier that knows nothing of the one before."""
        settings = ProxyConfig(hostname="node-a", cluster_cidr="10.244.0.0/16", **config)
        self.changes = Changes("node-a")
        if self.backend is not None:
            self.backend.close()
        (self.backend,) = backends(self.mode, settings, [4])
        families = [AddressFamily(self.changes, self.backend, Conntrack())]
        self.proxier = Proxier(settings, families, self.changes.changed, Health(60))

    def serve(self, pod: int, port: int, *, udp: bool = False) -> None:
        self.servers.append(Server(f"pod{pod}", self.pods[pod], port, udp=udp))

    def service(
        self, *endpoints: int | str | dict[str, Any], udp: bool = False, ingress: str = "", **spec: object
    ) -> str:
        """Define Service default/web: a pod's number, an address, or a whole entry for each endpoint."""
        protocol = "UDP" if udp else "TCP"
        port = {"name": "web", "port": 80, "protocol": protocol, "targetPort": "http", "nodePort": 30080}
        meta = {"name": "web", "namespace": "default"}
        body = {"metadata": meta, "spec": {"clusterIP": VIP, "ports": [port], "type": "NodePort", **spec}}
        if ingress:
            body["status"] = {"loadBalancer": {"ingress": [{"ip": ingress}]}}
        self.changes.service_event("ADDED", body)
        self.changes.slice_event(
            "ADDED",
            {
                "metadata": {**meta, "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4",
                "ports": [{"name": "web", "port": 8080, "protocol": protocol}],
                "endpoints": [e if isinstance(e, dict) else self.entry(e) for e in endpoints],
            },
        )
        return self.proxier.sync()

    def entry(self, which: int | str, node: str = "node-a", **more: Any) -> dict[str, Any]:
        return {"addresses": [which if isinstance(which, str) else self.ips[which]], "nodeName": node, **more}

    def close(self) -> None:
        if self.backend is not None:
            self.backend.close()
        for server in self.servers:
            server.close()
        for pod in (*self.pods, self.client):
            pod.close()


def sync_once(mode: str, config: ProxyConfig, *services: dict[str, Any]) -> None:
    changes = Changes("n")
    for body in services:
        changes.service_event("ADDED", body)
    (backend,) = backends(mode, config, [4])
    families = [AddressFamily(changes, backend, Conntrack())]
    Proxier(config, families, changes.changed, Health(60)).sync()
    backend.close()


def counted(chain_start: str) -> dict[str, int]:
    """Packets per rule of the nat chains that start so."""
    text = subprocess.run(
        ["iptables-save", "-c", "-t", "nat"], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith("[") and f"-A {chain_start}" in line:
            count, _, rule = line.partition("] ")
            found[rule] = int(count[1:].partition(":")[0])
    return found


@pytest.fixture(params=["iptables-nft", "iptables-legacy", "nftables"])
def lab(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Each backend, iptables in each variant the machine has; all tools of one test are of the same."""
    mode, _, variant = request.param.partition("-")
    if variant:
        folder = tmp_path / "tools"
        folder.mkdir()
        for suffix in ("", "-save", "-restore"):
            program = shutil.which(f"iptables-{variant}{suffix}")
            if program is None:
                pytest.skip(f"iptables-{variant}{suffix} is not installed")
            (folder / f"iptables{suffix}").symlink_to(program)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with network_lab.node():
        lab = Lab(tmp_path, mode)
        assert lab.backend is not None and lab.backend.title == f"{request.param} ipv4"
        yield lab
        lab.close()
