"""The executable that hack/quickstart installs: its own importing, and what happens when that is stale."""

from __future__ import annotations

import importlib.util
import marshal
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import cgroups, oci_boot, oci_launcher, oci_start
from runtime.errors import RuntimeFailure
from runtime.machine import this_machine


def written(folder: Path) -> Path:
    path = folder / "kubelet-py-oci"
    oci_launcher.write(path, folder / "code")
    return path


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be spoilt."""
    return written(tmp_path_factory.mktemp("launcher"))


def run(*argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", **environment}
    )


def python(launcher: Path) -> str:
    """The one it is executed by."""
    return strings(launcher)[0]


def starter(launcher: Path) -> Path:
    """What its first line names."""
    return Path(launcher.read_text().splitlines()[0].removeprefix("#!"))


def strings(launcher: Path) -> list[str]:
    """What lies behind the starter's code: the interpreter, its options, the complaint."""
    code = oci_start.CODE[this_machine().name]
    return starter(launcher).read_bytes().partition(code)[2].decode().split("\0")


def imported(launcher: Path) -> list[str]:
    """Modules that this start has read from the package's files one by one."""
    done = run(python(launcher), "-ISv", launcher, "--version")
    assert done.returncode == 0, done.stderr
    return [line.split("'")[1] for line in done.stderr.splitlines() if line.startswith("import 'runtime")]


def test_it_reads_no_module_of_ours_by_itself(launcher: Path) -> None:
    assert imported(launcher) == []
    assert run(launcher, "--version").stdout.startswith("kubelet-py-oci version")


def test_started_by_its_first_line_it_is_not_taken_for_an_archive(launcher: Path, tmp_path: Path) -> None:
    assert strings(launcher)[1] == f"-IS{oci_launcher.DIRECT}"
    for name, options in (("direct", oci_launcher.DIRECT), ("plain", "")):
        script = tmp_path / name
        script.write_text(f"#!{python(launcher)} -IS{options}\nimport sys\nprint(sys.argv[1:], __name__)\n")
        script.chmod(0o755)
    assert run(tmp_path / "direct", "a b", "-x").stdout == run(tmp_path / "plain", "a b", "-x").stdout
    assert run(launcher, "--version").stdout == run(python(launcher), "-IS", launcher, "--version").stdout


def test_it_looks_like_a_script_of_that_python(launcher: Path, tmp_path: Path) -> None:
    """sys.executable, by which the library is found, arguments, environment and the name of the process."""
    script = tmp_path / "kubelet-py-oci"
    telling = (
        "import sys, posix\nprint(sys.executable, sys.argv, sorted(posix.environ), "
        "open('/proc/self/comm').read(), open('/proc/self/cmdline').read())\nsys.exit()\n"
    )
    first, rest = launcher.read_text().split("import gc", 1)
    script.write_text(f"{first}{telling}import gc{rest}")
    script.chmod(0o755)
    told = run(script, "a b", "", "-x", ONE="1").stdout
    plain = oci_launcher._plain(script, python(launcher))
    script.write_text(f"#!{plain}\n{telling}")
    assert told == run(script, "a b", "", "-x", ONE="1").stdout and "kubelet-py-oci" in told


def test_it_works_where_no_mount_can_be_made(launcher: Path) -> None:
    """Root of a user namespace, in a mount namespace that is not that one's."""
    done = run("unshare", "--map-root-user", launcher, "--version")
    if done.stderr.startswith("unshare: "):
        pytest.skip("no user namespace can be made here")
    assert done.stdout.startswith("kubelet-py-oci version"), done.stderr


def test_an_interpreter_that_has_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "python"
    shutil.copy(os.path.realpath(sys.executable), copy)
    monkeypatch.setattr(oci_launcher, "interpreter", lambda *_: str(copy))
    launcher = written(tmp_path)
    assert run(launcher, "--version").returncode == 0
    copy.unlink()
    done = run(launcher, "--version")
    told = f"kubelet-py-oci: Could not execute {copy} (write this program again)\n"
    assert (done.returncode, done.stdout, done.stderr) == (127, "", told)


