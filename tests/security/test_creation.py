"""What changes between a container's creation, when its start is prepared, and the start: checklists
"Defaults" and "Escapes". A prepared start may only do what was foreseen; each test is a change that must stop
it."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import LaunchError
from tests.privileged.runtime.made import Made

pytestmark = pytest.mark.privileged


def test_S05_a_path_that_appears_after_the_creation_is_masked(box: Any) -> None:
    """S05: one that was missing then needs a mask now."""
    volume = box.folder / "volume"
    volume.mkdir()
    mount = {"destination": "/data", "type": "bind", "source": str(volume), "options": ["rbind"]}
    config = box.spec("cat /data/secret; stat -c %F /data/secret", mounts=[mount])
    config["linux"]["maskedPaths"] = [*config["linux"]["maskedPaths"], "/data/secret"]
    made = Made(box, "masked", config)
    assert made.prepare()
    (volume / "secret").write_text("told")
    process = made.begin()
    assert process is not None
    assert made.ended(process) == "character special file\n"


def test_E04_a_proc_that_becomes_a_symlink_after_the_creation_is_refused(box: Any) -> None:
    """E04, CVE-2019-19921: /proc of the image leads elsewhere by the time of the start."""
    (box.root / "proc").mkdir()
    made = Made(box, "proc", box.spec("true"))
    assert made.prepare()
    (box.root / "proc").rmdir()
    (box.root / "proc").symlink_to("tmp")
    with pytest.raises(LaunchError, match="symlink"):
        made.begin()
