"""Which network pods are attached to: the first valid file of a configuration folder.

As libcni does it (and so kubelet with any runtime): files ending in .conflist, .conf or .json in
lexical order; the first that can be read wins; a single plugin's .conf is a list of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cni.errors import CniError, DecodeFailure, InvalidConfig, IoFailure
from cni.types import SUPPORTED_VERSIONS, check_network_name, negotiate

_SUFFIXES = (".conflist", ".conf", ".json")


@dataclass(frozen=True, slots=True)
class NetworkList:
    """One network: its plugins in order of ADD. `version` is the highest we share with the file."""

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]
    disable_check: bool = False
    disable_gc: bool = False

    @staticmethod
    def parse(body: Any) -> NetworkList:
        """Read a conflist or a single plugin's configuration. Raises DecodeFailure, InvalidConfig."""
        if not isinstance(body, Mapping):
            raise DecodeFailure("Could not read the network configuration: it is not a JSON object")
        name = check_network_name(str(body.get("name") or ""))
        if body.get("cniVersions"):
            version = negotiate([*body["cniVersions"], *filter(None, [body.get("cniVersion")])])
        else:
            version = negotiate([str(body.get("cniVersion") or SUPPORTED_VERSIONS[0])])
        plugins: Sequence[Any] = body.get("plugins", [body])
        if not plugins:
            raise InvalidConfig(f"Could not use network {name}: it has no plugins")
        for plugin in plugins:
            if not isinstance(plugin, Mapping) or not isinstance(plugin.get("type"), str):
                raise InvalidConfig(f"Could not use network {name}: a plugin has no type")
        return NetworkList(
            name=name,
            version=version,
            plugins=tuple(plugins),
            disable_check=_flag(body, "disableCheck"),
            disable_gc=_flag(body, "disableGC"),
        )


class ConfigFolder:
    """The folder; read again only when the folder or the chosen file has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp: tuple[tuple[str, int, int], ...] | None = None
        self._network: NetworkList | None = None
        self._problem = ""

    def load(self) -> NetworkList:
        """The network to use now. Raises InvalidConfig with the reason when there is none."""
        stamp = self._files()
        if stamp != self._stamp:
            self._network, self._problem = self._choose([self._folder / name for name, _, _ in stamp])
            self._stamp = stamp
        if self._network is None:
            raise InvalidConfig(self._problem)
        return self._network

    def _files(self) -> tuple[tuple[str, int, int], ...]:
        try:
            with os.scandir(self._folder) as entries:
                chosen = [e for e in entries if e.name.endswith(_SUFFIXES)]
                found = [(e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in chosen]
        except FileNotFoundError:
            found = []
        except OSError as error:
            raise IoFailure(f"Could not list {self._folder}", str(error)) from error
        return tuple(sorted(found))

    def _choose(self, files: Sequence[Path]) -> tuple[NetworkList | None, str]:
        problem = f"no network configuration in {self._folder}"
        for path in files:
            try:
                return NetworkList.parse(json.loads(path.read_bytes())), ""
            except (CniError, OSError, ValueError) as error:
                problem = f"no valid network configuration in {self._folder}: {path.name}: {error}"
        return None, problem


def bridge_network(
    *,
    name: str,
    bridge: str,
    subnets: Sequence[str],
    cluster_cidrs: Sequence[str],
    data_dir: Path,
    mtu: int = 0,
    gso: int = 0,
    neighbours: Sequence[str] = (),
) -> dict[str, Any]:
    """The conflist of one node of ours: bridge with an address from each subnet, host ports, limits.

    Pods keep their address towards the cluster's pods and the `neighbours`, other nodes' own addresses.
    Debian's plugins accept it too (they pass over nonMasqueradeCIDRs and gsoIPv4MaxSize).
    """
    section: dict[str, Any] = {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "nonMasqueradeCIDRs": [*cluster_cidrs, *neighbours],
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": subnet}] for subnet in subnets],
            "routes": [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets],
            "dataDir": str(data_dir),
        },
    }
    if mtu:
        section["mtu"] = mtu
    if gso:
        section["gsoIPv4MaxSize"] = gso
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    limits = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    return {"cniVersion": "1.0.0", "name": name, "plugins": [section, ports, limits]}


def write(path: Path, body: Mapping[str, Any]) -> bool:
    """Put a configuration in place at once; False when the file already says so."""
    text = json.dumps(body, indent=2) + "\n"
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix keeps a half-written file out of everyone's search.
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.replace(path)
    return True


def _flag(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise InvalidConfig(f"Could not accept {key} {value!r}: true or false")
    return value
