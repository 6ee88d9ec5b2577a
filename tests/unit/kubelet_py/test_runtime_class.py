"""From runtimeClassName to handler, and what is said when there is none."""

from __future__ import annotations

from typing import Any

import pytest
from pods_in_words import pod

from kubeclient.errors import ApiError, NotFound
from kubelet_py.errors import SandboxError
from kubelet_py.pods.runtime_class import RuntimeClasses


class Client:
    def get(self, resource: Any, name: str) -> dict[str, Any]:
        if name == "sandboxed":
            return {"handler": "kata"}
        if name == "broken":
            raise ApiError({"code": 500, "message": "no luck"})
        raise NotFound({"code": 404, "message": "gone"})


CLIENT: Any = Client()


def named(name: str | None) -> dict[str, Any]:
    body = pod()
    if name is not None:
        body["spec"]["runtimeClassName"] = name
    return body


@pytest.mark.parametrize(("name", "handler"), [(None, ""), ("", ""), ("sandboxed", "kata")])
def test_handler_of_a_pod(name: str | None, handler: str) -> None:
    assert RuntimeClasses(CLIENT).handler(named(name)) == handler


@pytest.mark.parametrize(
    ("client", "name", "text"),
    [
        (CLIENT, "nope", 'runtimeclass.node.k8s.io "nope" not found'),
        (CLIENT, "broken", "failed to lookup RuntimeClass broken: .*no luck"),
        (None, "sandboxed", "failed to lookup RuntimeClass sandboxed: there is no API server"),
    ],
)
def test_pod_whose_class_is_unknown_does_not_run(client: Any, name: str, text: str) -> None:
    with pytest.raises(SandboxError, match=text):
        RuntimeClasses(client).handler(named(name))


def test_pod_without_a_class_needs_no_api_server() -> None:
    assert RuntimeClasses(None).handler(named(None)) == ""
