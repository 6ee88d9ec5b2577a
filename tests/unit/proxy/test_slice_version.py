"""Which version of EndpointSlices is followed: what the API server has."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from kubeclient.errors import ApiError, Forbidden, NotFound, ServerUnavailable
from kubeclient.resources import ENDPOINT_SLICES, ENDPOINT_SLICES_BETA, Resource
from proxy.slice_version import endpoint_slices


class Api:
    """Answers each list with the next of these: an error, or nothing for a list."""

    def __init__(self, *answers: ApiError | None, stop: threading.Event | None = None) -> None:
        self.answers = list(answers)
        self.stop = stop

    def list(self, resource: Resource, *, limit: int) -> dict[str, Any]:
        assert (resource, limit) == (ENDPOINT_SLICES, 1)
        answer = self.answers.pop(0)
        if self.stop is not None and not self.answers:
            self.stop.set()
        if answer is not None:
            raise answer
        return {"items": []}


DOWN = ServerUnavailable.unreachable("down")
UNKNOWN = NotFound({"reason": "NotFound", "code": 404, "message": "the server could not find it"})


@pytest.mark.parametrize(("answers", "wanted"), [
    ((None,), ENDPOINT_SLICES),
    ((DOWN, DOWN, None), ENDPOINT_SLICES),
    ((DOWN, UNKNOWN), ENDPOINT_SLICES_BETA),
])  # fmt: skip
def test_v1_where_there_is_one(answers: tuple[ApiError | None, ...], wanted: Resource) -> None:
    assert endpoint_slices(Api(*answers), threading.Event()) == wanted  # type: ignore[arg-type]


def test_a_proxy_that_is_stopped_before_an_answer_follows_nothing() -> None:
    stop = threading.Event()
    assert endpoint_slices(Api(DOWN, DOWN, stop=stop), stop) is None  # type: ignore[arg-type]


def test_a_refusal_is_told_once_and_a_start_that_waits_is_not(caplog: pytest.LogCaptureFixture) -> None:
    refused = Forbidden({"reason": "Forbidden", "code": 403, "message": "endpointslices is forbidden"})
    api = Api(DOWN, refused, refused, None)
    assert endpoint_slices(api, threading.Event()) == ENDPOINT_SLICES  # type: ignore[arg-type]
    assert [record.levelname for record in caplog.records if record.levelno >= logging.WARNING] == ["WARNING"]
