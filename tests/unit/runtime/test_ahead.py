"""What a start is compiled to: foresight, the recorder's entries, and their assembly."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from runtime.ahead import prepare
from runtime.fake import FakeKernel
from runtime.foresight import Foresight, Unforeseen
from runtime.kernel import Region
from runtime.machine import CHECK, ENTRY_WORDS, RESULT, X86_64
from runtime.plan import Context, Operation, Plan, Refused
from runtime.process import CheckLabels
from runtime.program import (
    Assembly,
    Entry,
    Given,
    Holed,
    Jump,
    Program,
    Scratch,
    Slot,
    entry_offset,
    load,
    save,
)
from runtime.recorder import Recorder, Seen
from runtime.table import HEAD_WORDS

NUMBERS = {"openat": 257, "setns": 308, "clone3": 435, "exit_group": 231}
BASE = 0x2000_0000_0000


@pytest.fixture
def layers(tmp_path: Path) -> tuple[str, str]:
    top, low = tmp_path / "top", tmp_path / "low"
    (low / "usr/bin").mkdir(parents=True)
    (low / "usr/bin/sh").write_text("")
    (low / "usr/bin/sh").chmod(0o755)
    (low / "etc").mkdir()
    (low / "etc/passwd").write_text("")
    (top / "etc").mkdir(parents=True)
    (top / "bin").symlink_to("usr/bin")
    (top / "loop").symlink_to("loop")
    (top / "outside").symlink_to("../../../etc/passwd")
    (top / "host").symlink_to("/etc/hostname")
    return str(top), str(low)


def test_layers_are_seen_as_one_with_their_links(layers: tuple[str, str]) -> None:
    root = Foresight(layers)
    assert root.find("/bin/sh") == ("/usr/bin/sh", 0o100755)
    assert root.find("outside")[0] == "/etc/passwd"
    assert root.find("/") == ("", 0o040755)
    for path in ("/host", "/etc/hostname", "/nothing/below"):
        with pytest.raises(FileNotFoundError):
            root.find(path)
    with pytest.raises(NotADirectoryError):
        root.find("/etc/passwd/x")
    for path in ("/bin/sh", "/loop"):
        with pytest.raises(Unforeseen):
            root.find(path, links=path == "/loop")


def test_what_is_mounted_hides_the_image(layers: tuple[str, str], tmp_path: Path) -> None:
    root = Foresight(layers)
    root.mount("/etc", "")
    with pytest.raises(FileNotFoundError):
        root.find("/etc/passwd")
    root.make("/etc/new", 0o040700)
    assert root.find("/etc/new") == ("/etc/new", 0o040700)
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/file").write_text("")
    root.mount("/etc/new", str(tmp_path / "volume"))
    assert root.find("/etc/new/file")[0] == "/etc/new/file"


@pytest.mark.skipif(os.geteuid() != 0, reason="root is missing: whiteouts are devices")
def test_a_whiteout_hides_what_is_below(layers: tuple[str, str]) -> None:
    os.mknod(f"{layers[0]}/etc/passwd", 0o020000, 0)
    with pytest.raises(FileNotFoundError):
        Foresight(layers).find("/etc/passwd")


def words(assembly: Assembly) -> tuple[int, ...]:
    image = assembly.image()
    return struct.unpack(f"={len(image) // 8}Q", image)


def test_results_go_where_they_are_arguments() -> None:
    fd = Slot(Slot.FIRST)
    entries = [
        Entry("openat", (-100, "/x", 0)),
        Entry("setns", (fd, Given(Given.FIRST + 1))),
        Entry("clone3", (Holed(bytes(88), 80, fd), 88, 0, 0, 0, Jump(3)), 0, -17),
        Entry("exit_group", (0,)),
        Entry("", (Scratch(24), 0xFF, 7, 1)),
    ]
    assembly = Assembly(entries, NUMBERS, BASE)
    found = words(assembly)

    def entry(number: int) -> tuple[int, ...]:
        start = HEAD_WORDS + number * ENTRY_WORDS
        return found[start : start + ENTRY_WORDS]

    def at(address: int) -> int:
        return found[(address - BASE) // 8]

    stores = entry(0)[8]
    places = [at(stores), at(stores + 8), at(stores + 16)]
    assert places == [BASE + entry_offset(1) + 8, entry(2)[1] + 80, 0]
    assert assembly.given == [(1, entry_offset(1) + 16)]
    assert entry(2)[6] == BASE + entry_offset(3)
    assert entry(2)[7] == (-17 & 0xFFFFFFFF) << 32
    assert entry(4)[0] == CHECK & (2**64 - 1) and entry(4)[2:5] == (0xFF, 7, 1)
    assert entry(4)[1] % 8 == 0 and at(entry(4)[1]) == 0
    assert entry(1)[RESULT] == 0


def test_a_program_is_kept_as_it_is(tmp_path: Path) -> None:
    path = str(tmp_path / "program")
    program = Program(Region(BASE, 4096, 4096), ((0, 8),), 72, ((80, "x"),), (("/a", "1"),), (), 5, 9)
    save(program, b"image", path)
    with open(path, "rb") as file:
        assert load(file.fileno()) == program
        assert os.pread(file.fileno(), 5, 4096) == b"image"
    assert os.listdir(tmp_path) == ["program"] and os.stat(path).st_mode & 0o777 == 0o600


class Asking(Operation):
    """Asks what nobody can foresee."""

    def describe(self) -> str:
        return "make a pipe"

    def run(self, kernel: Any, context: Context) -> None:
        kernel.pipe()


def test_what_cannot_be_foreseen_has_no_program(tmp_path: Path) -> None:
    assert not prepare(FakeKernel(), Plan((Asking(),)), (), str(tmp_path / "program"))
    assert not prepare(FakeKernel(), Plan((), apart=True), (), str(tmp_path / "program"))
    assert os.listdir(tmp_path) == []


class Around(Operation):
    """A little of everything that has one way only."""

    def describe(self) -> str:
        return "go around"

    def run(self, kernel: Any, context: Context) -> None:
        kernel.dumpable(False)
        kernel.unshare(0x20000)
        tree = kernel.fsopen("tmpfs")
        kernel.fsconfig(tree, "size", "1")
        kernel.move_mount(kernel.fsmount(tree, 1), tree)
        kernel.sethostname("x")
        kernel.pivot_root(".", ".")


def test_the_recorder_is_asked_what_a_kernel_is_asked() -> None:
    """The same operations, and the same system calls in the same order."""
    recorder, fake = Recorder(FakeKernel(), (), X86_64), FakeKernel()
    context = Context((10, 11, 12), False)
    Around().run(recorder, context)
    Around().run(fake, context)
    renamed = {"dumpable": "prctl"}
    assert [e.call for e in recorder.entries] == [renamed.get(name, name) for name in fake.names()]


def test_a_label_of_a_security_module_is_foreseen_where_there_is_one(tmp_path: Path) -> None:
    """Below the host's /proc, for which a folder stands here."""
    recorder, context = Recorder(FakeKernel(), ()), Context((5, 6, 7), False)
    context.host_proc = recorder.open(str(tmp_path), os.O_PATH)
    with pytest.raises(Refused, match="AppArmor is not enabled"):
        CheckLabels(True, False).run(recorder, context)
    (tmp_path / "self/attr/apparmor").mkdir(parents=True)
    (tmp_path / "self/attr/apparmor/exec").write_text("")
    CheckLabels(True, False).run(recorder, context)
    asked = recorder.entries[-1]
    assert asked.call == "openat" and not asked.expected
    assert asked.arguments[:2] == (context.host_proc, "self/attr/apparmor/exec")
    context.root = recorder._note(Slot(Slot.FIRST + 99), Seen("", True, 0o040755))
    with pytest.raises(Unforeseen):
        recorder.open("etc", os.O_PATH, dir_fd=context.root)
