"""Debian's docker-registry, started below a folder and stopped; skopeo is the other side of the door."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needed = [
    pytest.mark.privileged,
    pytest.mark.skipif(
        not Path("/usr/bin/docker-registry").exists(), reason="docker-registry is not installed"
    ),
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="layers are unpacked by root"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def registry(
    folder: Path, *, extra: str = "", listen: str = "127.0.0.1", tls: tuple[Path, Path] | None = None
) -> Iterator[str]:
    """`host:port` of a registry that keeps its data in folder/data; `tls` are a certificate and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = folder / "registry.yml"
    secure = f", tls: {{certificate: {tls[0]}, key: {tls[1]}}}" if tls else ""
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '{listen}:{port}'{secure}}}\n{extra}"
    )
    process = subprocess.Popen(
        ["/usr/bin/docker-registry", "serve", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(3000):
            try:
                socket.create_connection((listen, port), 1).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        else:
            raise AssertionError("docker-registry did not start")
        yield f"{listen}:{port}"
    finally:
        process.kill()
        process.wait()


def skopeo(*arguments: str) -> str:
    """Run skopeo; its output."""
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
