"""A real node per test module, in the network namespace of hack/isolate, driven by real kubectls.

The node's uplink is a veth pair. At its other end is a namespace of its own, "outside": a client for
NodePorts, and at the same time the node's default gateway that goes nowhere, where a leaked pod or Service
packet would be counted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NODE_IP = "198.51.100.10"
OUTSIDE_IP = "198.51.100.20"
PATIENCE = 60.0  # seconds for what takes one on a quiet machine; others may share this one


def kubectls() -> dict[str, str]:
    """Version → path of every kubectl there is: Debian's 1.20, and those beside `kubectl`, or else that."""
    found = {}
    debian = REPOSITORY / ".cache/kubectl-1.20/usr/bin/kubectl"
    if debian.exists():
        found["1.20"] = str(debian)
    on_path = shutil.which("kubectl")
    if on_path:
        for path in sorted(Path(os.path.realpath(on_path)).parent.glob("kubectl.1.*")):
            found[path.name.removeprefix("kubectl.")] = str(path)
        if not any(version != "1.20" for version in found):
            found.setdefault(_version(on_path), on_path)
    return found


def _version(kubectl: str) -> str:
    said = subprocess.run([kubectl, "version", "--client", "-o", "json"], capture_output=True, text=True)
    version = json.loads(said.stdout)["clientVersion"]["gitVersion"]
    return ".".join(version.removeprefix("v").split(".")[:2])


KUBECTLS = kubectls()


def has_kubectl(least: str) -> bool:
    """Whether a node's own kubectl, the newer one of `main_kubectls`, is of that version at least."""
    own = main_kubectls()[-1]
    return [int(part) for part in own.split(".")] >= [int(part) for part in least.split(".")]


def need_kubectl(least: str, what: str) -> None:
    """Skip the test where there is Debian 12's kubectl alone, and what it does is not yet in it."""
    if not has_kubectl(least):
        pytest.skip(f"no kubectl of {least} or newer on PATH ({what})")


def main_kubectls() -> list[str]:
    """Debian's and one that speaks protobuf (1.32, else the newest): the two kinds of client there are."""
    newer = [version for version in KUBECTLS if version != "1.20"]
    chosen = "1.32" if "1.32" in newer else (newer[-1] if newer else None)
    return [version for version in ("1.20", chosen) if version in KUBECTLS]


@dataclass(frozen=True, slots=True)
class Done:
    """What a finished command said."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def run_command(
    command: Sequence[str], *, check: bool, timeout: float, env: Mapping[str, str], input: str | None = None
) -> Done:
    """Run it in the repository; with `check` a failure is an AssertionError with all that it said."""
    done = subprocess.run(
        command,
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
        cwd=REPOSITORY,
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"{' '.join(command[-8:])}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return Done(done.returncode, done.stdout, done.stderr)


class Node:
    """One `kubelet-py` node below its own root, and the commands a person would type at it."""

    def __init__(self, root: Path, outside: str) -> None:
        self.root = root
        self.outside = outside
        self.home = root / "home"
        self.home.mkdir()
        self.kubeconfig = root / "etc/kubelet-py/admin.conf"
        self.default_kubectl = main_kubectls()[-1]

    def cli(self, *argv: str, check: bool = True, timeout: float = 2 * PATIENCE, **options: Any) -> Done:
        """Run `kubelet-py COMMAND --root ROOT …`."""
        command = [sys.executable, "-m", "kubelet_py", *argv, "--root", str(self.root)]
        return self._run(command, check=check, timeout=timeout, **options)

    def kubectl_argv(self, *argv: str, version: str | None = None) -> list[str]:
        return [KUBECTLS[version or self.default_kubectl], "--kubeconfig", str(self.kubeconfig), *argv]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        return os.environ | {"HOME": str(self.home), "PYTHONPATH": str(REPOSITORY)} | dict(extra or {})

    def kubectl(
        self,
        *argv: str,
        version: str | None = None,
        check: bool = True,
        timeout: float = 2 * PATIENCE,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        command = self.kubectl_argv(*argv, version=version)
        return self._run(command, check=check, timeout=timeout, input=stdin, env=env)

    def _run(
        self,
        command: Sequence[str],
        *,
        check: bool,
        timeout: float,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        environment = self.environment(env)
        return run_command(command, check=check, timeout=timeout, env=environment, input=input)

    def apply(self, *objects: Mapping[str, Any], version: str | None = None) -> None:
        body = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "-f", "-", stdin=body, version=version)

    def get(self, kind: str, name: str, namespace: str = "default") -> Any:
        return self.kubectl("get", kind, name, "-n", namespace, "-o", "json").json()

    def until(self, what: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Ask again and again until `condition` is true; fail with `what` and the last answer."""
        deadline = time.monotonic() + seconds
        while True:
            answer = condition()
            if answer:
                return answer
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"Not within {seconds} s: {what}; last answer {answer!r}\n{self.last_words()}"
                )
            time.sleep(0.05)

    def phase(self, pod: str, namespace: str = "default") -> str:
        done = self.kubectl("get", "pod", pod, "-n", namespace, "-o", "jsonpath={.status.phase}", check=False)
        return done.out

    def wait_running(self, *pods: str) -> None:
        """For pods that are new: of one that ran before a restart the API goes on saying Running."""
        for pod in pods:
            self.until(f"pod {pod} Running", lambda pod=pod: self.phase(pod) == "Running")

    def outside_run(self, *argv: str, check: bool = True) -> Done:
        """Run a command in the namespace beyond the uplink."""
        command = ["nsenter", f"--net=/run/netns/{self.outside}", *argv]
        return self._run(command, check=check, timeout=30)

    def pid(self, name: str) -> int:
        return int(self.cli("status", "--pid", name).out)

    def last_words(self) -> str:
        """The ends of the node's own logs, for a failing test's message."""
        parts = []
        for log in sorted((self.root / "var/log/kubelet-py").glob("*.log")):
            parts.append(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-12:]))
        return "\n".join(parts)

    def import_busybox(self) -> None:
        busybox = shutil.which("busybox")
        assert busybox, "busybox-static is needed"
        self.cli("image", "from-binary", busybox, "--name", "busybox", check=True)


