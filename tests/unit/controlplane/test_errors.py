"""The bytes of refusals: some clients compare them."""

from __future__ import annotations

import orjson
import pytest

from controlplane.apiserver import errors
from controlplane.apiserver.resources import ResourceInfo, lookup


def info(plural: str, group: str = "", version: str = "v1") -> ResourceInfo:
    found = lookup(group, version, plural)
    assert found is not None
    return found


def test_already_exists_is_byte_for_byte_what_go_writes() -> None:
    assert errors.already_exists(info("pods"), "p").body() == (
        b'{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",'
        b'"message":"pods \\"p\\" already exists","reason":"AlreadyExists",'
        b'"details":{"name":"p","kind":"pods"},"code":409}\n'
    )


def test_a_named_group_appears_in_the_sentence_and_in_the_details() -> None:
    error = errors.not_found(info("deployments", "apps"), "web")
    assert error.message == 'deployments.apps "web" not found'
    assert error.details == {"name": "web", "group": "apps", "kind": "deployments"}


def test_invalid_lists_distinct_causes_in_brackets() -> None:
    name = errors.Cause(errors.REQUIRED, "spec.containers[0].name", "Required value")
    image = errors.Cause(errors.REQUIRED, "spec.containers[0].image", "Required value")
    error = errors.invalid("Pod", "", "p", [name, image, image])
    assert error.code == 422
    assert error.message == (
        'Pod "p" is invalid: [spec.containers[0].name: Required value, '
        "spec.containers[0].image: Required value]"
    )
    assert [cause["field"] for cause in error.to_object()["details"]["causes"]] == [
        "spec.containers[0].name",
        "spec.containers[0].image",
        "spec.containers[0].image",
    ]


def test_invalid_with_one_cause_has_no_brackets() -> None:
    cause = errors.Cause(errors.REQUIRED, "spec.containers", "Required value")
    assert (
        errors.invalid("Pod", "", "q", [cause]).message
        == 'Pod "q" is invalid: spec.containers: Required value'
    )


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (errors.bad_request("x"), 400, "BadRequest"),
        (errors.unauthorized(), 401, "Unauthorized"),
        (errors.unknown_resource(), 404, "NotFound"),
        (errors.method_not_allowed(), 405, "MethodNotAllowed"),
        (errors.not_acceptable(), 406, "NotAcceptable"),
        (errors.expired(), 410, "Expired"),
        (errors.unsupported_media_type(), 415, "UnsupportedMediaType"),
        (errors.too_many_requests("busy"), 429, "TooManyRequests"),
        (errors.internal("x"), 500, "InternalError"),
        (errors.too_large_resource_version(9, 2), 504, "Timeout"),
    ],
)
def test_code_and_reason_belong_together(error: errors.StatusError, code: int, reason: str) -> None:
    body = orjson.loads(error.body())
    assert (body["code"], body["reason"], body["status"]) == (code, reason, "Failure")


def test_busy_answers_say_when_to_come_back() -> None:
    assert errors.too_many_requests("x", retry_after=7).retry_after == 7
    assert errors.bad_request("x").retry_after is None


def test_apply_conflict_names_the_other_manager_once() -> None:
    causes = [
        errors.Cause("FieldManagerConflict", path, 'conflict with "A"') for path in (".data.a", ".data.b")
    ]
    error = errors.apply_conflict(causes)
    assert error.message == 'Apply failed with 2 conflicts: conflict with "A":\n- .data.a\n- .data.b'
    single = errors.apply_conflict(causes[:1])
    assert single.message == 'Apply failed with 1 conflict: conflict with "A": .data.a'
