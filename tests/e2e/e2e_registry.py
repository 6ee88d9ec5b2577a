"""Debian's docker-registry on loopback and images made for it: what pods pull from in the tests."""

from __future__ import annotations

import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from e2e_node import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests/unit/images"))

import json
import tarfile

from build import digest, info, layer, tar_file, tar_of

REGISTRY = Path("/usr/bin/docker-registry")
MISSING = [str(tool) for tool in (REGISTRY, Path("/usr/bin/skopeo")) if not tool.exists()]

# What `htpasswd -nbBC 4 ann secret` prints.
PASSWORDS = "ann:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"
APPLETS = ("sh", "cat", "sleep", "trap", "env")
TELL_AND_WAIT = "echo $GREETING $(cat /etc/version); trap 'exit 0' TERM; sleep 3600 & wait"


class Registry:
    """One registry process; `where` is how an image name begins that lies in it."""

    def __init__(self, folder: Path, *, private: bool = False) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.where = f"localhost:{self.port}"
        config = (
            f"version: 0.1\nlog: {{level: error}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
            f"http: {{addr: '127.0.0.1:{self.port}'}}\n"
        )
        if private:
            (folder / "passwords").write_text(PASSWORDS)
            config += f"auth: {{htpasswd: {{realm: x, path: {folder}/passwords}}}}\n"
        (folder / "registry.yml").write_text(config)
        self.credentials = ("--dest-creds", "ann:secret") if private else ()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Registry:
        argv = [str(REGISTRY), "serve", str(self.folder / "registry.yml")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except ConnectionRefusedError:
                time.sleep(0.02)
        raise AssertionError(f"docker-registry did not start: {(self.folder / 'log').read_text()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def push(self, archive: Path, name: str) -> str:
        """Copy a docker-archive there with skopeo; returns the whole image name."""
        target = f"docker://{self.where}/{name}"
        skopeo(*self.credentials, "--dest-tls-verify=false", f"docker-archive:{archive}", target)
        return f"{self.where}/{name}"


def skopeo(*argv: str) -> None:
    done = subprocess.run(
        ["skopeo", "copy", "--quiet", "--insecure-policy", *argv], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def make_image(
    file: Path,
    version: str,
    entrypoint: Sequence[str] = ("sh", "-c"),
    command: Sequence[str] = (TELL_AND_WAIT,),
    stop_signal: str = "",
) -> Path:
    """A docker-archive of busybox whose own command says `hello VERSION` and waits for SIGTERM."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is needed"
    members = [(info("bin", tarfile.DIRTYPE, mode=0o755), b"")]
    members.append((info("bin/busybox", mode=0o755), Path(busybox).read_bytes()))
    members += [(info(f"bin/{name}", tarfile.SYMTYPE, linkname="busybox"), b"") for name in APPLETS]
    layers = [tar_of(members), layer([("etc/", None), ("etc/version", version.encode())])]
    process = {
        "Env": ["PATH=/bin", "GREETING=hello"],
        "Entrypoint": [*entrypoint],
        "Cmd": [*command],
    } | ({"StopSignal": stop_signal} if stop_signal else {})
    config = json.dumps(
        {
            "architecture": {"aarch64": "arm64"}.get(platform.machine(), "amd64"),
            "os": "linux",
            "config": process,
            "rootfs": {"type": "layers", "diff_ids": [digest(item) for item in layers]},
        }
    ).encode()
    name = f"{digest(config).partition(':')[2]}.json"
    paths = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": name, "RepoTags": None, "Layers": paths}]
    blobs = list(zip(paths, layers, strict=True))
    file.write_bytes(tar_file([*blobs, (name, config), ("manifest.json", json.dumps(manifest).encode())]))
    return file