def no_code() -> None:
    raise OSError("Could not find machine code for vax")


@pytest.mark.parametrize("why", ["long", "processor", "library"])
def test_where_no_starter_can_be_its_first_line_names_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    folder = tmp_path
    if why == "long":
        folder = tmp_path / ("x" * oci_launcher.LONGEST_FIRST_LINE)
        folder.mkdir()
    elif why == "processor":
        monkeypatch.setattr(oci_launcher, "this_machine", no_code)
    else:
        copy = tmp_path / "python"
        shutil.copy(os.path.realpath(sys.executable), copy)
        with copy.open("ab") as file:
            file.write(b"$ORIGIN/../lib")
        monkeypatch.setattr(oci_launcher, "interpreter", lambda *_: str(copy))
    told = {"long": "cannot stand in a first line", "processor": "vax", "library": "by $ORIGIN"}[why]
    launcher = folder / "kubelet-py-oci"
    assert told in oci_launcher.write(launcher, folder / "code")
    assert " -IS" in launcher.read_text().splitlines()[0] and not (folder / "code.start").exists()
    assert run(launcher, "--version").stdout.startswith("kubelet-py-oci version")


def test_extension_modules_are_loaded_without_a_search(launcher: Path) -> None:
    """A finder that lists folders is asked for none of them; where a file has gone, it is."""
    done = run(python(launcher), "-ISvv", launcher, "--version")
    tried = [line for line in done.stderr.splitlines() if line.startswith("# trying")]
    wanted = ("_ctypes", "_struct", "_json")
    assert not [line for line in tried for name in wanted if f"/{name}." in line], tried


def test_a_missing_extension_file_is_searched_for() -> None:
    later = oci_boot.Later({}, "/nowhere/late", frozenset(), {"_struct": "/nowhere/_struct.so"})
    assert later.find_spec("_struct") is None


def test_a_command_looks_for_no_garbage(launcher: Path, tmp_path: Path) -> None:
    """Debugging tells of each collection."""
    script = tmp_path / "telling"
    script.write_text("import gc\ngc.set_debug(gc.DEBUG_STATS)\n" + launcher.read_text().partition("\n")[2])
    done = run(python(launcher), "-IS", script, "features")
    assert "ociVersionMax" in done.stdout and "gc:" not in done.stderr
    kept = script.read_text().replace("gc.disable()", "gc.set_threshold(100)")
    script.write_text(kept)
    assert "gc: collecting" in run(python(launcher), "-IS", script, "features").stderr


def test_all_commands_find_what_they_import_late(launcher: Path, tmp_path: Path) -> None:
    assert "ociVersionMax" in run(launcher, "features").stdout
    assert run(launcher, "spec", "--bundle", tmp_path).returncode == 0
    assert run(launcher, "exec", "nobody", "true").returncode == 255
    assert run(launcher, "bogus").returncode == 1


@pytest.mark.parametrize("spoilt", ["gone", "another interpreter's", "stale"])
def test_without_its_code_it_imports_as_any_program(tmp_path: Path, spoilt: str) -> None:
    launcher, code = written(tmp_path), tmp_path / "code"
    if spoilt == "gone":
        code.unlink()
    elif spoilt == "stale":
        magic, rest = code.read_bytes()[:4], marshal.loads(code.read_bytes()[4:])
        boot, eager, *parts = rest
        name, path, time, *others = eager[5]
        changed = (*eager[:5], (name, path, time + 1, *others), *eager[6:])
        code.write_bytes(magic + marshal.dumps((boot, changed, *parts)))
    else:
        code.write_bytes(b"\0\0\r\n" + code.read_bytes()[4:])
    assert "runtime.oci_cli" in imported(launcher)
    assert run(launcher, "--version").stdout.startswith("kubelet-py-oci version")


