"""A program cut from a stencil is the one that would have been compiled."""

from __future__ import annotations

import os
import struct
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from runtime.ahead import Ahead
from runtime.cgroups.join import CgroupJoin
from runtime.cgroups.oom_files import OomFiles
from runtime.fake import FakeKernel
from runtime.kernel import AT_FDCWD
from runtime.machine import ENTRY_WORDS, this_machine
from runtime.namespaces import namespaces_of
from runtime.prepared import FIRST_JOINED, GATE
from runtime.program import Entry, Program, load
from runtime.stencil import (
    NO_TEXT,
    SECONDS,
    Own,
    Stencil,
    Stencils,
    can_be_told,
    container_shape,
    names_of,
    pause_shape,
)
from runtime.table import HEAD_WORDS
from tests.unit.runtime.example_spec import container

NUMBERS = this_machine().numbers
JOIN = namespaces_of({"linux": {"namespaces": [{"type": "network"}, {"type": "ipc"}]}})
FIRST, SECOND = "a" * 32 + "0" * 32, "b" * 32 + "1" * 32
UIDS = "5f1d3a52-7c1f-4c2e-9a55-0123456789ab", "99999999-7c1f-4c2e-9a55-ba9876543210"


class Cgroup:
    """Folders and files like a hybrid host's."""

    def __init__(self, root: Path, path: str) -> None:
        self._root, self._path = root, path
        (root / "unified" / path).mkdir(parents=True, exist_ok=True)
        for tasks in self._tasks():
            Path(tasks).parent.mkdir(parents=True, exist_ok=True)
            Path(tasks).touch()

    def _tasks(self) -> tuple[str, ...]:
        own = tuple(f"{self._root}/{name}/{self._path}/tasks" for name in ("cpu", "memory"))
        return (*own, f"{self._root}/devices/tasks")

    def join(self) -> CgroupJoin:
        late = ((f"{self._root}/cpu/{self._path}/cpu.shares", "2"),)
        return CgroupJoin(f"{self._root}/unified/{self._path}", self._tasks(), late)

    def oom_files(self) -> OomFiles:
        return OomFiles(f"{self._root}/memory/{self._path}/events", "")


class Driver:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.made: list[tuple[str, Any]] = []

    def create(self, path: str, resources: Any = None) -> Cgroup:
        self.made.append((path, resources))
        return Cgroup(self._root, path)

    def create_bare(self, path: str) -> Cgroup:
        return self.create(path)


