"""serviceAccountToken projections: a token bound to this pod, for one audience, that does not live long.

The file is readable for the owner alone when every container runs as one user (who then owns it) and for the
group when there is an fsGroup; otherwise for all, as upstream, since nobody else can enter the volume.
"""

from __future__ import annotations

from kubelet_py.pods.model import Object, containers, init_containers
from kubelet_py.pods.security import effective
from kubelet_py.volumes.atomic_writer import File, Payload
from kubelet_py.volumes.plugin import Context

DEFAULT_SECONDS = 3600


def payload(context: Context, source: Object) -> Payload:
    """One file with the token; asks the API server."""
    seconds = int(source.get("expirationSeconds") or DEFAULT_SECONDS)
    token = context.token(context.pod, source.get("audience") or "", seconds)
    user = common_user(context.pod)
    mode = 0o600 if user is not None else source.get("defaultMode", 0o644)
    if context.fs_group is not None:
        return {source["path"]: File(token.encode(), 0o640, user)}
    return {source["path"]: File(token.encode(), mode, user)}


def common_user(pod: Object) -> int | None:
    """The uid that all containers ask for, or None where they differ or leave it to the image."""
    users = {effective(pod, c).get("runAsUser") for c in containers(pod) + init_containers(pod)}
    if len(users) != 1:
        return None
    user = users.pop()
    return None if user is None else int(user)
