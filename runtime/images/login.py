"""The credentials of a person: docker's config.json, and the programs that it names to keep secrets.

`docker login` and `podman login` write a password into the file, or give it to a program
docker-credential-<name> (credHelpers per registry, credsStore for all), which is then asked with the
registry's name on standard input and answers in JSON (github.com/docker/docker-credential-helpers). Such a
program is only run for a file that a person at this machine wrote: a pull secret comes from whoever may
create pods, and names nothing that we would run.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.images.credentials import Credentials, InvalidCredentials, parse_docker_config
from runtime.images.reference import DEFAULT_DOMAIN, Reference

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")
_SECONDS = 30.0
_DOCKER_HUB = "https://index.docker.io/v1/"  # its key in every docker config


def default_file(environment: Mapping[str, str]) -> Path | None:
    """The file that podman, then docker would read; None when there is none."""
    candidates = []
    if named := environment.get("REGISTRY_AUTH_FILE"):
        candidates.append(Path(named))
    if folder := environment.get("DOCKER_CONFIG"):
        candidates.append(Path(folder) / "config.json")
    elif home := environment.get("HOME"):
        candidates.append(Path(home) / ".docker/config.json")
    return next((file for file in candidates if file.is_file()), None)


def credentials_for(reference: Reference, file: Path) -> list[Credentials]:
    """What the file and its programs know about the image's registry, best first; [] means anonymous.

    Raises OSError, InvalidCredentials.
    """
    data = file.read_bytes()
    found = parse_docker_config(data).lookup(reference)
    program, server = _program(json.loads(data), reference)
    kept = _ask(program, server) if program else None
    return [kept, *found] if kept is not None else found


def _program(document: Mapping[str, Any], reference: Reference) -> tuple[str, str]:
    """The name of the program for this registry ("" for none), and what to call the registry."""
    keys = [reference.domain]
    if reference.domain == DEFAULT_DOMAIN:
        keys = [_DOCKER_HUB, "index.docker.io", reference.domain]
    helpers = document.get("credHelpers") or {}
    if not isinstance(helpers, dict):
        raise InvalidCredentials("Could not read registry credentials: credHelpers is not an object")
    for key in keys:
        if key in helpers:
            return str(helpers[key]), key
    return str(document.get("credsStore") or ""), keys[0]


def _ask(name: str, server: str) -> Credentials | None:
    what = f"Could not get credentials for {server} from docker-credential-{name}"
    if not _NAME.fullmatch(name):
        raise InvalidCredentials(f"{what}: that is no name of a program")
    path = shutil.which(f"docker-credential-{name}")
    if path is None:
        raise InvalidCredentials(f"{what}: it is not in $PATH (install it, or give another --auth-file)")
    try:
        done = subprocess.run([path, "get"], input=server.encode(), capture_output=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidCredentials(f"{what}: {error}") from error
    if done.returncode != 0:
        said = done.stdout.decode("utf-8", "replace").strip()
        if "credentials not found" in said:
            return None
        raise InvalidCredentials(f"{what}: exit code {done.returncode}: {said[:200]}")
    try:
        answer = json.loads(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        # What it said is a secret: it is not quoted.
        raise InvalidCredentials(f"{what}: its answer is not what the protocol asks for") from error
    if username == "<token>":
        return Credentials(identity_token=secret)
    return Credentials(username, secret)
