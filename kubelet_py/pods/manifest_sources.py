"""Where static pods come from on this node: the folder, and the address if there is one; and who is told.

The objects beside the manifests are known before the pods that may use them are heard of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from kubelet_py.config import Config
from kubelet_py.pods.manifest_url import ManifestUrl
from kubelet_py.pods.manifests import Key, Manifest
from kubelet_py.pods.model import FILE_SOURCE, HTTP_SOURCE, Object
from kubelet_py.pods.static_pods import StaticPods

Pods = Callable[[str, dict[str, Object]], None]
"""(source, all its pods by uid)"""
Objects = Callable[[str, Mapping[Key, Object]], None]
"""(source, all that lies beside its pods)"""


class ManifestSources:
    """`folder` is the default one. `start` returns when the folder has been read once."""

    def __init__(self, config: Config, folder: Path, node_name: str, pods: Pods, objects: Objects) -> None:
        self._pods, self._objects = pods, objects
        self._parts: list[StaticPods | ManifestUrl] = [
            StaticPods(
                Path(config.static_pod_path) if config.static_pod_path else folder,
                node_name,
                partial(self._changed, FILE_SOURCE),
                period=config.file_check_frequency,
            )
        ]
        if config.static_pod_url:
            self._parts.append(
                ManifestUrl(
                    config.static_pod_url,
                    config.static_pod_url_header,
                    node_name,
                    partial(self._changed, HTTP_SOURCE),
                    period=config.http_check_frequency,
                )
            )
        self._has_address = bool(config.static_pod_url)

    def start(self) -> None:
        if not self._has_address:
            self._pods(HTTP_SOURCE, {})  # that is all of them
        for part in self._parts:
            part.start()

    def stop(self) -> None:
        for part in self._parts:
            part.stop()

    def _changed(self, source: str, manifest: Manifest) -> None:
        self._objects(source, manifest.objects)
        self._pods(source, manifest.pods)
