"""projected volumes: several sources in one folder, changing together."""

from __future__ import annotations

from kubelet_py.errors import VolumeError
from kubelet_py.pods.model import Object
from kubelet_py.volumes import config_map, downward_api, secret, service_account_token
from kubelet_py.volumes.atomic_writer import File, Payload
from kubelet_py.volumes.plugin import Context, PayloadMaker

DEFAULT_MODE = 0o644
MAKERS: dict[str, PayloadMaker] = {
    "configMap": config_map.payload,
    "secret": secret.payload,
    "downwardAPI": downward_api.payload,
    "serviceAccountToken": service_account_token.payload,
}


def payload(context: Context, source: Object) -> Payload:
    """The sources' files together: of two with one path the later source's, as upstream. VolumeError tells of
    every source that lacks something, not only of the first."""
    files: dict[str, File] = {}
    problems: list[str] = []
    mode = source.get("defaultMode", DEFAULT_MODE)
    for entry in source.get("sources") or ():
        for kind, inner in entry.items():
            maker = MAKERS.get(kind)
            if maker is None:
                problems.append(f"projected volumes of {kind} are not supported by this node")
                continue
            try:
                files |= maker(context, {"defaultMode": mode, **inner})
            except VolumeError as error:
                problems.append(str(error))
    if problems:
        raise VolumeError(problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]")
    return files