class Node:
    """Containers of pods, as the agent makes them, each as a program on disk."""

    def __init__(self, folder: Path) -> None:
        self.held = False
        self.folder = folder
        self.layer = folder / "layer"
        (self.layer / "bin").mkdir(parents=True)
        (self.layer / "bin/sh").write_text("")
        (self.layer / "bin/sh").chmod(0o755)
        for uid in UIDS:
            (folder / uid / "volumes" / f"token-{uid[:3]}").mkdir(parents=True)
            (folder / uid / "hosts").write_text("")
        self.driver = Driver(folder / "cgroups")
        self.ahead = self.fresh()

    def fresh(self) -> Ahead:
        tools: Any = FakeKernel(), self.driver
        return Ahead(tools)

    def oci(self, uid: str, **process: Any) -> dict[str, Any]:
        oci = deepcopy(container(**process))
        oci["mounts"] = [m for m in oci["mounts"] if m["type"] not in ("cgroup", "bind")]
        token = f"volumes/token-{uid[:3]}"
        for source, destination in (("hosts", "/etc/hosts"), (token, "/run/token"), (token, "/run/again")):
            path = str(self.folder / uid / source)
            bind = {"destination": destination, "type": "bind", "source": path, "options": ["rbind"]}
            oci["mounts"].append(bind)
        oci["linux"]["namespaces"] = [{"type": "mount"}, {"type": "pid"}]
        oci["linux"]["maskedPaths"], oci["linux"]["readonlyPaths"] = [], []
        oci["process"]["cwd"] = "/"
        oci["linux"].pop("sysctl")
        oci.pop("hostname")
        return oci

    def make(self, number: int, ahead: Ahead | None = None, **process: Any) -> tuple[Program, bytes]:
        """The first or second container: program and image."""
        identifier = (FIRST, SECOND)[number]
        folder = self.folder / "containers" / identifier
        for name in ("upper", "work"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        pod = "kubepods/pod-one" if number == 0 else "kubepods/burstable/another-pod"
        record = {
            "id": identifier,
            "cgroup": f"{pod}/{identifier}",
            "config": {"tty": False, "layers": [str(self.layer)]},
        }
        oci = self.oci(UIDS[number], **process)
        held = self.held
        assert (ahead or self.ahead).container(str(folder), record, oci, JOIN, UIDS[number], held=held)
        return self.read(folder)

    @staticmethod
    def read(folder: Path) -> tuple[Program, bytes]:
        with open(folder / "program", "rb") as file:
            program = load(file.fileno())
            assert program is not None
            return program, os.pread(file.fileno(), program.place.size, program.place.offset)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def meaning(program: Program, image: bytes) -> list[object]:
    """The entries, with what their addresses point to in their place."""
    base, size = program.place.address, program.place.size

    def at(word: int, deep: int = 2) -> object:
        if not base <= word < base + size:
            return word
        place = word - base
        text = image[place : image.index(b"\0", place) + 1]
        words = []
        while deep and place + 8 <= size:
            (found,) = struct.unpack_from("=Q", image, place)
            if not base <= found < base + size:
                break
            words.append(at(found, deep - 1))
            place += 8
        return words or text

    first_child = (program.child // 8 - HEAD_WORDS) // ENTRY_WORDS
    found: list[object] = []
    number = 0
    while True:
        start = (HEAD_WORDS + number * ENTRY_WORDS) * 8
        words = struct.unpack_from(f"={ENTRY_WORDS}Q", image, start)
        arguments = [at(word) for word in words[1:7]] if number != first_child else list(words[2:6])
        found.append((words[0], arguments, words[7], words[8] != 0))
        number += 1
        if words[0] == 231:  # exit_group: the last
            return found


def test_what_is_cut_is_what_would_have_been_compiled(node: Node) -> None:
    values = {"args": ["sh", "-c", "echo two"], "env": ["PATH=/bin", "SECRET=second"]}
    compiled = node.make(1, node.fresh(), **values)
    first, _ = node.make(0, env=["PATH=/bin", "SECRET=first"])
    program, image = node.make(1, **values)
    assert program.place.address == first.place.address, "it was cut from the first one's"
    assert meaning(program, image) == meaning(*compiled)
    for field in ("given", "child", "tolerated", "late", "notes", "owner", "joined", "held", "oom"):
        assert getattr(program, field) == getattr(compiled[0], field)
    assert node.driver.made[0] == node.driver.made[2], "with the same limits"


def test_nothing_of_the_one_gets_to_the_other(node: Node) -> None:
    node.make(0, args=["sh", "-c", "first"], env=["PATH=/bin", "SECRET=first"])
    _, image = node.make(1)
    for text in ("first", FIRST, UIDS[0], f"token-{UIDS[0][:3]}", "pod-one"):
        assert text.encode() not in image
    assert SECOND.encode() in image and b"another-pod" in image


def test_namespaces_are_given_when_it_starts(node: Node) -> None:
    program, image = node.make(0)
    assert program.joined == ("net", "ipc", "mnt") and not program.held
    assert b"/proc/0/ns" not in image
    joined = {FIRST_JOINED + number for number in range(3)}
    assert {number for number, _ in program.given} == {0, 1, 2, *joined}


def test_one_that_is_held_is_another_program(node: Node) -> None:
    free, _ = node.make(0)
    node.held = True
    held, image = node.make(1)
    assert held.held and held.place.address != free.place.address, "not cut from the other"
    assert GATE.stream in {number for number, _ in held.given}
    reads = [entry for entry in meaning(held, image) if entry[0] == NUMBERS["read"]]  # type: ignore[index]
    assert [entry[2] for entry in reads] == [1 << 32], "a byte, or nothing"  # type: ignore[index]


@pytest.mark.parametrize(
    "change",
    [
        {"args": ["ls"]},
        {"env": ["PATH=/sbin:/bin"]},
        {"user": {"uid": 0, "gid": 1001}},
        {"noNewPrivileges": False},
        {"capabilities": {"bounding": []}},
        {"oomScoreAdj": 400},
    ],
)
def test_what_makes_another_plan_makes_another_shape(node: Node, change: dict[str, Any]) -> None:
    names = names_of(FIRST, UIDS[0])
    same = container_shape(node.oci(UIDS[0], args=["sh", "x"], env=["PATH=/bin", "A=1"]), ["/l"], [], names)
    assert same is not None
    assert container_shape(node.oci(UIDS[0]), ["/l"], [], names) == same
    assert container_shape(node.oci(UIDS[1]), ["/l"], [], names_of(SECOND, UIDS[1])) == same
    assert container_shape(node.oci(UIDS[0]), ["/m"], [], names) != same
    assert container_shape(node.oci(UIDS[0]), ["/l"], ["ipc"], names) != same
    assert container_shape(node.oci(UIDS[0], **change), ["/l"], [], names) != same
    elsewhere = node.oci(UIDS[0])
    elsewhere["mounts"][-1]["source"] = "/etc"
    assert container_shape(elsewhere, ["/l"], [], names) != same, "which is no one's own"
    (node.folder / UIDS[0] / "hosts").chmod(0o600)
    assert container_shape(node.oci(UIDS[0]), ["/l"], [], names) != same


@pytest.mark.parametrize(
    "process",
    [
        {"env": ["A=1", "A=2"]}, {"env": ["=1"]}, {"env": ["A=\0B"]}, {"args": ["sh", "\0"]}, {"args": []},
        {"args": "sh"}, {"env": [1]}, {"env": 7}, {"env": ["A"]},
    ],
)  # fmt: skip
def test_what_is_no_process_has_no_shape(node: Node, process: dict[str, Any]) -> None:
    assert container_shape(node.oci(UIDS[0], **process), [], [], ()) is None


def test_a_mount_on_a_volume_depends_on_what_is_in_it(node: Node) -> None:
    oci = node.oci(UIDS[0])
    for destination, deep in (
        ("/data", False),
        ("/data-too", False),
        ("/data/./below", True),
        ("data/below", True),
    ):
        oci["mounts"].append({"destination": destination, "source": str(node.folder), "options": ["bind"]})
        assert (container_shape(oci, [], [], ()) is None) is deep
    for source in ("/no/such/folder", "/\0"):
        oci["mounts"] = [{"destination": "/x", "source": source, "options": ["bind"]}]
        assert container_shape(oci, [], [], ()) is None


def test_no_text_stands_for_a_name(node: Node) -> None:
    """Whatever is in a name's place in the key is in no text, so the order of two is kept."""
    oci, shapes = node.oci(UIDS[0]), set()
    for text in ("\0" * 64, "\1" + FIRST, FIRST + "\1", "\0" + FIRST, FIRST + "\0"):
        oci["mounts"] = [{"destination": text, "type": "tmpfs"}]
        shapes.add(container_shape(oci, [], [], (FIRST, SECOND)))
    assert len(shapes) == 5


def test_a_place_that_others_mean_too_keeps_a_program_from_being_cut() -> None:
    """Two pods bind the network namespace of the first one's pause."""
    own = Own((FIRST,), "c", ("/proc/11/ns/net", f"/sys/{FIRST}", ""))
    assert can_be_told(b"/proc/1/ns/net", own)
    assert not can_be_told(b"u\x0f/proc/11/ns/netu", own)
    assert not can_be_told(b"/sys/" + bytes([NO_TEXT]) * len(FIRST), own)


def test_pauses_differ_by_all_but_their_names(node: Node) -> None:
    oci = {"hostname": "pod-1", "linux": {"sysctl": {}}}
    assert pause_shape(oci) == pause_shape({**oci, "hostname": "pod-2"})
    assert pause_shape(oci) != pause_shape({**oci, "hostname": "pod-10"})
    assert pause_shape(oci) != pause_shape({**oci, "linux": {"sysctl": {"net.core.somaxconn": "1"}}})
    assert pause_shape({**oci, "hostname": "pod\0"}) is None


def test_pauses_are_cut_too(node: Node) -> None:
    def make(number: int, ahead: Ahead) -> tuple[Program, bytes]:
        folder = node.folder / f"sandbox{number}"
        folder.mkdir(exist_ok=True)
        identifier = (FIRST, SECOND)[number]
        oci = {
            "ociVersion": "1.2.0",
            "process": {"args": ["/pause"], "cwd": "/"},
            "hostname": f"pod-{number}",
            "linux": {"namespaces": [{"type": "network"}, {"type": "uts"}], "sysctl": {}},
        }
        record = {"id": identifier, "cgroup": f"pods/{number}/{identifier}", "oci": oci}
        assert ahead.pause(str(folder), record)
        return node.read(folder)

    compiled, first, second = make(1, node.fresh()), make(0, node.ahead), make(1, node.ahead)
    assert second[0].place.address == first[0].place.address
    assert meaning(*second) == meaning(*compiled)
    assert b"pod-1" in second[1] and b"pod-0" not in second[1] and FIRST.encode() not in second[1]


def stencil(*entries: Entry, own: Own) -> Stencil:
    from runtime.ahead import Recording

    numbers = {"openat": 257, "mount": 165, "exit_group": 231}
    recording = Recording([*entries, Entry("exit_group", (0,))], numbers, 4096, 72, (), (), 0)
    return Stencil(recording, own, None)


def test_what_cannot_be_taken_out_is_not_kept() -> None:
    own = Own((FIRST,), f"pods/one/{FIRST}", ("/cg/x",))
    stencil(Entry("openat", (AT_FDCWD, f"/c/{FIRST}/upper", 0)), own=own)
    parts = f"lowerdir=/cg/pods/one/{FIRST}", "at /cg/x", f"/cg/x/of/{FIRST}"
    for argument in (*parts, (f"/c/{FIRST}",), b"\0" + FIRST.encode()):
        with pytest.raises(ValueError, match="container's"):
            stencil(Entry("openat", (AT_FDCWD, argument, 0)), own=own)


def test_a_stencil_fits_what_has_the_same_holes() -> None:
    own = Own((FIRST,), "c", ("/cg/a", "/cg/b"), hostname="pod")
    made = stencil(own=own)
    assert made.fits(Own((SECOND,), "d", ("/cg/c", "/cg/d"), hostname="dop"))
    for places, hostname in ((("/cg/c", "/cg/c"), "pod"), (("/cg/c",), "pod"), (("/cg/c", "/cg/d"), "pods")):
        assert not made.fits(Own((SECOND,), "d", places, hostname=hostname))


def test_short_or_strange_names_are_no_names() -> None:
    assert names_of(FIRST, UIDS[0], "u1", "x" * 31, "a/" * 20, "\u00e9" * 40) == (FIRST, UIDS[0])


def test_stencils_are_few_and_made_anew_after_a_while() -> None:
    now = [0.0]
    kept = Stencils(lambda: now[0])
    one = stencil(own=Own((FIRST,), "c", ()))
    kept.keep(b"one", one)
    assert kept.find(b"one") is one and kept.find(b"two") is None
    now[0] = SECONDS
    assert kept.find(b"one") is None
    for number in range(100):
        kept.keep(b"%d" % number, one)
    assert [number for number in range(100) if kept.find(b"%d" % number)] == list(range(68, 100))
