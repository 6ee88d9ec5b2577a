"""Bootstrap tokens and the signatures of cluster-info (pure)."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from controlplane import bootstrap_tokens as tokens
from controlplane.bootstrap_tokens import BadBootstrapToken, BootstrapToken
from controlplane.controllers.bootstrap_tokens import signed

TOKEN = BootstrapToken("abcdef", "0123456789abcdef", 1.8e9, description="for tests")


def changed(secret: dict[str, Any], **data: str) -> dict[str, Any]:
    given = {key.replace("_", "-"): base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {**secret, "data": {**secret["data"], **given}}


def test_a_token_survives_its_secret() -> None:
    assert tokens.of_secret(tokens.to_secret(TOKEN)) == TOKEN
    plain = replace(TOKEN, expires=None, usages=("signing",), groups=(), description="")
    assert tokens.of_secret(tokens.to_secret(plain)) == plain


def test_a_generated_token_is_a_token_and_another_each_time() -> None:
    first, second = tokens.generate(), tokens.generate()
    assert first != second and tokens.split(first)[0] == first[:6]


@pytest.mark.parametrize(
    "text", ["", "abcdef", "abcdef.0123", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcdefg"]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(BadBootstrapToken):
        tokens.split(text)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"token_id": "ghijkl"}, "the token of another name"),
        ({"token_secret": "short"}, "has the form"),
        ({"expiration": "tomorrow"}, "cannot be read"),
        ({"auth_extra_groups": "system:masters"}, "does not match"),
    ],
)
def test_a_secret_that_says_nonsense_is_no_token(data: dict[str, str], says: str) -> None:
    with pytest.raises(BadBootstrapToken, match=says):
        tokens.of_secret(changed(tokens.to_secret(TOKEN), **data))


def test_a_secret_of_another_type_is_no_token() -> None:
    with pytest.raises(BadBootstrapToken, match="not of type"):
        tokens.of_secret({**tokens.to_secret(TOKEN), "type": "Opaque"})


def test_a_signature_is_the_one_that_kubeadm_expects() -> None:
    """The known answer is from upstream's cluster-bootstrap/token/jws test."""
    token = BootstrapToken("joshua", "my voice is my passcode")
    expected = "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..7Ui1ALizW4jXphVUB7xUqC9vLYLL9RZeOFfVLoB7Tgk"
    assert tokens.sign("", token) == expected


def test_only_the_holder_of_the_token_can_sign_and_only_this_text() -> None:
    signature = tokens.sign("text", TOKEN)
    assert tokens.verify("text", signature, TOKEN)
    assert not tokens.verify("text ", signature, TOKEN)
    assert not tokens.verify("text", signature, replace(TOKEN, secret="0" * 16))
    assert not tokens.verify("text", "", TOKEN)


def test_cluster_info_carries_a_signature_for_each_good_token_and_no_other() -> None:
    now = 1.7e9
    old = BootstrapToken("oldold", "0" * 16, expires=now)
    login = BootstrapToken("login0", "0" * 16, usages=("authentication",))
    data = {"kubeconfig": "text", "jws-kubeconfig-gone00": "x", "other": "kept"}
    found = signed(data, [TOKEN, old, login], now)
    assert sorted(found) == ["jws-kubeconfig-abcdef", "kubeconfig", "other"]
    assert tokens.verify("text", found["jws-kubeconfig-abcdef"], TOKEN)
    assert signed(found, [TOKEN], now) == found
    assert signed({"jws-kubeconfig-abcdef": "x"}, [TOKEN], now) == {}
