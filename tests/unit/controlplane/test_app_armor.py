"""AppArmor's old annotation: the field that is made of it, the warning, and what of it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.apiserver.app_armor import check_app_armor, give_fields
from controlplane.apiserver.validation_fields import Causes
from kubeclient.app_armor import ANNOTATION

Object = dict[str, Any]
UNCONFINED = {"type": "Unconfined"}
DEFAULT = {"type": "RuntimeDefault"}
MINE = {"type": "Localhost", "localhostProfile": "mine"}


def pod(value: str | None, own: Object | None = None, general: Object | None = None) -> Object:
    container: Object = {"name": "c", **({"securityContext": {"appArmorProfile": own}} if own else {})}
    return {
        "metadata": {"annotations": {} if value is None else {ANNOTATION + "c": value}},
        "spec": {
            "containers": [container],
            **({"securityContext": {"appArmorProfile": general}} if general else {}),
        },
    }


@pytest.mark.parametrize(
    ("obj", "wanted", "warned"),
    [
        (pod(None), None, False),
        (pod("localhost/mine"), MINE, True),
        (pod("runtime/default"), DEFAULT, True),
        (pod("unconfined"), UNCONFINED, True),
        (pod("unconfined", own=MINE), MINE, False),
        (pod("localhost/mine", general=MINE), None, False),
        (pod("unconfined", general=MINE), UNCONFINED, True),
        (pod("localhost/"), None, True),
        (pod("localhost/ padded"), None, True),
        (pod("nonsense"), None, True),
    ],
)
def test_the_field_is_made_of_the_annotation(obj: Object, wanted: Object | None, warned: bool) -> None:
    warnings: list[str] = []
    give_fields(obj, warnings)
    [container] = obj["spec"]["containers"]
    assert (container.get("securityContext") or {}).get("appArmorProfile") == wanted
    text = 'deprecated since v1.30; use the "appArmorProfile" field instead'
    assert warnings == ([f"{KEY}: {text}"] if warned else [])


KEY = f"metadata.annotations[{ANNOTATION}c]"
OWN = "spec.containers[0].securityContext.appArmorProfile"


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        (pod(None, own=MINE), []),
        (pod(""), []),
        (pod("localhost/mine", own=MINE), []),
        (pod("unconfined", own=UNCONFINED), []),
        (pod("other"),
         [f'{KEY}: Invalid value: "other": invalid AppArmor profile name: "other"']),
        (pod("unconfined", own=MINE),
         [f"{OWN}.type: Forbidden: apparmor type in annotation and field must match"]),
        (pod("localhost/other", own=MINE),
         [f"{OWN}.localhostProfile: Forbidden: apparmor profile in annotation and field must match"]),
    ],
)  # fmt: skip
def test_annotations_that_are_refused(obj: Object, wanted: list[str]) -> None:
    causes = Causes()
    check_app_armor(causes, "", obj["metadata"]["annotations"], obj["spec"])
    assert [f"{cause.field}: {cause.message}" for cause in causes.found] == wanted


def test_an_annotation_of_nobody_in_a_template_is_refused() -> None:
    causes = Causes()
    check_app_armor(causes, "spec.template", {ANNOTATION + "d": "unconfined"}, pod(None)["spec"])
    [cause] = causes.found
    assert cause.field == f"spec.template.metadata.annotations[{ANNOTATION}d]"
    assert cause.message == 'Invalid value: "d": container not found'
