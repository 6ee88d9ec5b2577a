"""The KubeletConfiguration as it lies on the disk: one file, and drop-ins beside it.

Drop-ins let an installer own the file and an administrator change one key of it. They are the files *.conf
below --config-dir, in the order of their paths; each is laid over what came before as a JSON merge patch
(RFC 7386: sections are joined, lists and values replaced, null takes back), and the result is judged.
Source: upstream's cmd/kubelet/app/server.go, mergeKubeletConfigurations.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubelet_py.errors import ConfigError

Document = dict[str, Any]
SUFFIX = ".conf"


def read(file: Path | None, folder: Path | None) -> Document:
    """The document of both; an empty one without either. Raises ConfigError."""
    document: Document = parsed(file) if file is not None else {}
    for drop_in in drop_ins(folder) if folder is not None else ():
        document = merged(document, parsed(drop_in))
    return document


def drop_ins(folder: Path) -> list[Path]:
    """Those of the folder and of the folders in it, by path. Raises ConfigError."""
    if not folder.is_dir():
        raise ConfigError(f"Could not read --config-dir {folder}: it is no folder")
    found: list[Path] = []

    def fail(error: OSError) -> None:
        raise ConfigError(f"Could not read {error.filename}: {error.strerror}") from error

    for place, _, names in os.walk(folder, onerror=fail):
        found += [Path(place) / name for name in names if name.endswith(SUFFIX)]
    return sorted(found)


def parsed(path: Path) -> Document:
    """A YAML or JSON file that holds a mapping."""
    import yaml  # late: 10 ms and 3 MB that an agent without a file never needs

    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"Could not read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Could not parse {path}: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"Could not use {path}: it holds no KubeletConfiguration")
    return document


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Document:
    """PURE. `above` as a merge patch of `below`."""
    answer = dict(below)
    for key, value in above.items():
        if value is None:
            answer.pop(key, None)
        elif isinstance(value, Mapping):
            under = answer.get(key)
            answer[key] = merged(under if isinstance(under, Mapping) else {}, value)
        else:
            answer[key] = value
    return answer
