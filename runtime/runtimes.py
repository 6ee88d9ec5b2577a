"""Which OCI runtimes there are beside our own: a table like those of CRI-O and containerd, in TOML.

    [runtimes.crun]
    runtime_path = "/usr/bin/crun"
    runtime_root = "/run/crun"           # its --root; without it a folder of this node's
    runtime_args = ["--debug"]           # further options before the command
    hybrid_cgroups = true                # uses the v2 tree beside v1 controllers, too (ours does, others not)

The name is the handler of a RuntimeClass. An agent reads the file once, at its start; containers that run
keep the runtime that they were made with.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import RuntimesError
from runtime.values import OciRuntime

_HANDLER = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_KEYS = {"runtime_path", "runtime_root", "runtime_args", "hybrid_cgroups"}


def load(file: Path) -> dict[str, OciRuntime]:
    """Handler → runtime; {} without a file. Raises RuntimesError."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimesError(f"Could not read {file}: {error}") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RuntimesError(f"Could not parse {file}: {error}") from error
    tables = document.pop("runtimes", {})
    if document or not isinstance(tables, dict):
        raise RuntimesError(f"Could not use {file}: it holds tables [runtimes.NAME] and nothing else")
    return {
        name: _runtime(name, table, f"Could not use {file}: runtimes.{name}")
        for name, table in tables.items()
    }


def _runtime(name: str, table: Any, where: str) -> OciRuntime:
    if not _HANDLER.fullmatch(name):
        raise RuntimesError(f"{where}: a handler is lower case letters, digits and -, at most 63 of them")
    if not isinstance(table, Mapping):
        raise RuntimesError(f"{where} is not a table")
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        raise RuntimesError(f"{where}: unknown keys {', '.join(unknown)}")
    path, root = _path(table, "runtime_path", where), _path(table, "runtime_root", where)
    if not path:
        raise RuntimesError(f"{where}: runtime_path is missing")
    if not os.access(path, os.X_OK) or os.path.isdir(path):
        raise RuntimesError(f"{where}: runtime_path {path} is no executable file")
    arguments = table.get("runtime_args", [])
    if not isinstance(arguments, list) or not all(isinstance(word, str) for word in arguments):
        raise RuntimesError(f"{where}: runtime_args is a list of texts")
    hybrid = table.get("hybrid_cgroups", False)
    if not isinstance(hybrid, bool):
        raise RuntimesError(f"{where}: hybrid_cgroups is true or false")
    return OciRuntime(name, path, root, tuple(arguments), hybrid)


def _path(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or (value and not value.startswith("/")):
        raise RuntimesError(f"{where}: {key} is an absolute path")
    return value
