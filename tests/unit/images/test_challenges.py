"""What registries ask for: one challenge or several, quoted or not."""

from __future__ import annotations

import pytest

from runtime.images.challenges import Challenge, choose, parse


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("", []),
        (",,", []),
        ('Basic realm="a, b"', [Challenge("basic", {"realm": "a, b"})]),
        ("BASIC Realm=plain", [Challenge("basic", {"realm": "plain"})]),
        (
            'Bearer realm="https://x/t?a=b",service="r",scope="repository:a/b:pull,push repository:c:pull"',
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://x/t?a=b",
                        "service": "r",
                        "scope": "repository:a/b:pull,push repository:c:pull",
                    },
                )
            ],
        ),
        (
            'Negotiate, Basic realm="say \\"x\\"" , Bearer realm = "https://y"',
            [
                Challenge("negotiate", {}),
                Challenge("basic", {"realm": 'say "x"'}),
                Challenge("bearer", {"realm": "https://y"}),
            ],
        ),
        (
            'Negotiate oYG2MIGz/+==, NTLM TlRM, Basic realm="x"',
            [Challenge("negotiate", {}), Challenge("ntlm", {}), Challenge("basic", {"realm": "x"})],
        ),
        ('Bearer realm="never ends', [Challenge("bearer", {}), Challenge("realm", {})]),
    ],
)
def test_a_field_is_read_into_its_challenges(header: str, found: list[Challenge]) -> None:
    assert parse(header) == found


def test_a_token_is_fetched_rather_than_the_password_sent() -> None:
    basic, bearer = Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "https://x"})
    assert choose([basic, bearer]) == bearer
    assert choose([Challenge("negotiate", {}), basic]) == basic
    assert choose([Challenge("bearer", {}), basic]) == basic, "nobody says where the token would be"
    assert choose([Challenge("digest", {})]) is None