def pod(name: str, command: Sequence[str] | str = ("sleep", "3600"), **spec: Any) -> dict[str, Any]:
    """A busybox pod that ends quickly when asked; a string is a shell line."""
    argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
    container = {"name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": argv}
    container |= spec.pop("container", {})
    labels = spec.pop("labels", {"app": name})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": spec.pop("namespace", "default"), "labels": labels},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container], **spec},
    }


def sh(*argv: str) -> None:
    subprocess.run(argv, check=True)


def make_uplink(outside: str) -> None:
    """veth up0 with the node's address; the other end, default gateway to nowhere, in `outside`."""
    sh("ip", "netns", "add", outside)
    sh("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1", "netns", outside)
    # Without IPv6 addresses, whose routes come a second later and would look like something left behind.
    sh("ip", "link", "set", "up0", "addrgenmode", "none")
    sh("ip", "addr", "add", f"{NODE_IP}/24", "dev", "up0")
    sh("ip", "link", "set", "up0", "up")
    inside = ("nsenter", f"--net=/run/netns/{outside}")
    sh(*inside, "ip", "link", "set", "lo", "up")
    sh(*inside, "ip", "addr", "add", f"{OUTSIDE_IP}/24", "dev", "up1")
    sh(*inside, "ip", "link", "set", "up1", "up")
    sh("ip", "route", "add", "default", "via", OUTSIDE_IP)
    # The kernel tells of the carrier a moment later; a host that is compared must not change by that.
    deadline = time.monotonic() + PATIENCE
    while b"linkdown" in subprocess.run(["ip", "route"], capture_output=True, check=True).stdout:
        assert time.monotonic() < deadline, "the uplink has no carrier"
        time.sleep(0.01)
    for leaked in ("10.244.0.0/16", "10.96.0.0/12"):
        sh(*inside, "iptables", "-w", "-A", "INPUT", "-d", leaked, "-j", "DROP")
        sh(*inside, "iptables", "-w", "-t", "raw", "-A", "PREROUTING", "-d", leaked)


def leaked_packets(node: Node) -> int:
    """Packets to pod or Service addresses that came out of the uplink."""
    lines = node.outside_run("iptables", "-t", "raw", "-L", "PREROUTING", "-v", "-x", "-n").out.splitlines()
    return sum(int(line.split()[0]) for line in lines if "10.244.0.0/16" in line or "10.96.0.0/12" in line)
