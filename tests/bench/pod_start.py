"""A whole pod: sandbox (namespaces, pause, cgroups), wiring by our CNI plugins in-process, one container."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cni import conflist, skeleton
from cni.invoke import Invoker
from kubelet_py.node.network import SPARE_ADDRESSES
from runtime import cgroups
from runtime.service import RuntimeService
from runtime.values import ContainerConfig, SandboxConfig


class PodStart:
    """Within `with`; `one` makes a pod, waits until its container's program runs, and removes it."""

    def __init__(self, folder: Path, config: Mapping[str, Any], root: str) -> None:
        self._folder, self._root = folder, root
        self._spec = {**config, "process": {**config["process"], "args": ["sleep", "1000"]}}
        self._driver = cgroups.detect()
        self._service = RuntimeService(
            run_dir=folder / "run", state_dir=folder / "containers", cgroups=self._driver
        )
        own = folder / "cni-bin"
        skeleton.write_executables(own, sys.executable)
        network = folder / "net.d"
        body = conflist.bridge_network(
            name="kubelet-py-bench",
            bridge="kpybench0",
            subnets=["10.244.9.0/24"],
            cluster_cidrs=["10.244.0.0/16"],
            data_dir=folder / "leases",
        )
        conflist.write(network / "10-kubelet-py.conflist", body)
        self._invoker = Invoker(
            config_dir=network,
            bin_dirs=[own],
            cache_dir=folder / "cache",
            own_bin_dir=own,
            spare_addresses=SPARE_ADDRESSES,  # as the agent has them
        )
        self._count = 0

    def __enter__(self) -> PodStart:
        self._service.start()
        self._invoker.prepare()
        return self

    def __exit__(self, *_error: object) -> None:
        self._invoker.gc(())
        self._invoker.close()
        self._invoker.tear_down()
        self._service.close()

    def _make_cgroup(self, path: str) -> None:
        self._driver.create(path, {"memory": {"limit": 128 << 20}, "pids": {"limit": 200}})

    def one(self) -> float:
        """ms until the pod's container had been started."""
        self._count += 1
        cgroup = f"{self._root}/pod{self._count}"
        begin = time.perf_counter()
        begun = self._service.begin_pod_sandbox(
            SandboxConfig(
                name="pod", namespace="bench", uid=str(self._count), hostname="pod", cgroup_parent=cgroup
            ),
            lambda: self._make_cgroup(cgroup),
        )
        held = self._service.hold_container(
            begun,
            ContainerConfig(
                name="main",
                attempt=0,
                image="busybox",
                image_id="sha256:0",
                spec=self._spec,
                layers=(str(self._folder / "rootfs"),),
                log_path=str(self._folder / f"logs/{self._count}.log"),
            ),
        )
        assert held is not None
        self._invoker.add(
            begun.id, begun.netns, args={"IgnoreUnknown": "1"}, lasting=lambda: begun.finish().netns
        )
        sandbox = begun.finish()
        self._service.release_container(held)
        took = time.perf_counter() - begin
        self._invoker.delete(sandbox.id, sandbox.netns)
        self._service.remove_pod_sandbox(sandbox.id)
        return took * 1000
