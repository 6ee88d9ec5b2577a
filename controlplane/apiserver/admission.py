"""What is decided about a write beyond its own shape: rules that look at the rest of the cluster.

Upstream calls these admission plugins; each is a small method or module here, run in upstream's order for
every write that passed authorization: NamespaceLifecycle, NodeRestriction, LimitRanger, ServiceAccount,
Priority, DefaultTolerationSeconds, DefaultStorageClass, RuntimeClass, ResourceQuota; and for
CertificateSigningRequests CertificateApproval, CertificateSigning and CertificateSubjectRestriction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlplane.apiserver import escalation, node_restriction, signing_requests
from controlplane.apiserver.app_armor import give_fields
from controlplane.apiserver.defaults_pod import qos_class
from controlplane.apiserver.errors import forbidden, namespace_terminating, not_found
from controlplane.apiserver.limit_ranger import complaints, give_defaults
from controlplane.apiserver.pod_warnings import pod_warnings
from controlplane.apiserver.quota_admission import check_quota
from controlplane.apiserver.resources import ResourceInfo, lookup
from controlplane.apiserver.runtime_class import apply_runtime_class
from controlplane.apiserver.service_account_volume import give_service_account, is_mirror
from controlplane.apiserver.storage_class import give_default_class
from controlplane.apiserver.users import User
from controlplane.quota import not_counted
from controlplane.storage.cache import Cache

Object = dict[str, Any]

_IMMORTAL = ("default", "kube-system", "kube-public")
_POD = ("", "pods")
_NODE = ("", "nodes")
_WAITED_OUT = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_PREEMPT = "PreemptLowerPriority"


class Admission:
    """All plugins over one cache."""

    def __init__(
        self,
        cache: Cache,
        *,
        automount: bool,
        may: signing_requests.May,
        rights: escalation.Rights,
        tolerated: tuple[int, int] = (300, 300),
    ) -> None:
        """`automount`: give pods the volume with their service account's token, as upstream does.
        `may`: may this user approve or sign for that signer? `rights`: what each user may do at all, so that
        nobody grants more. `tolerated`: seconds that pods stay on a node
        that is not ready, and on one that is not reachable, unless they say otherwise.
        """
        self._cache = cache
        self._may = may
        self._rights = rights
        self._automount = automount
        self._tolerated = dict(zip(_WAITED_OUT, tolerated, strict=True))

    def create(
        self, info: ResourceInfo, namespace: str, obj: Object, user: User, warnings: list[str]
    ) -> None:
        """May change `obj` and add to `warnings`. Raises StatusError (403, 404)."""
        key = (info.group, info.plural)
        name = obj["metadata"].get("name", "")
        if info.namespaced:
            self._namespace_lifecycle(info, namespace, name)
        if user.node_name:
            node_restriction.restrict_create(info, name, obj, user)
        escalation.check(self._rights, info, namespace, obj, user)
        if key == _POD:
            give_fields(obj, warnings)
            self._limit_ranges(info, namespace, obj)
            if not is_mirror(obj):
                give_service_account(self._cache, info, namespace, obj, automount=self._automount)
            self._priority(info, obj)
            _default_tolerations(obj, self._tolerated)
            apply_runtime_class(self._cache, info, obj)
        elif key == signing_requests.KEY:
            signing_requests.admit_create(info, obj, user)
        elif key == ("", "persistentvolumeclaims"):
            give_default_class(self._cache, obj)
        elif key == ("", "resourcequotas"):
            warnings.extend(not_counted(obj))
        warnings.extend(pod_warnings(info.group, info.plural, obj))
        if info.namespaced and info.stored and not is_mirror(obj):
            check_quota(self._cache, info, namespace, obj)

    def update(
        self, info: ResourceInfo, namespace: str, new: Object, old: Object, user: User, subresource: str
    ) -> None:
        """May change `new`. Raises StatusError (403)."""
        if subresource == "resize":
            ranges = [entry.parse() for entry in self._cache.newest("core/limitranges", namespace)]
            _refuse(info, new, complaints(new, ranges))
            check_quota(self._cache, info, namespace, new, old)
        escalation.check(self._rights, info, namespace, new, user, old)
        if (info.group, info.plural) == signing_requests.KEY:
            signing_requests.admit_update(info, new, old, user, subresource, self._may)
        if user.node_name and (info.group, info.plural) == _NODE:
            node_restriction.restrict_node_update(info, new, old, user, subresource)
        elif user.node_name and (info.group, info.plural) == _POD and subresource == "status":
            node_restriction.restrict_pod_status(info, new, old, user)

    def delete(self, info: ResourceInfo, namespace: str, name: str, user: User) -> None:
        """Raises StatusError (403)."""
        if (info.group, info.plural) == ("", "namespaces") and name in _IMMORTAL:
            raise forbidden(info, name, "this namespace may not be deleted")

    def _namespace_lifecycle(self, info: ResourceInfo, namespace: str, name: str) -> None:
        entry = self._cache.latest("core/namespaces", "", namespace)
        if entry is None:
            namespaces = lookup("", "v1", "namespaces")
            assert namespaces is not None
            raise not_found(namespaces, namespace)
        if b'"deletionTimestamp"' in entry.raw and "deletionTimestamp" in entry.parse()["metadata"]:
            raise namespace_terminating(info, name, namespace)

    def _limit_ranges(self, info: ResourceInfo, namespace: str, pod: Object) -> None:
        """Amounts that the pod's author left out, and those that the namespace does not allow."""
        ranges = [entry.parse() for entry in self._cache.newest("core/limitranges", namespace)]
        if not ranges or is_mirror(pod):
            return
        if give_defaults(pod, ranges):
            pod["status"]["qosClass"] = qos_class(pod["spec"])
        _refuse(info, pod, complaints(pod, ranges))

    def _priority(self, info: ResourceInfo, pod: Object) -> None:
        """A class name becomes the number that the scheduler compares."""
        spec, name = pod["spec"], pod["metadata"].get("name", "")
        wanted = spec.get("priorityClassName")
        value, policy = 0, _PREEMPT
        chosen: Object | None
        if wanted:
            entry = self._cache.latest("scheduling.k8s.io/priorityclasses", "", wanted)
            if entry is None:
                raise forbidden(info, name, f"no PriorityClass with name {wanted} was found")
            chosen = entry.parse()
        else:
            chosen = self._default_priority_class()
            if chosen:
                spec["priorityClassName"] = chosen["metadata"]["name"]
        if chosen:
            value, policy = chosen.get("value", 0), chosen.get("preemptionPolicy") or _PREEMPT
        given = spec.get("priority")
        if given is not None and given != value:
            raise forbidden(
                info,
                name,
                f"the integer value of priority ({given}) must not be provided in pod spec; priority"
                f" admission controller computed {value} from the given PriorityClass name",
            )
        asked = spec.setdefault("preemptionPolicy", policy)
        if asked != policy:
            raise forbidden(
                info,
                name,
                f"the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority"
                f" admission controller computed {policy} from the given PriorityClass name",
            )
        spec["priority"] = value

    def _default_priority_class(self) -> Object | None:
        found: Object | None = None
        for entry in self._cache.collection("scheduling.k8s.io/priorityclasses").present():
            if b'"globalDefault":true' in entry.raw:
                candidate = entry.parse()
                if found is None or candidate.get("value", 0) < found.get("value", 0):
                    found = candidate
        return found


def _refuse(info: ResourceInfo, pod: Object, found: list[str]) -> None:
    if found:
        text = found[0] if len(found) == 1 else f"[{', '.join(found)}]"
        raise forbidden(info, pod["metadata"].get("name", ""), text)


def _default_tolerations(pod: Object, tolerated: Mapping[str, int]) -> None:
    """Upstream's DefaultTolerationSeconds; `tolerated`: taint → seconds."""
    tolerations = pod["spec"].get("tolerations") or []
    for key, seconds in tolerated.items():
        covered = any(
            part.get("effect") in (None, "", "NoExecute")
            and (part.get("key") == key or (not part.get("key") and part.get("operator") == "Exists"))
            for part in tolerations
        )
        if not covered:
            tolerations.append(
                {
                    "key": key,
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": seconds,
                }
            )
    pod["spec"]["tolerations"] = tolerations
