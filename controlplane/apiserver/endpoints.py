"""Everything that is not an object: version, health, discovery, OpenAPI."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable

import orjson
from aiohttp import web

from controlplane.apiserver.calls import Call, answer
from controlplane.apiserver.errors import method_not_allowed, unknown_resource
from controlplane.apiserver.resources import group_versions

MAJOR, MINOR, VERSION = "1", "32", "v1.32.0"
_HEALTH = ("/healthz", "/livez", "/readyz")


class EndpointHandler:
    """Answers paths that name no resource."""

    def __init__(self, checks: dict[str, Callable[[], bool]]) -> None:
        self._checks = checks

    def handle(self, call: Call) -> web.Response:
        """Raises StatusError (404, 405)."""
        if call.request.method not in ("GET", "HEAD"):
            raise method_not_allowed()
        path = call.request.path.rstrip("/") or "/"
        if path.startswith(_HEALTH):
            return self._health(call, path)
        if path == "/version":
            return answer(version())
        if path == "/":
            return answer(orjson.dumps({"paths": _paths()}))
        if path in ("/api", "/apis") or path.startswith(("/api/", "/apis/")):
            return self._discovery(call, path)
        if path.startswith(("/openapi/", "/swagger")):
            return self._openapi(call, path)
        if call.request.unknown:
            raise unknown_resource()
        return web.Response(status=404, text="404 page not found\n")

    def _health(self, call: Call, path: str) -> web.Response:
        _, kind, *rest = path.split("/")
        if f"/{kind}" not in _HEALTH or len(rest) > 1 or (rest and rest[0] not in self._checks):
            return web.Response(status=404, text="404 page not found\n")
        checks = {name: check() for name, check in self._checks.items() if not rest or name == rest[0]}
        good = all(checks.values())
        lines = [f"[+]{name} ok" if passed else f"[-]{name} failed" for name, passed in checks.items()]
        lines.append(f"{kind} check {'passed' if good else 'failed'}")
        if good and "verbose" not in call.request.query:
            return web.Response(text="ok")
        return web.Response(status=200 if good else 500, text="\n".join(lines) + "\n")

    def _discovery(self, call: Call, path: str) -> web.Response:
        from controlplane.apiserver import discovery

        parts = path.strip("/").split("/")
        if len(parts) == 1:
            aggregated = discovery.aggregated_version(call.accept)
            if aggregated:
                body = discovery.aggregated(path, aggregated)
                return web.Response(body=body, headers={"Content-Type": discovery.content_type(aggregated)})
            return answer(discovery.api_versions() if path == "/api" else discovery.api_groups())
        body_of = None
        if parts[0] == "api" and len(parts) == 2:
            body_of = discovery.resource_list("", parts[1])
        elif parts[0] == "apis" and len(parts) == 3:
            body_of = discovery.resource_list(parts[1], parts[2])
        elif parts[0] == "apis" and len(parts) == 2:
            body_of = discovery.api_group(parts[1])
        if body_of is None:
            if call.request.unknown:
                raise unknown_resource()
            return web.Response(status=404, text="404 page not found\n")
        return answer(body_of)

    def _openapi(self, call: Call, path: str) -> web.Response:
        from controlplane.apiserver import openapi

        found = openapi.document(path, call.accept)
        if found is None:
            return web.Response(status=404, text="404 page not found\n")
        body, content_type = found
        return web.Response(body=body, headers={"Content-Type": content_type})


def version() -> bytes:
    """What `kubectl version` prints, and what clients choose their dialect by."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    found = {
        "major": MAJOR,
        "minor": MINOR,
        "gitVersion": VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "2024-12-11T00:00:00Z",
        "goVersion": f"python{sys.version_info.major}.{sys.version_info.minor}",
        "compiler": sys.implementation.name,
        "platform": f"linux/{machine}",
    }
    return orjson.dumps(found, option=orjson.OPT_INDENT_2)


def _paths() -> list[str]:
    found = {"/api", "/api/v1", "/apis", "/openapi/v2", "/openapi/v3", "/version", *_HEALTH}
    for group, name in group_versions():
        if group:
            found |= {f"/apis/{group}", f"/apis/{group}/{name}"}
    return sorted(found)


