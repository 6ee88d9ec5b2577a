"""Programs cut after one that was made before.

Compiling a start (ahead.py) takes milliseconds, and most containers of a node are started alike: the same
image, mounts, rights and limits. What is one's own is a handful of texts: its folder, its cgroups, the
namespaces of its pod, its arguments and its environment. So a program that was compiled is kept without those
(`Stencil`), by all that it was compiled from (`Stencils`), and the next one is a copy with its own texts
behind it.

Nothing is believed that would not have been believed before: what a program has foreseen is checked by the
program itself, when it runs. And nothing of one container gets to another: the texts are taken out before a
stencil is kept, and where one of them is left, in whatever form, it is not kept.
"""

from __future__ import annotations

import marshal
import os
import posixpath
import struct
import threading
import time

from runtime.kernel import Region
from runtime.program import Assembly, Entry, Program, draw_address, entry_offset, save
from runtime.records import Record
from runtime.table import Data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from runtime.ahead import Recording

MOST = 32  # tens of kB each
SECONDS = 60.0  # what was foreseen may have changed: that costs time with each start until it is seen anew
TEXT, PLACE, ARGS, ENV, HOSTNAME = range(5)
UNMISTAKABLE = 32  # characters of a random name that is nowhere by chance
NO_TEXT = 0xF8  # a byte that UTF-8 has not, nor the next ones


class Own(Record):
    """What is a container's own in its program. `names`: random ones, wherever they are in a text (its id,
    its pod's uid); `cgroup`: its path, of which the names are only a part; `places`: texts of their own
    (paths of cgroups, namespaces and volumes), in an order that all of a shape have."""

    names: tuple[str, ...]
    cgroup: str
    places: tuple[str, ...]
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    hostname: str = ""

    def pattern(self) -> tuple[object, ...]:
        """What two must have in common: which of the places are the same."""
        return len(self.names), tuple(map(self.places.index, self.places)), len(self.hostname.encode())


