"""Builds layers and image archives in memory, with Python's own tarfile as the independent writer."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any


def info(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = fields.pop("mode", 0o644)
    for key, value in fields.items():
        setattr(member, key, value)
    return member


def tar_of(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member, content in members:
            member.size = len(content) if member.isreg() else member.size
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def layer(files: Sequence[tuple[str, bytes | None]]) -> bytes:
    """A plain layer; a name that ends in / is a folder."""
    return tar_of(
        (info(name.rstrip("/"), tarfile.DIRTYPE, mode=0o755), b"")
        if content is None
        else (info(name), content)
        for name, content in files
    )


def tar_file(members: Iterable[tuple[str, bytes]]) -> bytes:
    return tar_of((info(name), content) for name, content in members)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config_for(layers: Sequence[bytes], **process: Any) -> bytes:
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["A=b"], "Cmd": ["/run"], **process},
            "rootfs": {"type": "layers", "diff_ids": [digest(item) for item in layers]},
        }
    ).encode()


def docker_archive(layers: Sequence[bytes], tags: Sequence[str] = ("app:v1",)) -> list[tuple[str, bytes]]:
    config = config_for(layers)
    name = f"{digest(config).partition(':')[2]}.json"
    manifest = [
        {"Config": name, "RepoTags": list(tags), "Layers": [f"{i}/layer.tar" for i in range(len(layers))]}
    ]
    return [
        *((f"{i}/layer.tar", item) for i, item in enumerate(layers)),
        (name, config),
        ("manifest.json", json.dumps(manifest).encode()),
    ]


def oci_layout(layers: Sequence[bytes], name: str | None = None) -> list[tuple[str, bytes]]:
    packed = [gzip.compress(item, 1, mtime=0) for item in layers]
    config = config_for(layers)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(config),
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": digest(item),
                    "size": len(item),
                }
                for item in packed
            ],
        }
    ).encode()
    top: dict[str, Any] = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest(manifest),
        "size": len(manifest),
    }
    if name:
        top["annotations"] = {"org.opencontainers.image.ref.name": name}
    index = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    blobs = [*packed, config, manifest]
    return [
        ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        ("index.json", index),
        *((f"blobs/{digest(item).replace(':', '/')}", item) for item in blobs),
    ]
