from __future__ import annotations

import pytest

from runtime.images.errors import InvalidReference
from runtime.images.reference import parse

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("typed", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("[::1]:5000/a/b:c", "[::1]:5000/a/b:c"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"busybox:1.36@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        ("a__b/c--d", "docker.io/a__b/c--d:latest"),
    ],
)
def test_short_names_are_expanded_as_docker_does(typed: str, full: str) -> None:
    assert str(parse(typed)) == full


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "Busybox",
        "a" * 64,
        "busybox:",
        "busybox:-x",
        "busybox@sha256:abc",
        "a//b",
        "/a",
        "a/",
        "a b",
        "x/" + "y" * 256,
        "../etc",
        "a/../b",
        "http://host/a",
        "host.example/a:b:c",
    ],
)
def test_what_is_no_name_is_refused(typed: str) -> None:
    with pytest.raises(InvalidReference, match="Could not parse image name"):
        parse(typed)