class Stencil:
    """A compiled program without what is its container's own. `resources`: the limits that were parsed with
    it."""

    def __init__(self, recording: Recording, own: Own, resources: Any) -> None:
        """Raises ValueError when it would keep something of the container's."""
        self.resources = resources
        self._owner, self._notes = recording.owner, recording.notes
        self._tolerated = recording.tolerated
        self._child = recording.child
        self._page = recording.page
        self._names = own.names
        self._pattern = own.pattern()
        self._holes: list[tuple[int, int, object]] = []
        entries = [self._without(own, number, entry) for number, entry in enumerate(recording.entries)]
        self._address = draw_address()
        assembly = Assembly(entries, recording.numbers, self._address)
        self._image = assembly.image()
        self._given = tuple(assembly.given)
        kept = [self._image, repr((self._tolerated, self._notes)).encode()]
        if any(os.fsencode(text) in memory for text in (*own.names, *own.places) for memory in kept):
            raise ValueError("a text of the container's is where it cannot be replaced")

    def _without(self, own: Own, number: int, entry: Entry) -> Entry:
        arguments = list(entry.arguments)
        for index, argument in enumerate(arguments):
            hole = _hole(own, entry.call, index, argument)
            if hole is not None:
                self._holes.append((entry_offset(number) + 8 * (1 + index), *hole))
                arguments[index] = 0
        return Entry(entry.call, tuple(arguments), entry.flags, entry.expected)

    def fits(self, own: Own) -> bool:
        """Whether it has the holes for these texts."""
        return own.pattern() == self._pattern

    def write(
        self,
        path: str,
        own: Own,
        late: tuple[tuple[str, str], ...],
        joined: tuple[str, ...] = (),
        held: bool = False,
        oom: tuple[str, str] = ("", ""),
    ) -> bool:
        """The program with these texts, as a file. Only if it `fits`. Raises OSError."""
        image, data = bytearray(self._image), Data()
        base = self._address + len(image)
        for offset, kind, what in self._holes:
            struct.pack_into("=Q", image, offset, base + data.place(self._text(own, kind, what)))
        image += data.at(base)
        place = Region(self._address, -(-len(image) // self._page) * self._page, self._page)
        values = self._child, self._tolerated, late, self._notes, self._owner, joined, held, oom
        save(Program(place, self._given, *values), image, path)
        return True

    def _text(self, own: Own, kind: int, what: Any) -> object:
        if kind == PLACE:
            return own.places[what]
        if kind == TEXT:
            for old, new in zip(self._names, own.names, strict=True):
                what = what.replace(old, new)
            return what
        return {ARGS: own.args, ENV: own.env, HOSTNAME: own.hostname}[kind]


def _hole(own: Own, call: str, index: int, argument: object) -> tuple[int, object] | None:
    """What has to be put in for an argument of a system call; None if it is everybody's."""
    if call == "execve" and index > 0:
        return (ARGS, None) if index == 1 else (ENV, None)
    if call == "sethostname" and index == 0:
        return HOSTNAME, None
    if isinstance(argument, bytes) and argument.endswith(b"\0") and argument.count(b"\0") == 1:
        argument = os.fsdecode(argument[:-1])
    if isinstance(argument, str):
        if argument in own.places:
            return PLACE, own.places.index(argument)
        if any(name in argument for name in own.names):
            if own.cgroup in argument:
                raise ValueError("a path of the container's cgroup is part of something else")
            if any(place in argument for place in own.places):
                raise ValueError("a place of the container's is part of something else")
            return TEXT, argument
    return None


class Stencils:
    """The ones kept, by what they were made from. For any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[bytes, tuple[float, Stencil]] = {}

    def find(self, shape: bytes | None) -> Stencil | None:
        if shape is None:
            return None
        with self._lock:
            made, stencil = self._kept.get(shape, (0.0, None))
            return stencil if self._clock() - made < SECONDS else None

    def keep(self, shape: bytes, stencil: Stencil) -> None:
        with self._lock:
            self._kept.pop(shape, None)
            while len(self._kept) >= MOST:
                self._kept.pop(next(iter(self._kept)))
            self._kept[shape] = self._clock(), stencil


def names_of(*names: str) -> tuple[str, ...]:
    """Those that are random enough, and look the same however they are written."""
    return tuple(n for n in names if len(n) >= UNMISTAKABLE and n.isascii() and n.replace("-", "").isalnum())


def pause_shape(oci: Mapping[str, Any]) -> bytes | None:
    """All that pause's program is made from but what is its own; None for a name that no host has."""
    name = oci.get("hostname", "")
    return None if "\0" in name else _dumped(({**oci, "hostname": ""}, len(name.encode())), ())


def own_sources(oci: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """The sources of binds that no other container has: below its pod's folder. A pod's volumes have names of
    their own, too, like kube-api-access-x7k2p. Raises as a document that is not what it should be."""
    sources = [mount["source"] for mount in oci.get("mounts") or () if _is_bind(mount)]
    return tuple(source for source in sources if any(name in source for name in names))


def _is_bind(mount: Mapping[str, Any]) -> bool:
    return bool({"bind", "rbind"} & set(mount.get("options") or ()))


def container_shape(
    oci: Mapping[str, Any],
    layers: Sequence[str],
    join: Sequence[str],
    names: tuple[str, ...],
    *,
    held: bool = False,
) -> bytes | None:
    """All that a container's program is made from but what is its own; None when there are too many answers
    to be foreseen, or the document is not what it should be. `join`: types of namespaces."""
    process: Any = oci.get("process")
    try:
        mounts = oci.get("mounts") or ()
        sources, own = _sources(mounts), own_sources(oci, names)
        args, env = process["args"], process.get("env") or []
        if not (isinstance(args, list | tuple) and isinstance(env, list | tuple) and args):
            return None
        if sources is None or "\0" in "".join(args) + "".join(env):
            return None
        named = {entry.partition("=")[0] for entry in env}
        if len(named) < len(env) or "" in named or not all("=" in entry for entry in env):
            return None  # which of them count is for who reads the document to say, or that none may be
        # The program is looked for by these; see container_plan.
        paths = [entry for entry in env if entry.startswith("PATH=")][:1]
        rest = {**oci, "process": {**process, "args": list(args[:1]), "env": paths}}
        if own:
            rest["mounts"] = [
                {**mount, "source": ""} if _is_bind(mount) and mount["source"] in own else mount
                for mount in mounts
            ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return _dumped((rest, tuple(layers), tuple(join), sources, held), names)


def _dumped(values: Any, names: tuple[str, ...]) -> bytes | None:
    """Equal for what is equal: version 0 of the format does not tell how often a value is referred to."""
    try:
        shape = marshal.dumps(values, 0)
    except ValueError:
        return None
    return _without_names(shape, names)


def _without_names(memory: bytes, names: tuple[str, ...]) -> bytes:
    """With bytes in place of the names that are in no text."""
    for number, name in enumerate(names):
        memory = memory.replace(name.encode(), bytes([NO_TEXT + number]) * len(name))
    return memory


def can_be_told(shape: bytes, own: Own) -> bool:
    """Whether a container's own places are nowhere in what it shares with others, where they would be meant
    for all: a hostPath /proc/4711/ns/net, when its pod's pause is 4711."""
    return not any(_without_names(os.fsencode(place), own.names) in shape for place in own.places if place)


def _sources(mounts: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, int], ...] | None:
    """Mode and device of what is bound; None if something is mounted below one of them: then it is the
    volume's contents that decide what has to be made there. Raises OSError."""
    found, bound = [], []
    for mount in mounts:
        if _is_bind(mount):
            status = os.stat(mount["source"])
            found.append((status.st_mode, status.st_rdev))
            bound.append(_place(mount) + "/")
    places = [_place(mount) for mount in mounts]
    if any(place.startswith(outer) for outer in bound for place in places):
        return None
    return tuple(found)


def _place(mount: Mapping[str, Any]) -> str:
    """Where it is mounted, from the root: a relative destination is meant so, too (see spec.py)."""
    destination: str = mount["destination"]
    return posixpath.normpath("/" + destination.lstrip("/"))
