"""Everything that is not an object: version, health, discovery, OpenAPI."""

from __future__ import annotations

import asyncio
import platform
import sys
from collections.abc import Callable, Sequence

import orjson
from aiohttp import web

from controlplane.apiserver.answers import answer
from controlplane.apiserver.calls import Call
from controlplane.apiserver.errors import method_not_allowed, unknown_resource
from controlplane.apiserver.issuer_discovery import PATHS, IssuerDiscovery

MAJOR, MINOR, VERSION = "1", "32", "v1.32.0"
# kubectl asks for it before it sends a kind that cannot be patched (TokenReview, SubjectAccessReview), to
# know whether the kind is somebody's own; without an answer it does not send. There are none, and discovery
# does not tell of the group: `kubectl get crds` knows no such kind.
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_HEALTH = ("/healthz", "/livez", "/readyz")


class EndpointHandler:
    """Answers paths that name no resource."""

    def __init__(self, checks: dict[str, Callable[[], bool]], issuer: IssuerDiscovery) -> None:
        self._checks = checks
        self._issuer = issuer

    async def handle(self, call: Call) -> web.StreamResponse:
        """Raises StatusError (404, 405)."""
        if call.request.method not in ("GET", "HEAD"):
            raise method_not_allowed()
        path = call.request.path.rstrip("/") or "/"
        if path.startswith(_HEALTH):
            return self._health(call, path)
        if path in PATHS:
            return self._issuer.answer(path)
        if path == "/version":
            return answer(version())
        if path == _DEFINITIONS:
            if call.request.query.get("watch", "0") not in ("0", "false"):
                raise method_not_allowed()  # a list is no stream of events, and nothing will ever happen
            return answer(_no_definitions())
        if path == "/":
            from controlplane.apiserver import discovery

            return answer(orjson.dumps({"paths": discovery.root_paths()}))
        if path in ("/api", "/apis") or path.startswith(("/api/", "/apis/")):
            return self._discovery(call, path)
        if path.startswith(("/openapi/", "/swagger-")):
            return await self._openapi(call, path)
        if call.request.unknown:
            raise unknown_resource()
        return web.Response(status=404, text="404 page not found\n")

    def _health(self, call: Call, path: str) -> web.StreamResponse:
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

    def _discovery(self, call: Call, path: str) -> web.StreamResponse:
        from controlplane.apiserver import discovery

        parts = path.strip("/").split("/")
        if len(parts) == 1:
            version = _aggregated_version(call.accept, discovery.AGGREGATED_VERSIONS)
            if version:
                kind = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
                body = discovery.aggregated(path, version)
                return web.Response(body=body, headers={"Content-Type": kind})
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

    async def _openapi(self, call: Call, path: str) -> web.StreamResponse:
        """Built in a thread when first asked for: it takes longer than anybody else should wait."""
        from controlplane.apiserver import openapi

        found = await asyncio.to_thread(openapi.document, path, call.accept)
        if found is None:
            return web.Response(status=404, text="404 page not found\n")
        body, content_type = found
        return web.Response(body=body, headers={"Content-Type": content_type})


def _no_definitions() -> bytes:
    found = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinitionList"}
    return orjson.dumps({**found, "metadata": {"resourceVersion": "1"}, "items": []})


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


def _aggregated_version(accept: str, known: Sequence[str]) -> str:
    """The version in which this client wants discovery in one document, or "" for the old form.

    The first media range that we can serve counts, and only a version that is named there.
    """
    for item in accept.split(","):
        media, *parameters = (part.strip() for part in item.split(";"))
        if media != "application/json":
            continue
        pairs = dict(part.partition("=")[::2] for part in parameters)
        if pairs.get("as") != "APIGroupDiscoveryList":
            return ""
        if pairs.get("g") == "apidiscovery.k8s.io" and pairs.get("v") in known:
            return pairs["v"]
    return ""
