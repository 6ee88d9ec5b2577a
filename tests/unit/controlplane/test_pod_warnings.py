"""What is taken with a warning: a negative terminationGracePeriodSeconds, in a pod or a template of one."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.apiserver.pod_warnings import pod_warnings

SPEC = {
    "containers": [{"name": "c", "image": "i"}],
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": -1,
}
TEMPLATE = {"spec": SPEC}
WARNING = "must be >= 0; negative values are invalid and will be treated as 1"


@pytest.mark.parametrize(
    ("group", "plural", "obj", "path"),
    [
        ("", "pods", TEMPLATE, "spec"),
        ("apps", "deployments", {"spec": {"template": TEMPLATE}}, "spec.template.spec"),
        (
            "batch",
            "cronjobs",
            {"spec": {"jobTemplate": {"spec": {"template": TEMPLATE}}}},
            "spec.jobTemplate.spec.template.spec",
        ),
    ],
)
def test_a_negative_grace_is_warned_of(group: str, plural: str, obj: dict[str, Any], path: str) -> None:
    assert list(pod_warnings(group, plural, obj)) == [f"{path}.terminationGracePeriodSeconds: {WARNING}"]


def test_others_are_not_warned_of() -> None:
    assert list(pod_warnings("", "pods", {"spec": {**SPEC, "terminationGracePeriodSeconds": 0}})) == []
    assert list(pod_warnings("", "services", {"spec": TEMPLATE})) == []
