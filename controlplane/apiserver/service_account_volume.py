"""Which service account a pod runs as, and the volume that tells its containers so.

Every pod has an account (`default` if it names none) and, unless it or the account says no, a projected
volume at /var/run/secrets/kubernetes.io/serviceaccount with a token that ends with the pod, the cluster's CA
and the namespace: what client libraries look for (upstream: plugin/pkg/admission/serviceaccount).
"""

from __future__ import annotations

import secrets
from typing import Any

from controlplane.apiserver.errors import forbidden
from controlplane.apiserver.resources import ResourceInfo
from controlplane.storage.cache import Cache

Object = dict[str, Any]

MOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_VOLUME = "kube-api-access-"
_MIRROR = "kubernetes.io/config.mirror"
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_TOKEN_SECONDS = 3607  # an hour, and recognisable as ours


def is_mirror(pod: Object) -> bool:
    """A static pod's image in the API: its kubelet runs it whatever we decide."""
    return _MIRROR in (pod["metadata"].get("annotations") or {})


def give_service_account(
    cache: Cache, info: ResourceInfo, namespace: str, pod: Object, *, automount: bool
) -> None:
    """Changes `pod` in place. Raises StatusError (403) when the account does not exist."""
    spec = pod["spec"]
    account_name = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    spec["serviceAccountName"] = spec["serviceAccount"] = account_name
    entry = cache.latest("core/serviceaccounts", namespace, account_name)
    if entry is None:
        text = f'error looking up service account {namespace}/{account_name}: serviceaccount "{account_name}"'
        raise forbidden(info, pod["metadata"].get("name", ""), f"{text} not found")
    account = entry.parse()
    if not spec.get("imagePullSecrets") and account.get("imagePullSecrets"):
        spec["imagePullSecrets"] = account["imagePullSecrets"]
    wanted = spec.get("automountServiceAccountToken")
    if wanted is None:
        wanted = account.get("automountServiceAccountToken")
    if automount and wanted is not False:
        _mount(spec)


def _mount(spec: Object) -> None:
    volumes = spec.get("volumes") or []
    name = next((volume["name"] for volume in volumes if volume.get("name", "").startswith(_VOLUME)), None)
    chosen = name or _VOLUME + "".join(secrets.choice(_LETTERS) for _ in range(5))
    needed = False
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        mounts = container.get("volumeMounts") or []
        if any(mount.get("mountPath") == MOUNT_PATH for mount in mounts):
            continue
        mounts.append({"name": chosen, "readOnly": True, "mountPath": MOUNT_PATH})
        container["volumeMounts"] = mounts
        needed = True
    if needed and name is None:
        spec["volumes"] = [*volumes, _volume(chosen)]


def _volume(name: str) -> Object:
    field = {"apiVersion": "v1", "fieldPath": "metadata.namespace"}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": _TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": field}]}},
    ]
    return {"name": name, "projected": {"sources": sources, "defaultMode": 420}}
