"""Workloads: Pods on create, and everything that carries a pod template.

A controller finds its pods by its selector, so a selector must match its own template and must never change.
Upstream: pkg/apis/apps/validation, pkg/apis/batch/validation, pkg/apis/core/validation.
"""

from __future__ import annotations

import json
import re
from typing import Any

from controlplane.apiserver.app_armor import check_app_armor
from controlplane.apiserver.validation_fields import (
    IMMUTABLE,
    Causes,
    GoLiteral,
    check_labels,
    check_selector,
    go_value,
    selector_matches,
)
from controlplane.apiserver.validation_pods import check_pod_spec

Object = dict[str, Any]

_PERCENT = re.compile(r"^[0-9]+%$")
_MOST_DIGITS = 20
_PERCENT_DETAIL = (
    "a valid percent string must be a numeric string followed by an ending '%' "
    "(e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
)
_STATEFUL_CHANGEABLE = (
    "replicas",
    "template",
    "updateStrategy",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
    "ordinals",
    "revisionHistoryLimit",
)


def pod(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    check_pod_spec(causes, "spec", spec)
    check_app_armor(causes, "", (obj.get("metadata") or {}).get("annotations") or {}, spec)
    if spec.get("ephemeralContainers"):
        causes.forbidden("spec.ephemeralContainers", "cannot be set on create")


def pod_template(causes: Causes, obj: Object) -> None:
    check_template(causes, "template", obj.get("template") or {})


def check_template(causes: Causes, path: str, template: Object) -> None:
    metadata = template.get("metadata") or {}
    check_labels(causes, f"{path}.metadata.labels", metadata.get("labels") or {})
    spec = template.get("spec") or {}
    check_pod_spec(causes, f"{path}.spec", spec, template=True)
    check_app_armor(causes, path, metadata.get("annotations") or {}, spec)


def _replicated(causes: Causes, obj: Object, word: str) -> None:
    """Replicas, selector and template of one workload; `word` names it in the sentence about empty selectors.
    """
    spec = obj.get("spec") or {}
    causes.non_negative("spec.replicas", spec.get("replicas"))
    causes.non_negative("spec.minReadySeconds", spec.get("minReadySeconds"))
    selector = spec.get("selector")
    template = spec.get("template") or {}
    if selector is None:
        causes.required("spec.selector")
    else:
        check_selector(causes, "spec.selector", selector)
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            causes.invalid("spec.selector", selector, f"empty selector is invalid for {word}")
        check_match(causes, selector, template)
    check_template(causes, "spec.template", template)
    _check_always(causes, template.get("spec") or {})


def check_match(causes: Causes, selector: Object, template: Object) -> None:
    labels = (template.get("metadata") or {}).get("labels") or {}
    empty = not selector.get("matchLabels") and not selector.get("matchExpressions")
    if not empty and not selector_matches(selector, labels):
        causes.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")


def _check_always(causes: Causes, spec: Object) -> None:
    policy = spec.get("restartPolicy")
    if policy and policy != "Always":
        causes.not_supported("spec.template.spec.restartPolicy", policy, ("Always",))
    if spec.get("activeDeadlineSeconds") is not None:
        detail = "activeDeadlineSeconds in ReplicaSet is not Supported"
        causes.forbidden("spec.template.spec.activeDeadlineSeconds", detail)


def deployment(causes: Causes, obj: Object) -> None:
    _replicated(causes, obj, "deployment")
    spec = obj.get("spec") or {}
    _check_strategy(causes, "spec.strategy", spec.get("strategy") or {}, ("Recreate", "RollingUpdate"))
    causes.non_negative("spec.revisionHistoryLimit", spec.get("revisionHistoryLimit"))
    deadline = spec.get("progressDeadlineSeconds")
    if deadline is not None:
        causes.non_negative("spec.progressDeadlineSeconds", deadline)
        if deadline <= (spec.get("minReadySeconds") or 0):
            causes.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")


def _check_strategy(causes: Causes, path: str, strategy: Object, types: tuple[str, ...]) -> None:
    kind = strategy.get("type") or ""
    rolling = strategy.get("rollingUpdate")
    causes.one_of(f"{path}.type", kind, types)
    if kind == "Recreate" and rolling is not None:
        detail = "may not be specified when strategy `type` is 'Recreate'"
        causes.forbidden(f"{path}.rollingUpdate", detail)
    if kind != "RollingUpdate" or rolling is None:
        return
    for name in ("maxUnavailable", "maxSurge"):
        check_int_or_percent(causes, f"{path}.rollingUpdate.{name}", rolling.get(name))
    unavailable, surge = rolling.get("maxUnavailable"), rolling.get("maxSurge")
    if _is_zero(unavailable) and _is_zero(surge):
        causes.invalid(
            f"{path}.rollingUpdate.maxUnavailable",
            go_int_or_string(unavailable),
            "may not be 0 when `maxSurge` is 0",
        )
    if isinstance(unavailable, str) and _PERCENT.match(unavailable) and over_100_percent(unavailable[:-1]):
        causes.invalid(
            f"{path}.rollingUpdate.maxUnavailable",
            go_int_or_string(unavailable),
            "must not be greater than 100%",
        )


def over_100_percent(digits: str) -> bool:
    """Whether the number before a percent sign is more than 100; Python reads no thousands of digits."""
    return digits.isdecimal() and (len(digits) > _MOST_DIGITS or int(digits) > 100)


def go_int_or_string(value: Any) -> GoLiteral:
    """An IntOrString as Go's %#v shows it."""
    if isinstance(value, str):
        return GoLiteral(f"intstr.IntOrString{{Type:1, IntVal:0, StrVal:{json.dumps(value)}}}")
    return GoLiteral(f'intstr.IntOrString{{Type:0, IntVal:{value or 0}, StrVal:""}}')


def _is_zero(value: Any) -> bool:
    return value in (0, None, "0%")


def check_int_or_percent(causes: Causes, path: str, value: Any) -> None:
    if isinstance(value, str):
        if not _PERCENT.match(value):
            causes.invalid(path, go_int_or_string(value), _PERCENT_DETAIL)
    else:
        causes.non_negative(path, value)


def replica_set(causes: Causes, obj: Object) -> None:
    _replicated(causes, obj, "ReplicaSet")


def replication_controller(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    causes.non_negative("spec.replicas", spec.get("replicas"))
    selector = spec.get("selector") or {}
    if not selector:
        causes.required("spec.selector")
    template = spec.get("template")
    if template is None:
        causes.required("spec.template")
        return
    labels = (template.get("metadata") or {}).get("labels") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        causes.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")
    check_template(causes, "spec.template", template)
    _check_always(causes, template.get("spec") or {})


def stateful_set(causes: Causes, obj: Object) -> None:
    _replicated(causes, obj, "statefulset")
    spec = obj.get("spec") or {}
    causes.one_of("spec.podManagementPolicy", spec.get("podManagementPolicy"), ("OrderedReady", "Parallel"))
    strategy = spec.get("updateStrategy") or {}
    causes.one_of("spec.updateStrategy.type", strategy.get("type"), ("RollingUpdate", "OnDelete"))
    rolling = strategy.get("rollingUpdate")
    if rolling is not None and strategy.get("type") == "OnDelete":
        detail = "only allowed for updateStrategy 'RollingUpdate'"
        causes.invalid("spec.updateStrategy.rollingUpdate", rolling, detail)
    causes.non_negative("spec.updateStrategy.rollingUpdate.partition", (rolling or {}).get("partition"))
    causes.non_negative("spec.ordinals.start", (spec.get("ordinals") or {}).get("start"))
    for name, policy in (spec.get("persistentVolumeClaimRetentionPolicy") or {}).items():
        causes.one_of(f"spec.persistentVolumeClaimRetentionPolicy.{name}", policy, ("Delete", "Retain"))


def daemon_set(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    selector, template = spec.get("selector"), spec.get("template") or {}
    if selector is None:
        causes.required("spec.selector")
    else:
        check_selector(causes, "spec.selector", selector)
        check_match(causes, selector, template)
    check_template(causes, "spec.template", template)
    _check_always(causes, template.get("spec") or {})
    strategy = spec.get("updateStrategy") or {}
    causes.one_of("spec.updateStrategy.type", strategy.get("type"), ("RollingUpdate", "OnDelete"))
    if strategy.get("type") == "RollingUpdate":
        rolling = strategy.get("rollingUpdate") or {}
        names = ("maxUnavailable", "maxSurge")
        unavailable, surge = (rolling.get(name) not in (None, 0, "0%") for name in names)
        path = "spec.updateStrategy.rollingUpdate"
        if unavailable and surge:
            detail = "may not be set when maxUnavailable is non-zero"
            causes.invalid(f"{path}.maxSurge", rolling["maxSurge"], detail)
        if not unavailable and not surge:
            causes.required(f"{path}.maxUnavailable", "cannot be 0 when maxSurge is 0")


def go_selector(selector: Object) -> GoLiteral:
    """A LabelSelector as Go's %#v shows it."""
    labels = selector.get("matchLabels")
    shown = "map[string]string(nil)" if labels is None else go_value(labels)
    terms = selector.get("matchExpressions")
    listed = "[]v1.LabelSelectorRequirement(nil)"
    if terms:
        inner = ", ".join(
            f"v1.LabelSelectorRequirement{{Key:{go_value(term.get('key') or '')}, "
            f"Operator:{go_value(term.get('operator') or '')}, Values:{go_value(term.get('values') or [])}}}"
            for term in terms
        )
        listed = f"[]v1.LabelSelectorRequirement{{{inner}}}"
    return GoLiteral(f"v1.LabelSelector{{MatchLabels:{shown}, MatchExpressions:{listed}}}")


def selector_update(causes: Causes, new: Object, old: Object) -> None:
    """Deployments, ReplicaSets, DaemonSets: the selector stays."""
    after, before = (new.get("spec") or {}).get("selector"), (old.get("spec") or {}).get("selector")
    if after is not None and after != before:
        causes.invalid("spec.selector", go_selector(after), IMMUTABLE)


def stateful_set_update(causes: Causes, new: Object, old: Object) -> None:
    after, before = new.get("spec") or {}, old.get("spec") or {}
    if any(after.get(key) != before.get(key) for key in {*after, *before} if key not in _STATEFUL_CHANGEABLE):
        detail = (
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', "
            "'updateStrategy', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
        )
        causes.forbidden("spec", detail)
