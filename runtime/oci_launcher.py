"""Writes the executable `kubelet-py-oci` for this machine: `python -m runtime.oci_launcher FILE`.

What pip makes of an entry point starts the interpreter with `site` and imports module by module, which takes
three times as long as what the command then does. This executable starts it isolated (-I: neither the
environment nor the working directory changes what is imported; -S: without site) and takes the code from one
file beside the bytecode of the package; see oci_boot.py. The code (-c) that runs the rest is among the
options: Python would look at a file as an archive first, and read it twice. It finds the package by the path
it has now: write it again when that moves. Without that file, or with a stale one, it is slower and otherwise
the same. What only some commands import lies in a second file, which most starts never read.

Its first line names a program of ours in the package's folder, which executes Python so that no container can
write to its file; see oci_start.py. Where that cannot be, the line names Python itself, with the options it
has room for, and main() says so: on processors nobody wrote that program for, where the package's path is too
long for a first line, and for a Python that finds its library from where it was executed ($ORIGIN).

An interpreter whose library is a file of its own relocates all of it at each start. Where ours is one of
those and the system has the same version in one piece, the command runs in the system's: it needs the
standard library alone. Nor does it look for garbage in cycles: most commands end before they have any, and
those that stay (a terminal's relay, `events`) turn that on.
"""

from __future__ import annotations

import ast
import importlib.util
import marshal
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from runtime import cgroups, oci_start
from runtime.errors import CgroupError, RuntimeFailure
from runtime.machine import this_machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import CodeType

MAIN = "runtime.oci_cli"
LONGEST_FIRST_LINE = 127  # BINPRM_BUF_SIZE of kernels before 5.1, less its end

SYSTEM = "/usr/bin/python{}.{}"

# Tells an interpreter's version, as bytecode has it, and whether its library is a file of its own; nothing
# where it has but a part of the standard library, as Debian's python3-minimal.
PROBE = """
import _ctypes, _json, ast, pathlib, socket, subprocess
from _frozen_importlib_external import MAGIC_NUMBER
with open("/proc/self/maps") as file:
    print(MAGIC_NUMBER.hex(), "libpython" in file.read())
"""
# Run by the interpreter that will read what is written: it alone knows where its own modules are.
PACK = "import sys; sys.path.append({site!r}); from runtime.oci_launcher import pack; pack({archive!r})"
# The end of the options; in a first line, where there is room for it.
DIRECT = "cimport sys;del sys.argv[0];exec(open(sys.argv[0],'rb').read())"
LAUNCHER = """#!{first}
{named}import gc, sys
gc.disable()
from marshal import loads
from _frozen_importlib_external import MAGIC_NUMBER
sys.path.append({site!r})
try:
    with open({archive!r}, "rb", 0) as file:
        magic, data = file.read(4), file.read()
except OSError:
    magic = b""
if magic == MAGIC_NUMBER:
    code, *modules = loads(data)
    names = {{"__name__": "runtime.oci_boot"}}
    exec(code, names)
    names["boot"](*modules)
from runtime.oci_cli import program
program()
"""
# At its beginning: executed by its descriptor, the process would be called after Python's file.
NAMED = """try:
    with open("/proc/self/comm", "wb", 0) as file:
        file.write({name!r})
except OSError:
    pass
"""


def main(argv: list[str]) -> int:
    """Writes the launcher and what it reads."""
    if len(argv) != 1:
        print("usage: python -m runtime.oci_launcher FILE", file=sys.stderr)
        return 2
    if reason := write(Path(argv[0])):
        print(f"{argv[0]} starts from a mount that is writable: {reason}", file=sys.stderr)
    return 0


