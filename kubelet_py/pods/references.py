"""Which ConfigMaps and Secrets a pod lives from. Pure.

The agent watches exactly these, each by name: that is all that the API lets a node see, and a change of one
of them concerns only the pods that name it.
"""

from __future__ import annotations

from collections.abc import Iterator

from kubelet_py.pods.model import Object, every_container

Key = tuple[str, str, str]
"""("configmap" or "secret", namespace, name)"""

_VOLUMES = (("configMap", "configmap", "name"), ("secret", "secret", "secretName"))
_PROJECTIONS = (("configMap", "configmap", "name"), ("secret", "secret", "name"))
_SOURCES = (("configMapRef", "configmap"), ("secretRef", "secret"))
_KEYS = (("configMapKeyRef", "configmap"), ("secretKeyRef", "secret"))
CHANGING = ("configMap", "secret", "projected", "downwardAPI")


def references(pod: Object) -> frozenset[Key]:
    """All that its volumes and its containers' environments name; pull secrets are read when one pulls."""
    namespace = pod["metadata"]["namespace"]
    found = [*_of_volumes(pod), *_of_environments(pod)]
    return frozenset((kind, namespace, name) for kind, name in found if name)


def changes(pod: Object) -> bool:
    """Whether it has a volume whose content may change while it runs."""
    return any(kind in volume for volume in pod["spec"].get("volumes") or () for kind in CHANGING)


def _of_volumes(pod: Object) -> Iterator[tuple[str, str]]:
    for volume in pod["spec"].get("volumes") or ():
        for field, kind, name in _VOLUMES:
            if volume.get(field):
                yield kind, volume[field].get(name) or ""
        for source in (volume.get("projected") or {}).get("sources") or ():
            for field, kind, name in _PROJECTIONS:
                if source.get(field):
                    yield kind, source[field].get(name) or ""


def _of_environments(pod: Object) -> Iterator[tuple[str, str]]:
    for container in every_container(pod):
        for source in container.get("envFrom") or ():
            for field, kind in _SOURCES:
                if source.get(field):
                    yield kind, source[field].get("name") or ""
        for variable in container.get("env") or ():
            for field, kind in _KEYS:
                if (variable.get("valueFrom") or {}).get(field):
                    yield kind, variable["valueFrom"][field].get("name") or ""
