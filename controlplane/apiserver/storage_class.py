"""The default class of claims that name none: the newest of those that are annotated as such.

A claim that names "" wants no class at all. Source: upstream's plugin/pkg/admission/storage/storageclass.
"""

from __future__ import annotations

from typing import Any

from controlplane.claims import DEFAULT_CLASS, annotations_of
from controlplane.storage.cache import Cache

Object = dict[str, Any]


def give_default_class(cache: Cache, claim: Object) -> None:
    """Changes `claim` in place."""
    spec = claim.setdefault("spec", {})
    if spec.get("storageClassName") is not None:
        return
    entries = cache.collection("storage.k8s.io/storageclasses").present()
    marked = DEFAULT_CLASS.encode()
    found = [entry.parse() for entry in entries if marked in entry.raw]
    defaults = [each for each in found if annotations_of(each).get(DEFAULT_CLASS) == "true"]
    if defaults:
        newest = max(defaults, key=lambda c: (c["metadata"]["creationTimestamp"], c["metadata"]["name"]))
        spec["storageClassName"] = newest["metadata"]["name"]