def write(launcher: Path, archive: Path | None = None) -> str:
    """Writes the files, each whole or not at all; `archive` instead of that in the package, and the program
    that starts Python beside that instead of in the package. Returns why Python's file is not made
    read-only, "" where it is. Raises RuntimeFailure, OSError."""
    python = interpreter(os.path.realpath(sys.executable), SYSTEM.format(*sys.version_info))
    package = Path(__file__).parent
    name = f"kubelet-py-oci.{sys.implementation.cache_tag}"
    # Not with the bytecode, without which everything works: people remove that to save space.
    starter = archive.with_name(f"{archive.name}.start") if archive else package / f"{name}.start"
    reason = unstartable(python, str(starter))
    first = str(starter) if not reason else _plain(launcher, python)
    archive = archive or package / "__pycache__" / name
    archive.parent.mkdir(exist_ok=True)
    places = {"site": str(package.parent), "archive": str(archive)}
    # A third of the code would be the columns of expressions, for tracebacks; their lines stay.
    packing = [python, "-IS", "-X", "no_debug_ranges", "-c", PACK.format(**places)]
    done = subprocess.run(packing, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeFailure(f"Could not write {launcher}: {_last_line(done.stderr) or done.returncode}")
    named = ""
    if not reason:
        _replace(starter, oci_start.image(this_machine(), python, f"-IS{DIRECT}"), 0o755)
        named = NAMED.format(name=os.fsencode(launcher.name))
    _replace(launcher, LAUNCHER.format(first=first, named=named, **places).encode(), 0o755)
    return reason


def unstartable(python: str, starter: str) -> str:
    """Why a program of ours at `starter` cannot execute this Python; "" if it can."""
    if not _fits(starter) or " " in starter:
        return f"{starter} cannot stand in a first line"
    try:
        this_machine()
    except OSError as error:
        return str(error)
    # The loader takes it from /proc/self/exe, which in a mount that is attached nowhere is "/".
    if b"$ORIGIN" in Path(python).read_bytes():
        return f"{python} finds its library by $ORIGIN"
    return ""


def _fits(line: str) -> bool:
    """Whether a first line has room for this."""
    return len(os.fsencode(f"#!{line}")) <= LONGEST_FIRST_LINE


def _plain(launcher: Path, python: str) -> str:
    """What the first line has without that program. Raises RuntimeFailure."""
    if not _fits(f"{python} -IS") or " " in python:
        raise RuntimeFailure(f"Could not write {launcher}: {python} cannot stand in a first line")
    return f"{python} -IS{DIRECT}" if _fits(f"{python} -IS{DIRECT}") else f"{python} -IS"


def pack(archive: str) -> None:
    """Writes the two files with the code, for the interpreter that runs this. Raises OSError."""
    first = Path(archive)
    late = first.with_name(f"{first.name}.late")
    eager, rest = archive_bytes(late)
    _replace(late, rest, 0o644)
    _replace(first, eager, 0o644)


def interpreter(own: str, system: str) -> str:
    """Which of two Pythons the command is for: the system's if that is our version and starts sooner."""
    wanted = [importlib.util.MAGIC_NUMBER.hex(), "False"]
    if _probed(own)[1:] == ["True"] and _probed(system) == wanted:
        return os.path.realpath(system)
    return own


def _probed(python: str) -> list[str]:
    """What PROBE tells of an interpreter; nothing if it is none."""
    try:
        return subprocess.run([python, "-ISc", PROBE], capture_output=True, text=True).stdout.split()
    except OSError:
        return []


def _last_line(text: str) -> str:
    """Where a traceback says what went wrong."""
    return text.rstrip().rpartition("\n")[2]


def _replace(path: Path, data: bytes, mode: int) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_bytes(data)
        new.chmod(mode)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def archive_bytes(late: Path) -> tuple[bytes, bytes]:
    """Two files, each after the interpreter's magic number: the code of what every start imports, and of what
    the command may import besides, which will be at `late`."""
    eager: list[str] = []
    beside: set[str] = set()
    for name in (MAIN, *_late_in_each_start()):
        _order(name, (), eager, beside)
    lazy = _reached(eager) - {*eager, *beside}
    # Ours in one piece, so that what the modules have in common is there once.
    together = tuple((*entry, _code(entry[0])) for entry in _entries(eager))
    known = _packed(beside), str(late), frozenset(lazy), _extensions((*eager, *beside))
    first = marshal.dumps((_code("runtime.oci_boot"), together, *known))
    return importlib.util.MAGIC_NUMBER + first, importlib.util.MAGIC_NUMBER + marshal.dumps(_packed(lazy))


def _packed(names: Iterable[str]) -> dict[str, tuple[str, str, int, int, str, bytes]]:
    """Each by itself: who imports one of them does not need the others."""
    return {entry[0]: (*entry, marshal.dumps(_code(entry[0]))) for entry in _entries(sorted(names))}


def _late_in_each_start() -> tuple[str, ...]:
    """What a start imports late, whatever it starts: also the driver for the cgroups of this machine."""
    names = ("runtime.spec_resources", "runtime.users")
    try:
        return *names, type(cgroups.detect()).__module__
    except CgroupError:
        return names


def _order(name: str, above: tuple[str, ...], ordered: list[str], beside: set[str]) -> None:
    """Puts this room's modules into `ordered`, each after what it imports (a package after its modules);
    others that have a source, into `beside`."""
    if name in ordered or name in above or name in beside or not _source(name):
        return
    own = name.split(".")[0] == "runtime"
    if not own:
        beside.add(name)
    for needed in _imports(name, everywhere=False):
        _order(needed, (*above, name), ordered, beside)
    if own:
        ordered.append(name)


def _reached(names: Iterable[str]) -> set[str]:
    """Modules of this room that these import, at whatever moment."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found and name.startswith("runtime") and _source(name):
            found.add(name)
            waiting += _imports(name, everywhere=True)
    return found


def _imports(name: str, *, everywhere: bool) -> Iterator[str]:
    """What a module's source names in import statements: those that run with it, or all. Names that are no
    modules are among them."""
    tree = ast.parse(Path(_source(name)).read_bytes())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            package = node.module.rpartition(".")[0]
            yield from ([package] if package else [])
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _source(name: str) -> str:
    """A module's source file; "" for what is built in, frozen or an extension."""
    origin = _origin(name)
    return origin if origin.endswith(".py") else ""


def _origin(name: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        return ""
    return (spec.origin or "") if spec else ""


def _extensions(names: Iterable[str]) -> dict[str, str]:
    """The files of the extension modules that these import: finding them means to list folders."""
    wanted = {needed for name in names for needed in _imports(name, everywhere=True)}
    found = {name: _origin(name) for name in sorted(wanted) if not name.startswith("runtime")}
    return {name: path for name, path in found.items() if path.endswith(tuple(EXTENSION_SUFFIXES))}


def _entries(names: Iterable[str]) -> Iterator[tuple[str, str, int, int, str]]:
    """What oci_boot.Module starts with."""
    for name in names:
        path = _source(name)
        status = os.stat(path)
        folder = os.path.dirname(path) if path.endswith("/__init__.py") else ""
        yield name, path, status.st_mtime_ns, status.st_size, folder


class _Bare(ast.NodeTransformer):
    """Without what nobody reads here: annotations of functions (those of classes stay, records need them),
    what protocols ask for, and imports from __future__, which are flags of the compiler."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module == "__future__" else node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
            node.body = [ast.Pass()]
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def _code(name: str) -> CodeType:
    path = _source(name)
    tree = ast.fix_missing_locations(_Bare().visit(ast.parse(Path(path).read_bytes())))
    # Without docstrings, too.
    code: CodeType = compile(tree, path, "exec", annotations.compiler_flag, dont_inherit=True, optimize=2)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
