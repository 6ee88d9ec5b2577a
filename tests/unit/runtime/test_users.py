"""Users and groups of an image."""

from __future__ import annotations

import pytest

from runtime.errors import UserError
from runtime.users import User, resolve

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var/www:/bin/sh\nbroken\n1234:x:7:8:odd:/odd:/bin/sh\n"
)
GROUP = "root:x:0:\nweb:x:33:\nlogs:x:44:web,root\nextra:x:45:web\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", User(0, 0, (44,), "root", "/root")),
        ("web", User(33, 33, (44, 45), "web", "/var/www")),
        ("33", User(33, 33, (44, 45), "web", "/var/www")),
        ("web:logs", User(33, 44, (), "web", "/var/www")),
        ("web:99", User(33, 99, (), "web", "/var/www")),
        ("5000", User(5000, 0, (), "", "/")),
        ("5000:6000", User(5000, 6000, (), "", "/")),
        ("1234", User(7, 8, (), "1234", "/odd")),
    ],
)
def test_users_are_resolved_as_docker_does(user: str, expected: User) -> None:
    assert resolve(user, PASSWD, GROUP) == expected


@pytest.mark.parametrize("user", ["nobody", "web:nogroup", "-1", "4294967295", "٣"])
def test_unknown_names_and_wrong_numbers_are_errors(user: str) -> None:
    with pytest.raises(UserError):
        resolve(user, PASSWD, GROUP)
