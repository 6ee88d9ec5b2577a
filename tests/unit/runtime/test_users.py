"""Users and groups of an image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.linux import LinuxKernel
from runtime.users import User, home, resolve

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


@pytest.mark.parametrize(
    ("user", "gid", "groups"),
    [("web:99", 99, (44, 45)), ("33:99", 99, (44, 45)), ("web:logs", 44, (45,)), ("5000:6000", 6000, ())],
)
def test_an_explicit_group_may_leave_the_others(user: str, gid: int, groups: tuple[int, ...]) -> None:
    found = resolve(user, PASSWD, GROUP, keep_groups=True)
    assert (found.gid, found.groups) == (gid, groups)


def test_a_file_may_say_anything(tmp_path: Path) -> None:
    """Digits of other alphabets are none, and Python refuses to read thousands of them."""
    nines = "9" * 5000
    passwd = f"a:x:{nines}:0::/a:\nb:x:²:0::/b:\nc:x:3:{nines}::/c:\nd:x:4:4::/d:\n"
    group = f"g:x:{nines}:d\nh:x:²:d\ni:x:5:d\n"
    assert resolve("d:i", passwd, group) == User(4, 5, (), "d", "/d")
    assert resolve("d", passwd, group).groups == (5,)
    for user in ("a", "b", "c", "d:g", "d:h", nines, f"0:{nines}"):
        with pytest.raises(UserError):
            resolve(user, passwd, group)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(passwd)
    assert [home(LinuxKernel(), str(tmp_path), uid) for uid in (4, 3, 7)] == ["/d", "/c", "/"]


def test_a_home_is_looked_for_inside_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert home(LinuxKernel(), str(root), 0) == "/"
    (root / "etc").mkdir(parents=True)
    (tmp_path / "passwd").write_text("root:x:0:0::/outside:\n")
    (root / "etc/passwd").symlink_to("../../passwd")
    assert home(LinuxKernel(), str(root), 0) == "/"
    (root / "passwd").write_text("root:x:0:0::/inside:\n")
    assert home(LinuxKernel(), str(root), 0) == "/inside"
    (root / "passwd").unlink()
    os.mkfifo(root / "passwd")
    assert home(LinuxKernel(), str(root), 0) == "/"


@pytest.mark.parametrize("user", ["nobody", "web:nogroup", "-1", "4294967295", "٣"])
def test_unknown_names_and_wrong_numbers_are_errors(user: str) -> None:
    with pytest.raises(UserError):
        resolve(user, PASSWD, GROUP)
