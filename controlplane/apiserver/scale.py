"""The Scale view of workloads: one number of replicas, whatever the kind around it (autoscaling/v1)."""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.errors import INVALID, REQUIRED, Cause, bad_request, conflict, invalid
from controlplane.apiserver.resources import ResourceInfo

Object = dict[str, Any]

_METADATA = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def get_scale(info: ResourceInfo, obj: Object) -> Object:
    """What GET …/scale shows of a workload."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    metadata = {name: obj["metadata"][name] for name in _METADATA if name in obj["metadata"]}
    found: Object = {"replicas": status.get("replicas", 0)}
    selector = _selector(info, spec.get("selector"))
    if selector:
        found["selector"] = selector
    scale: Object = {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata}
    replicas = spec.get("replicas", 1)
    return scale | {"spec": {"replicas": replicas} if replicas else {}, "status": found}


def put_scale(info: ResourceInfo, obj: Object, scale: Object) -> Object:
    """The workload with the scale's number of replicas. Raises StatusError (400, 409, 422)."""
    metadata = scale.get("metadata") or {}
    name = obj["metadata"]["name"]
    if metadata.get("name", name) != name:
        raise bad_request(f"the name of the object ({metadata['name']}) does not match the name on the URL")
    version = metadata.get("resourceVersion")
    if version and version != obj["metadata"]["resourceVersion"]:
        raise conflict(info, name)
    spec = scale.get("spec")
    if not isinstance(spec, dict):
        raise invalid("Scale", "autoscaling", name, [Cause(REQUIRED, "spec", "Required value")])
    replicas = spec.get("replicas", 0)
    if isinstance(replicas, bool) or not isinstance(replicas, int):
        raise bad_request("Scale in version \"v1\" cannot be handled as a Scale: spec.replicas is no integer")
    if replicas < 0:
        text = f"Invalid value: {replicas}: must be greater than or equal to 0"
        raise invalid("Scale", "autoscaling", name, [Cause(INVALID, "spec.replicas", text)])
    obj["spec"]["replicas"] = replicas
    return obj


def _selector(info: ResourceInfo, selector: Object | None) -> str:
    """A label selector in the text form that clients put into ?labelSelector=."""
    if not selector:
        return ""
    if (info.group, info.plural) == ("", "replicationcontrollers"):
        return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for expression in selector.get("matchExpressions") or ():
        key, operator = expression.get("key"), expression.get("operator")
        values = ",".join(sorted(expression.get("values") or ()))
        parts.append(
            {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": f"{key}"}.get(
                operator, f"!{key}"
            )
        )
    return ",".join(sorted(parts))
