"""Kills a pull before each thing it does to the disk, one after the other; run by test_killed_pulls.py.

`pull_killer.py FOLDER NAME REFERENCE STEP`: a child process, forked from this one, pulls NAME into an empty
store and is killed with SIGKILL before its Nth act; N is 1, 1 + STEP, 1 + 2 * STEP … until a child lives to
the end. Acts are what Python's audit events and the downloads' progress show: files opened, made, renamed,
removed, locked, chunks that came. After each kill another child pulls again (every other time it is killed
once, too), and the store must then be the same as REFERENCE, a store that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from runtime.images import registry
from runtime.images.store import ImageStore

ACTS = (
    "open", "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir",
    "os.setxattr", "os.symlink", "os.truncate", "os.utime", "fcntl.flock", "shutil.rmtree",
    "tempfile.mkdtemp",
)  # fmt: skip
COMPLETE, FAILED = 0, 3


def described(root: Path) -> list[tuple[object, ...]]:
    """Everything in a store but its lock and the order of its inodes."""
    found: list[tuple[object, ...]] = []
    for path in sorted(root.rglob("*")):
        status, name = path.lstat(), str(path.relative_to(root))
        content: object = os.readlink(path) if path.is_symlink() else None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        ours = name.count("/") < 2 or not name.startswith("layers/") or stat.S_ISCHR(status.st_mode)
        time = 0 if ours else status.st_mtime_ns  # a whiteout has none of its own
        attributes = tuple(os.listxattr(path, follow_symlinks=False))
        if name not in ("lock", "partial"):
            found.append((name, status.st_mode, status.st_uid, status.st_rdev, time, content, attributes))
    return found


def in_child(act: Callable[[Path, str, int], None], root: Path, name: str, deadly: int) -> int:
    """What `os.waitpid` says of a forked process that does this."""
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            act(root, name, deadly)
            code = COMPLETE
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(code)
    return os.waitpid(child, 0)[1]


def pull(root: Path, name: str, deadly: int) -> None:
    """Pull, and die before the act with this number; 0: live."""
    acts = 0

    def count() -> None:
        nonlocal acts
        acts += 1
        if acts == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(event: str, arguments: tuple[object, ...]) -> None:
        if event in ACTS and deadly:
            count()

    sys.addaudithook(heard)
    registry.pull(ImageStore(root), name, progress=lambda *_: count())


def main() -> int:
    folder, name, reference, step = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    wanted, number, resumed = described(reference), 1, 0
    while True:
        root = folder / str(number)
        ended = in_child(pull, root, name, number)
        if ended == COMPLETE:
            break
        assert os.WIFSIGNALED(ended), f"act {number}: the pull failed"
        images = ImageStore(root).list()
        assert all(Path(layer).is_dir() for image in images for layer in image.layers), f"act {number}: a lie"
        if number % 2:
            in_child(pull, root, name, number // 2 + 1)
        resumed += any(root.glob("ingest/*/blob-*")) or any(root.glob("partial/*"))
        assert in_child(pull, root, name, 0) == COMPLETE, f"act {number}: could not pull again"
        differing = sorted(str(item[0]) for item in set(described(root)) ^ set(wanted))
        assert not differing, f"act {number}: the store differs in {differing}"
        leftovers = [*root.glob("ingest/*"), *root.glob("partial/*")]
        assert not leftovers, f"act {number}: {leftovers}"
        assert ImageStore(root).sweep() == 0, f"act {number}: layers of no image"
        number += step
    print(json.dumps({"kills": number // step, "resumed": resumed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
