from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.images import manifest
from runtime.images.errors import DigestMismatch, ManifestError, NoMatchingPlatform

DIGEST = "sha256:" + "b" * 64


def encode(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def pointer(kind: str, **fields: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": DIGEST, "size": 3, **fields}


def entry(architecture: str, variant: str = "") -> manifest.Descriptor:
    return manifest.Descriptor(
        manifest.OCI_MANIFEST,
        DIGEST,
        len(architecture + variant),
        manifest.Platform("linux", architecture, variant),
    )


@pytest.mark.parametrize("config", [manifest.OCI_CONFIG, manifest.DOCKER_CONFIG])
@pytest.mark.parametrize(
    "layer", [manifest.OCI_LAYER + "+zstd", "application/vnd.docker.image.rootfs.diff.tar.gzip"]
)
def test_both_dialects_are_read(config: str, layer: str) -> None:
    found = manifest.parse_manifest(encode(schemaVersion=2, config=pointer(config), layers=[pointer(layer)]))
    assert found.config.digest == DIGEST and found.layers[0].size == 3


@pytest.mark.parametrize(
    ("data", "content_type", "why"),
    [
        (b"not json", "", "not JSON"),
        (b"[]", "", "not a JSON object"),
        (b"[" * 100_000, "", "not JSON"),
        (b" " * (manifest.MAX_MANIFEST + 1), "", "more than"),
        (encode(schemaVersion=1), "", "schema 1"),
        (encode(schemaVersion=2), "text/html", "unknown media type"),
        (encode(manifests=[], layers=[]), "", "at once"),
        (encode(mediaType=manifest.OCI_INDEX, manifests=[]), manifest.OCI_MANIFEST, "served as"),
        (encode(mediaType=manifest.OCI_INDEX), "", "lists no manifests"),
    ],
)
def test_ambiguous_or_broken_documents_are_refused(data: bytes, content_type: str, why: str) -> None:
    """I02; the document that is an index and a manifest at once is CVE-2021-41190."""
    with pytest.raises(ManifestError, match=why):
        manifest.kind_of(data, content_type)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"config": pointer("application/x"), "layers": []}, "no container image"),
        ({"config": pointer(manifest.OCI_CONFIG), "layers": 3}, "must be a list"),
        ({"config": pointer(manifest.OCI_CONFIG, digest="sha256:../../etc"), "layers": []}, "digest"),
        ({"config": pointer(manifest.OCI_CONFIG, size=-1), "layers": []}, "size"),
        (
            {
                "config": pointer(manifest.OCI_CONFIG),
                "layers": [
                    pointer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", urls=["http://x"])
                ],
            },
            "unsupported layer type",
        ),
    ],
)
def test_bad_manifests_are_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ManifestError, match=why):
        manifest.parse_manifest(encode(schemaVersion=2, **fields))


@pytest.mark.parametrize(
    ("offered", "machine", "chosen"),
    [
        ([("amd64", ""), ("arm64", "v8")], "aarch64", ("arm64", "v8")),
        ([("arm64", ""), ("amd64", "")], "aarch64", ("arm64", "")),
        ([("arm", "v5"), ("arm", "v7"), ("arm", "v6")], "armv7l", ("arm", "v7")),
        ([("arm", "v5")], "armv7l", ("arm", "v5")),
        ([("arm", "v5"), ("arm", "v6")], "armv7l", ("arm", "v6")),
        ([("arm", ""), ("arm", "v5")], "armv6l", ("arm", "v5")),
        ([("arm", "v6"), ("arm", "7")], "armv7l", ("arm", "7")),
        ([("arm", "v6"), ("arm", "v7")], "aarch64", ("arm", "v7")),
        ([("arm", "v7"), ("arm64", "")], "aarch64", ("arm64", "")),
        ([("amd64", "v3"), ("amd64", "v1")], "x86_64", ("amd64", "v1")),
        ([("386", ""), ("amd64", "")], "x86_64", ("amd64", "")),
        ([("386", "")], "x86_64", ("386", "")),
        ([("unknown", ""), ("x86_64", "")], "x86_64", ("x86_64", "")),
        ([("amd64", "")], "x86_64", ("amd64", "")),
    ],
)
def test_the_entry_for_the_machine_is_chosen(
    offered: list[tuple[str, str]], machine: str, chosen: tuple[str, str]
) -> None:
    found = manifest.select(tuple(entry(*item) for item in offered), manifest.host_platform(machine))
    assert found.platform == manifest.Platform("linux", *chosen)


def test_no_entry_for_the_machine_names_what_there_is() -> None:
    with pytest.raises(NoMatchingPlatform, match=r"linux/amd64 \(has linux/arm/v7, linux/s390x\)"):
        manifest.select((entry("s390x"), entry("arm", "v7")), manifest.host_platform("x86_64"))


def test_changed_bytes_do_not_pass_for_their_digest() -> None:
    data = b"content"
    manifest.check_digest(data, manifest.digest_of(data), "it")
    with pytest.raises(DigestMismatch):
        manifest.check_digest(data + b"!", manifest.digest_of(data), "it")


def process_of(**config: Any) -> Any:
    data = encode(rootfs={"type": "layers", "diff_ids": [DIGEST]}, config=config)
    return manifest.parse_config(data).process


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"User": 0}, "config.User is not a string"),
        ({"WorkingDir": ["/"]}, "config.WorkingDir is not a string"),
        ({"StopSignal": 9}, "config.StopSignal is not a string"),
        ({"Env": "A=b"}, "config.Env is not a list"),
        ({"Env": ["A=b", 1]}, r"config.Env\[1\] is not a string"),
        ({"Cmd": "sh"}, "config.Cmd is not a list"),
        ({"Entrypoint": {"a": "b"}}, "config.Entrypoint is not a list"),
    ],
)
def test_process_defaults_of_another_type_are_refused(config: dict[str, Any], where: str) -> None:
    """Or who starts a container of the image would come upon them."""
    with pytest.raises(ManifestError, match=where):
        process_of(**config)


def test_half_a_character_becomes_the_replacement_character() -> None:
    """A JSON text may hold one, a process's environment cannot. Go's decoder does the same."""
    found = process_of(Env=["A=\ud83d\ude00", "B=\ud800"], Cmd=["\udfff"], User=None, Labels={"a": 1})
    assert found["Env"] == ["A=\U0001f600", "B=\ufffd"]
    assert (found["Cmd"], found["User"], found["Labels"]) == (["\ufffd"], None, {"a": 1})
