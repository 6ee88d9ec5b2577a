from __future__ import annotations

import base64
import json

import pytest

from runtime.images.credentials import Credentials, InvalidCredentials, parse_docker_config
from runtime.images.reference import parse


def config(**keys: str) -> bytes:
    auths = {key: {"auth": base64.b64encode(pair.encode()).decode()} for key, pair in keys.items()}
    return json.dumps({"auths": auths}).encode()


@pytest.mark.parametrize(
    ("key", "image", "matches"),
    [
        ("https://index.docker.io/v1/", "busybox", True),
        ("docker.io", "team/app", True),
        ("registry.example", "registry.example/a", True),
        ("https://registry.example/v2/", "registry.example/a", True),
        ("registry.example", "other.example/a", False),
        ("registry.example", "registry.example:5000/a", False),
        ("*.example", "registry.example/a", True),
        ("*.example", "deep.registry.example/a", False),
        ("registry.example/team", "registry.example/team/app", True),
        ("registry.example/team", "registry.example/teamwork", False),
    ],
)
def test_keys_match_as_in_the_kubelet(key: str, image: str, matches: bool) -> None:
    assert bool(parse_docker_config(config(**{key: "ann:pw"})).lookup(parse(image))) is matches


def test_the_longest_key_comes_first_and_passwords_may_hold_colons() -> None:
    ring = parse_docker_config(config(**{"r.example": "bob:x", "r.example/team": "ann:a:b"}))
    assert ring.lookup(parse("r.example/team/app")) == [Credentials("ann", "a:b"), Credentials("bob", "x")]


def test_the_old_dockercfg_is_a_bare_map() -> None:
    ring = parse_docker_config(b'{"r.example": {"username": "ann", "password": "pw"}}')
    assert ring.lookup(parse("r.example/a")) == [Credentials("ann", "pw")]


def test_secrets_show_neither_in_errors_nor_in_repr() -> None:
    assert "hunter2" not in repr(Credentials("ann", "hunter2", "hunter2"))
    for broken in (b'{"auths": hunter2', b'{"auths": {"r": {"auth": "hunter2!"}}}', b'{"auths": "hunter2"}'):
        with pytest.raises(InvalidCredentials) as caught:
            parse_docker_config(broken)
        assert "hunter2" not in str(caught.value)
