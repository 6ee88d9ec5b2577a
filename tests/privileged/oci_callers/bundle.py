"""A bundle and its own state folder, driven as a caller drives runc."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Bundle:
    """`change` edits config.json, calling it runs a command of kubelet-py-oci."""

    def __init__(self, folder: Path, binary: str, root: Path) -> None:
        self.folder = folder / "bundle"
        self.state = folder / "state"
        self.root = self.folder / "rootfs"
        self.binary = binary
        self.folder.mkdir()
        subprocess.run(["cp", "-a", str(root), str(self.root)], check=True)
        assert self("spec", "--bundle", str(self.folder)).returncode == 0

        def plain(config: dict[str, Any]) -> None:
            config["process"].update(terminal=False)
            config["root"].update(readonly=False)

        self.change(plain)

    def change(self, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    def args(self, *args: str) -> None:
        self.change(lambda config: config["process"].update(args=list(args)))

    def namespace(self, kind: str, path: str = "", **linux: Any) -> None:
        """One more namespace, and other keys of config.json's linux."""

        def add(config: dict[str, Any]) -> None:
            others = [n for n in config["linux"]["namespaces"] if n["type"] != kind]
            config["linux"]["namespaces"] = [*others, {"type": kind, **({"path": path} if path else {})}]
            config["linux"].update(linux)

        self.change(add)

    def mount(self, **mount: Any) -> None:
        self.change(lambda config: config["mounts"].append(mount))

    def __call__(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        given: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, **options}
        if "input" not in given:
            given.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([self.binary, "--root", str(self.state), *args], **given)

    def run(self, script: str, *flags: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`run` of a shell script, until its end."""
        self.args("sh", "-c", script)
        return self("run", "--bundle", str(self.folder), *flags, self.identity, **options)

    @property
    def identity(self) -> str:
        return f"kubelet-py-test-{os.getpid()}"

    def create(self) -> subprocess.CompletedProcess[str]:
        with open(self.folder / "output", "w") as output:
            return self(
                "create", "--bundle", str(self.folder), self.identity,
                capture_output=False, stdout=output, stderr=output,
            )  # fmt: skip

    def output(self) -> str:
        return (self.folder / "output").read_text()

    def wait_for(self, text: str) -> None:
        for _ in range(3000):
            if text in self.output():
                return
            time.sleep(0.02)
        raise AssertionError(f"no {text!r} in {self.output()!r}")

    def pid(self) -> int:
        return int(json.loads(self("state", self.identity).stdout)["pid"])

    def start(self, *args: str) -> None:
        """A running container."""
        self.args(*args)
        assert self.create().returncode == 0, self.output()
        done = self("start", self.identity)
        assert done.returncode == 0, done.stderr
