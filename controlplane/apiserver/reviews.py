"""Questions about rights: the *Review kinds, which are answered and forgotten.

They are answered by the same authenticator and authorizer that guard the server, so `kubectl auth can-i` and
what then happens cannot differ.
"""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from controlplane.apiserver.answers import answer
from controlplane.apiserver.authentication import API_AUDIENCES, Authenticator
from controlplane.apiserver.authorization import Attributes, Authorizer, Rule
from controlplane.apiserver.calls import Call
from controlplane.apiserver.errors import (
    INVALID,
    REQUIRED,
    Cause,
    StatusError,
    bad_request,
    cannot_decode,
    invalid,
    method_not_allowed,
)
from controlplane.apiserver.negotiation import wanted
from controlplane.apiserver.registry import Registry
from controlplane.apiserver.resources import ResourceInfo
from controlplane.apiserver.tokens import BadTokenError
from controlplane.apiserver.users import AUTHENTICATED, User

Object = dict[str, Any]


class ReviewHandler:
    """POST of a TokenReview, SubjectAccessReview and their siblings."""

    def __init__(self, registry: Registry, authenticator: Authenticator, authorizer: Authorizer) -> None:
        self._registry = registry
        self._authenticator = authenticator
        self._authorizer = authorizer

    async def handle(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        """Raises StatusError."""
        if call.request.method != "POST" or call.request.name:
            raise method_not_allowed()
        form = wanted(call.accept, tabular=False)
        body = await call.object(info.kind)
        if body.get("kind", info.kind) != info.kind:
            raise bad_request(f"{body['kind']} cannot be handled as a {info.kind}")
        checked = self._registry.schema.check(info.definition, body)
        if checked.causes:
            raise cannot_decode(info.kind, info.version, checked.causes[0].message)
        spec = checked.obj.get("spec") or {}
        obj: Object = {"kind": info.kind, "apiVersion": info.api_version}
        obj |= {"metadata": {"creationTimestamp": None}}
        if info.kind != "SelfSubjectReview":
            obj["spec"] = spec
        obj["status"] = self._status(info, spec, call)
        return answer(orjson.dumps(obj), 201, wanted=form)

    def _status(self, info: ResourceInfo, spec: Object, call: Call) -> Object:
        if info.kind == "SelfSubjectReview":
            return {"userInfo": _user_info(call.user)}
        if info.kind == "TokenReview":
            return self._token(spec)
        if info.kind == "SelfSubjectRulesReview":
            return self._rules(call.user, spec.get("namespace") or "")
        user = call.user
        if info.kind != "SelfSubjectAccessReview":
            user = _subject(info, spec)
        asked = _attributes(info, spec)
        if info.kind == "LocalSubjectAccessReview" and asked.namespace != call.request.namespace:
            text = f'Invalid value: "{asked.namespace}": must match metadata.namespace'
            raise invalid(info.kind, info.group, "", [Cause(INVALID, "spec.resourceAttributes", text)])
        return {"allowed": self._authorizer.allowed(user, asked)}

    def _token(self, spec: Object) -> Object:
        token = spec.get("token")
        if not token:
            raise bad_request("token is required for TokenReview in authentication")
        audiences = tuple(spec.get("audiences") or API_AUDIENCES)
        try:
            user = self._authenticator.of_token(token, audiences)
        except BadTokenError as error:
            return {"user": {}, "error": f"[invalid bearer token, {error}]"}
        status: Object = {"authenticated": True, "user": _user_info(user)}
        if spec.get("audiences"):
            status["audiences"] = list(audiences)
        return status

    def _rules(self, user: User, namespace: str) -> Object:
        if not namespace:
            raise bad_request("no namespace on request")
        status: Object = {"resourceRules": [], "nonResourceRules": [], "incomplete": False}
        for rule in self._authorizer.rules(user, namespace):
            if rule.paths:
                status["nonResourceRules"].append(
                    {"verbs": list(rule.verbs), "nonResourceURLs": list(rule.paths)}
                )
            if rule.resources:
                status["resourceRules"].append(_resource_rule(rule))
        return status


def _resource_rule(rule: Rule) -> Object:
    found: Object = {
        "verbs": list(rule.verbs),
        "apiGroups": list(rule.groups),
        "resources": list(rule.resources),
    }
    if rule.names:
        found["resourceNames"] = list(rule.names)
    return found


def _user_info(user: User) -> Object:
    found: Object = {"username": user.name}
    if user.uid:
        found["uid"] = user.uid
    found["groups"] = list(user.groups)
    if user.extra:
        found["extra"] = {name: list(values) for name, values in user.extra.items()}
    return found


def _subject(info: ResourceInfo, spec: Object) -> User:
    if not spec.get("user") and not spec.get("groups"):
        text = 'Invalid value: "": at least one of user or group must be specified'
        raise invalid(info.kind, info.group, "", [Cause(INVALID, "spec.user", text)])
    groups = tuple(spec.get("groups") or ())
    if spec.get("user", "").startswith("system:serviceaccount:") and not groups:
        groups = (AUTHENTICATED,)
    return User(spec.get("user", ""), groups)


def _attributes(info: ResourceInfo, spec: Object) -> Attributes:
    resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if (resource is None) == (path is None):
        text = "Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified"
        raise _refused(info, text)
    if path is not None:
        return Attributes(path.get("verb", ""), path=path.get("path", ""))
    assert resource is not None
    if not resource.get("verb"):
        raise invalid(
            info.kind,
            info.group,
            "",
            [Cause(REQUIRED, "spec.resourceAttributes.verb", "Required value")],
        )
    return Attributes(
        resource["verb"],
        resource.get("group", ""),
        resource.get("resource", ""),
        resource.get("subresource", ""),
        resource.get("namespace", ""),
        resource.get("name", ""),
    )


def _refused(info: ResourceInfo, text: str) -> StatusError:
    return invalid(info.kind, info.group, "", [Cause(INVALID, "spec.resourceAttributes", text)])
