"""The verbs of the Kubernetes API, one method each, and the watch stream.

Answers are plain dicts as in JSON; refusals are the exceptions of errors.py. A RestClient may be used by any
number of threads: every exchange has a connection of its own for as long as it lasts (transport.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlencode

import orjson

from kubeclient.errors import ServerUnavailable, from_response, from_status
from kubeclient.kubeconfig import ClientConfig
from kubeclient.resources import Resource
from kubeclient.response import Response
from kubeclient.transport import Connection, Transport

Object = dict[str, Any]
Params = Mapping[str, str | int | bool | None]

PATCH_TYPES = {
    "strategic": "application/strategic-merge-patch+json",
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
CHUNK = 65536
Observe = Callable[[str, int, float], None]
"""Called with (method, status code, seconds) after each exchange, a watch's up to its first byte; the code is
0 where no answer came."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event: `type` is ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Object


class RestClient:
    """A client of one API server with one identity; `timeout` seconds bound every exchange but watches."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        user_agent: str = "kubelet-py",
        timeout: float = 30.0,
        observe: Observe = lambda method, code, seconds: None,
    ) -> None:
        self._transport = Transport(config, timeout=timeout)
        self._observe = observe
        self._headers = {"User-Agent": user_agent, "Accept": "application/json"}

    def close(self) -> None:
        """Drop idle connections; the client can still be used."""
        self._transport.close()

    def get(self, r: Resource, name: str, namespace: str | None = None) -> Object:
        return self._call("GET", r.path(namespace, name))

    def list(
        self,
        r: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        resource_version: str | None = None,
        limit: int | None = None,
        continue_: str | None = None,
    ) -> Object:
        """The List object: `items` (without their own kind and apiVersion) and `metadata`."""
        params: Params = {
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "resourceVersion": resource_version,
            "limit": limit,
            "continue": continue_,
        }
        answer = self._call("GET", r.path(namespace), params)
        answer["items"] = answer.get("items") or []
        return answer

    def create(
        self,
        r: Resource,
        obj: Object,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        name: str | None = None,
    ) -> Object:
        """POST to the collection, or with `subresource` and `name` to …/name/subresource (binding, token)."""
        place = namespace or obj.get("metadata", {}).get("namespace")
        return self._call("POST", r.path(place, name, subresource), body=obj)

    def update(self, r: Resource, obj: Object, *, subresource: str | None = None) -> Object:
        """PUT; a stale metadata.resourceVersion raises Conflict."""
        metadata = obj["metadata"]
        path = r.path(metadata.get("namespace"), metadata["name"], subresource)
        return self._call("PUT", path, body=obj)

    def patch(
        self,
        r: Resource,
        name: str,
        body: Any,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        kind: str = "strategic",
    ) -> Object:
        """PATCH; `kind` is strategic, merge, json (body is a list of operations) or apply."""
        path = r.path(namespace, name, subresource)
        return self._call("PATCH", path, body=body, content_type=PATCH_TYPES[kind])

    def delete(
        self,
        r: Resource,
        name: str,
        namespace: str | None = None,
        *,
        grace_period_seconds: int | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation_policy: str | None = None,
    ) -> Object:
        """DELETE; `uid` and `resource_version` are preconditions, whose failure raises Conflict."""
        preconditions = {
            key: value for key, value in (("uid", uid), ("resourceVersion", resource_version)) if value
        }
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        if preconditions:
            options["preconditions"] = preconditions
        if propagation_policy:
            options["propagationPolicy"] = propagation_policy
        return self._call("DELETE", r.path(namespace, name), body=options)

    def raw(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Any request; (code, headers in lower case, body) whatever the code. Raises ServerUnavailable."""
        sent = {**self._headers, **self._transport.authorization(), **dict(headers or {})}
        target, began, code = self._transport.target(_with(path, params)), time.monotonic(), 0
        try:
            answer = self._transport.request(method, target, sent, body)
            code = answer[0]
        finally:
            self._observe(method, code, time.monotonic() - began)
        return answer

    def watch(
        self,
        r: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        timeout_seconds: int = 300,
        bookmarks: bool = True,
    ) -> Watch:
        """Open a watch from `resource_version` on; raises Gone where that is too old."""
        params: Params = {
            "watch": "1",
            "resourceVersion": resource_version,
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "timeoutSeconds": timeout_seconds,
            "allowWatchBookmarks": "true" if bookmarks else None,
        }
        target, began, code = self._transport.target(_with(r.path(namespace), params)), time.monotonic(), 0
        headers = {**self._headers, **self._transport.authorization()}
        try:
            connection = self._transport.open(timeout=timeout_seconds + 30.0)
            try:
                response = connection.send("GET", target, headers, None)
                code = response.status
                if code != 200:
                    body = response.read()
                    raise from_response(code, response.received, body)
            except (HTTPException, OSError) as error:
                connection.close()
                raise ServerUnavailable.unreachable(f"Could not watch {r.plural}: {error}") from error
            except BaseException:
                connection.close()
                raise
        finally:
            self._observe("GET", code, time.monotonic() - began)
        return Watch(connection, response)

    def _call(
        self,
        method: str,
        path: str,
        params: Params | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Object:
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": content_type} if data is not None else {}
        code, received, answer = self.raw(method, path, params=params, body=data, headers=headers)
        if code >= 400:
            raise from_response(code, received, answer)
        try:
            parsed: Object = orjson.loads(answer)
        except ValueError as error:  # a proxy's page, with a code that means yes
            text = f"Could not read the answer to {method} {path}: {error}"
            raise ServerUnavailable.unreachable(text) from error
        return parsed


class Watch:
    """An open watch: iterate over it; it ends when the server ends it or `close` is called by any thread.

    Iterating raises Gone (the history asked for is past) or another ApiError that the server sent as an
    event, and ServerUnavailable when the connection broke.
    """

    def __init__(self, connection: Connection, response: Response) -> None:
        self._connection = connection
        self._response = response
        self._closed = False

    def __iter__(self) -> Iterator[WatchEvent]:
        try:
            for line in self._lines():
                if self._closed:
                    return
                event = orjson.loads(line)
                if event["type"] == "ERROR":
                    raise from_status(event["object"])
                yield WatchEvent(event["type"], event["object"])
        finally:
            self._response.close()
            self._connection.close()

    def _lines(self) -> Iterator[bytes]:
        """Lines as they arrive; read1 hands over what is there without waiting for more."""
        rest = b""
        while True:
            try:
                chunk = self._response.read1(CHUNK)
            except (HTTPException, OSError, ValueError) as error:
                if self._closed:
                    return
                raise ServerUnavailable.unreachable(f"Could not read the watch: {error}") from error
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line for line in lines if line)

    def close(self) -> None:
        """End the watch; a thread that is blocked in it returns at once."""
        self._closed = True
        self._connection.interrupt()


def _with(path: str, params: Params | None) -> str:
    pairs = [(key, str(value)) for key, value in (params or {}).items() if value is not None and value != ""]
    if not pairs:
        return path
    return f"{path}{'&' if '?' in path else '?'}{urlencode(pairs)}"