@pytest.mark.parametrize("spoilt", ["", "gone", "another interpreter's", "stale"])
def test_without_the_late_code_a_late_module_is_imported_as_any(tmp_path: Path, spoilt: str) -> None:
    launcher, code = written(tmp_path), tmp_path / "code.late"
    if spoilt == "gone":
        code.unlink()
    elif spoilt == "stale":
        modules = marshal.loads(code.read_bytes()[4:])
        name, path, time, *others = modules["runtime.oci_documents"]
        modules[name] = (name, path, time + 1, *others)
        code.write_bytes(code.read_bytes()[:4] + marshal.dumps(modules))
    elif spoilt:
        code.write_bytes(b"\0\0\r\n" + code.read_bytes()[4:])
    done = run(python(launcher), "-ISvv", launcher, "features")
    assert done.returncode == 0 and "ociVersionMax" in done.stdout, done.stderr
    tried = [line for line in done.stderr.splitlines() if line.startswith("# trying")]
    assert any("oci_documents" in line for line in tried) == bool(spoilt)


def test_what_each_start_imports_late_is_in_the_first_file(launcher: Path) -> None:
    _, eager, beside, late, lazy, _ = marshal.loads(launcher.with_name("code").read_bytes()[4:])
    names = {entry[0] for entry in eager} | beside.keys()
    assert late == str(launcher.with_name("code.late")) and not names & lazy
    assert type(cgroups.detect()).__module__ in names and "runtime.spec_resources" in names


MAGIC = importlib.util.MAGIC_NUMBER.hex()


@pytest.mark.parametrize(
    ("own", "system", "taken"),
    [
        (f"{MAGIC} True", f"{MAGIC} False", "system"),
        (f"{MAGIC} False", f"{MAGIC} False", "own"),  # it starts as soon
        (f"{MAGIC} True", f"{MAGIC} True", "own"),
        (f"{MAGIC} True", "00000d0a False", "own"),  # another version
        (f"{MAGIC} True", "", "own"),
        (f"{MAGIC} True", None, "own"),  # there is none
    ],
)
def test_the_systems_python_is_taken_where_it_starts_sooner(
    tmp_path: Path, own: str, system: str | None, taken: str
) -> None:
    for name, told in (("own", own), ("system", system)):
        if told is not None:
            (tmp_path / name).write_text(f"#!/bin/sh\necho {told}\n")
            (tmp_path / name).chmod(0o755)
    chosen = oci_launcher.interpreter(f"{tmp_path}/own", f"{tmp_path}/system")
    assert chosen == f"{tmp_path}/{taken}"


def test_what_cannot_be_packed_is_told(tmp_path: Path) -> None:
    (tmp_path / "code.late").mkdir()
    with pytest.raises(RuntimeFailure, match=r"Could not write .*kubelet-py-oci: .*code\.late"):
        oci_launcher.write(tmp_path / "kubelet-py-oci", tmp_path / "code")
    assert [path.name for path in tmp_path.iterdir()] == ["code.late"]


def test_its_code_keeps_the_lines_for_tracebacks(launcher: Path) -> None:
    code = marshal.loads(launcher.with_name("code").read_bytes()[4:])[0]
    assert {line for _, _, line in code.co_lines() if line}
    assert all(place[2:] == (None, None) for place in code.co_positions())


def test_neither_environment_nor_folder_decides_what_is_imported(launcher: Path, tmp_path: Path) -> None:
    (tmp_path / "ctypes.py").write_text("raise SystemExit('imported')\n")
    done = subprocess.run(
        [launcher, "--version"], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_each_module_comes_after_what_it_imports(tmp_path: Path) -> None:
    eager: list[str] = []
    beside: set[str] = set()
    oci_launcher._order("runtime.oci_cli", (), eager, beside)
    assert eager[0] == "runtime" and eager[-1] == "runtime.oci_cli"
    assert eager.index("runtime.cgroups.files") < eager.index("runtime.cgroups")
    assert "struct" in beside
    assert not {"json", "re", "argparse", "signal", "collections", "ctypes"} & beside
