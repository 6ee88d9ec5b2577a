"""Acting as somebody else: kubectl --as, --as-group, --as-uid, --as-user-extra.

Each part of the other identity is a right of its own, so that who may say "as alice" cannot by that say "as
alice, in system:masters" (apiserver pkg/endpoints/filters/impersonation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from controlplane.apiserver.authorization import Attributes
from controlplane.apiserver.errors import StatusError, bad_request, qualified, resource_details
from controlplane.apiserver.users import ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, User

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

_ACCOUNT = "system:serviceaccount:"
_PREFIX = "impersonate-"
_EXTRA = "impersonate-extra-"
_GROUP = "authentication.k8s.io"


def impersonated(
    headers: CIMultiDictProxy[str], user: User, allowed: Callable[[User, Attributes], bool]
) -> User:
    """The user that a request is to be judged as: `user` where nobody else is named.

    Raises StatusError: 403 for who may not, 400 for a group, uid or extra without a user.
    """
    if not any(name[: len(_PREFIX)].lower() == _PREFIX for name in headers):
        return user  # as nearly every request
    name = headers.get("Impersonate-User", "")
    groups = tuple(headers.getall("Impersonate-Group", ()))
    uid = headers.get("Impersonate-Uid", "")
    extra = _extra(headers)
    if not name:
        if groups or uid or extra:
            raise bad_request("requested a group, uid or user-extra without impersonating a user")
        return user
    other = User(name, groups, uid, extra)
    for asked in _rights(other):
        if not allowed(user, asked):
            raise _denied(user, asked)
    return User(name, _completed(other), uid, extra)


def _extra(headers: CIMultiDictProxy[str]) -> dict[str, tuple[str, ...]]:
    names = {name.lower() for name in headers if name.lower().startswith(_EXTRA)}
    return {unquote(name.removeprefix(_EXTRA)): tuple(headers.getall(name)) for name in sorted(names)}


def _rights(other: User) -> Iterator[Attributes]:
    account = other.name.removeprefix(_ACCOUNT).split(":")
    if other.name.startswith(_ACCOUNT) and len(account) == 2:
        yield Attributes("impersonate", "", "serviceaccounts", namespace=account[0], name=account[1])
    else:
        yield Attributes("impersonate", "", "users", name=other.name)
    for group in other.groups:
        yield Attributes("impersonate", "", "groups", name=group)
    for key, values in other.extra.items():
        for value in values:
            yield Attributes("impersonate", _GROUP, "userextras", key, name=value)
    if other.uid:
        yield Attributes("impersonate", _GROUP, "uids", name=other.uid)


def _completed(other: User) -> tuple[str, ...]:
    """The groups that go with a name, as if it had logged in itself."""
    groups = list(other.groups)
    account = other.name.removeprefix(_ACCOUNT).split(":")
    if other.name.startswith(_ACCOUNT) and len(account) == 2 and not groups:
        groups += ["system:serviceaccounts", f"system:serviceaccounts:{account[0]}"]
    if other.name == ANONYMOUS.name:
        groups += [] if groups else [UNAUTHENTICATED]
    elif UNAUTHENTICATED not in groups:
        groups.append(AUTHENTICATED)
    return tuple(dict.fromkeys(groups))


def _denied(user: User, asked: Attributes) -> StatusError:
    subject = f'{qualified(asked.group, asked.resource)} "{asked.name}"'
    scope = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
    text = f'{subject} is forbidden: User "{user.name}" cannot impersonate resource "{asked.full_resource}"'
    text += f' in API group "{asked.group}" {scope}'
    details = resource_details(name=asked.name, group=asked.group, kind=asked.resource)
    return StatusError(403, "Forbidden", text, details)
