"""Mount options, and the overlay's option string."""

from __future__ import annotations

import pytest

from runtime.mounting import MountOptions, parse_options
from runtime.mounts import overlay_data

RDONLY, NOSUID, NODEV, NOEXEC, ATIME, NOATIME, STRICT = 1, 2, 4, 8, 0x70, 0x10, 0x20


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("nosuid", "noexec", "nodev"), MountOptions(set=NOSUID | NOEXEC | NODEV)),
        (("rbind", "ro"), MountOptions(bind=True, recursive=True, set=RDONLY)),
        (("bind", "rro"), MountOptions(bind=True, tree_set=RDONLY)),
        (("ro", "rw"), MountOptions(clear=RDONLY)),
        (("rslave",), MountOptions(propagation=1 << 19, tree_propagation=True)),
        (("shared",), MountOptions(propagation=1 << 20)),
        (("rprivate",), MountOptions(propagation=1 << 18, tree_propagation=True)),
        (("noatime",), MountOptions(set=NOATIME, clear=ATIME)),
        (
            ("strictatime", "mode=755", "size=64k"),
            MountOptions(set=STRICT, clear=ATIME, data=("mode=755", "size=64k")),
        ),
        (("newinstance", "gid=5"), MountOptions(data=("newinstance", "gid=5"))),
        (("relatime",), MountOptions(clear=ATIME)),
        (("tmpcopyup", "size=1m"), MountOptions(copy_up=True, data=("size=1m",))),
        (("rbind", "ridmap"), MountOptions(bind=True, recursive=True, idmap="ridmap")),
        (
            ("bind", "idmap=uids=0-1-2;gids=0-1-2"),
            MountOptions(bind=True, idmap="idmap", idmap_by="uids=0-1-2;gids=0-1-2"),
        ),
        (("suid",), MountOptions(clear=NOSUID)),
    ],
)
def test_options_become_attributes(options: tuple[str, ...], expected: MountOptions) -> None:
    assert parse_options(options) == expected


def test_the_overlay_is_volatile_and_its_paths_are_escaped() -> None:
    data = overlay_data(("/a:b", "/c,d"), "/u", "/w")
    assert data == "lowerdir=/a\\:b:/c\\,d,upperdir=/u,workdir=/w,volatile"
