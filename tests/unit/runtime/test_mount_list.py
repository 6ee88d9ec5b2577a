"""config.json's mounts as operations, without a kernel."""

from __future__ import annotations

from runtime.mount_list import mounts
from runtime.mounts import Mount
from runtime.spec import parse

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


def test_each_new_file_system_gets_the_mount_label_in_the_way_that_it_takes() -> None:
    """mqueue knows no context=: its root is labelled instead, as runc does; sysfs and binds get none."""
    made = {
        operation.destination: (operation.options.data, operation.label)
        for operation in mounts(parse(labelled()), cgroups=True)
        if isinstance(operation, Mount)
    }
    assert made == {
        "/tmp": (("size=1m", f"context={LABEL}"), ""),
        "/dev/mqueue": ((), LABEL),
        "/sys": ((), ""),
        "/data": ((), ""),
    }


def labelled() -> dict[str, object]:
    return {
        "ociVersion": "1.2.0",
        "root": {"path": "/rootfs"},
        "process": {"args": ["true"], "cwd": "/"},
        "linux": {"namespaces": [{"type": "mount"}], "mountLabel": LABEL},
        "mounts": [
            {"destination": "/tmp", "type": "tmpfs", "options": ["size=1m"]},
            {"destination": "/dev/mqueue", "type": "mqueue"},
            {"destination": "/sys", "type": "sysfs"},
            {"destination": "/data", "type": "bind", "source": "/srv", "options": ["bind"]},
        ],
    }
