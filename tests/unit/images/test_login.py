from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.images.credentials import Credentials, InvalidCredentials
from runtime.images.login import credentials_for, default_file
from runtime.images.reference import parse

KEEPER = """#!/bin/sh
read -r server
[ "$1" = get ] || exit 2
case "$server" in
    registry.example) echo '{"ServerURL": "x", "Username": "ann", "Secret": "s3cret"}' ;;
    token.example) echo '{"Username": "<token>", "Secret": "r3fresh"}' ;;
    https://index.docker.io/v1/) echo '{"Username": "hub", "Secret": "h"}' ;;
    odd.example) echo 's3cret in no JSON' ;;
    locked.example) echo 'the keychain is locked'; exit 1 ;;
    *) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin/docker-credential-keeper"
    program.parent.mkdir()
    program.write_text(KEEPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return tmp_path / "config.json"


def known(file: Path, image: str, document: dict[str, Any]) -> list[Credentials]:
    file.write_text(json.dumps(document))
    return credentials_for(parse(image), file)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("registry.example/app", Credentials("ann", "s3cret")),
        ("token.example/app", Credentials(identity_token="r3fresh")),
        ("busybox", Credentials("hub", "h")),
    ],
)
def test_the_program_of_credsstore_is_asked_for_every_registry(
    file: Path, image: str, found: Credentials
) -> None:
    assert known(file, image, {"credsStore": "keeper"}) == [found]


def test_a_helper_comes_before_what_the_file_says_and_others_are_not_asked(file: Path) -> None:
    document = {
        "credHelpers": {"registry.example": "keeper", "other.example": "missing"},
        "auths": {
            "registry.example": {"username": "bob", "password": "b"},
            "plain.example": {"auth": "YTpi"},
        },
    }
    assert known(file, "registry.example/app", document) == [
        Credentials("ann", "s3cret"),
        Credentials("bob", "b"),
    ]
    assert known(file, "plain.example/app", document) == [Credentials("a", "b")]
    with pytest.raises(InvalidCredentials, match=r"docker-credential-missing: it is not in \$PATH"):
        known(file, "other.example/app", document)


def test_an_unknown_registry_is_asked_anonymously(file: Path) -> None:
    assert known(file, "quiet.example/app", {"credsStore": "keeper"}) == []


@pytest.mark.parametrize(
    ("image", "document", "why"),
    [
        ("locked.example/app", {"credsStore": "keeper"}, "exit code 1: the keychain is locked"),
        ("odd.example/app", {"credsStore": "keeper"}, "its answer is not what the protocol asks for"),
        ("a.example/app", {"credsStore": "../../bin/sh"}, "no name of a program"),
        ("a.example/app", {"credHelpers": ["keeper"]}, "credHelpers is not an object"),
    ],
)
def test_failures_are_said_without_the_secret(
    file: Path, image: str, document: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidCredentials, match=why) as caught:
        known(file, image, document)
    assert "s3cret" not in str(caught.value)


def test_the_file_is_podmans_then_dockers(tmp_path: Path) -> None:
    home, other = tmp_path / "home/.docker/config.json", tmp_path / "other/config.json"
    for path in (home, other):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    environment = {"HOME": str(tmp_path / "home")}
    assert default_file(environment) == home
    assert default_file({**environment, "DOCKER_CONFIG": str(tmp_path / "other")}) == other
    auth = tmp_path / "auth.json"
    assert default_file({**environment, "REGISTRY_AUTH_FILE": str(auth)}) == home
    auth.write_text("{}")
    assert default_file({**environment, "REGISTRY_AUTH_FILE": str(auth)}) == auth
    assert default_file({}) is None
