"""The executable that hack/quickstart installs: its own importing, and what happens when that is stale."""

from __future__ import annotations

import marshal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import cgroups, oci_boot, oci_launcher


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    path = tmp_path / "kubelet-py-oci"
    oci_launcher.write(path, tmp_path / "code")
    return path


def run(*argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", **environment}
    )


def imported(launcher: Path) -> list[str]:
    """Modules that this start has read from the package's files one by one."""
    done = run(sys.executable, "-ISv", launcher, "--version")
    assert done.returncode == 0, done.stderr
    return [line.split("'")[1] for line in done.stderr.splitlines() if line.startswith("import 'runtime")]


def test_it_reads_no_module_of_ours_by_itself(launcher: Path) -> None:
    assert imported(launcher) == []
    assert run(launcher, "--version").stdout.startswith("kubelet-py-oci version")


def test_started_by_its_first_line_it_is_not_taken_for_an_archive(launcher: Path, tmp_path: Path) -> None:
    first = launcher.read_text().splitlines()[0]
    assert len(first) <= oci_launcher.LONGEST_FIRST_LINE
    if oci_launcher.DIRECT not in first:
        pytest.skip("the path of this Python leaves no room in a first line")
    for name, options in (("direct", oci_launcher.DIRECT), ("plain", "")):
        script = tmp_path / name
        script.write_text(f"#!{sys.executable} -IS{options}\nimport sys\nprint(sys.argv[1:], __name__)\n")
        script.chmod(0o755)
    assert run(tmp_path / "direct", "a b", "-x").stdout == run(tmp_path / "plain", "a b", "-x").stdout
    assert run(launcher, "--version").stdout == run(sys.executable, "-IS", launcher, "--version").stdout


def test_extension_modules_are_loaded_without_a_search(launcher: Path) -> None:
    """A finder that lists folders is asked for none of them; where a file has gone, it is."""
    done = run(sys.executable, "-ISvv", launcher, "--version")
    tried = [line for line in done.stderr.splitlines() if line.startswith("# trying")]
    wanted = ("_ctypes", "_struct", "_json")
    external = [n for n in wanted if n not in sys.builtin_module_names]
    assert not [line for line in tried for name in external if f"/{name}." in line], tried


def test_a_missing_extension_file_is_searched_for() -> None:
    later = oci_boot.Later({}, "/nowhere/late", frozenset(), {"_struct": "/nowhere/_struct.so"})
    assert later.find_spec("_struct") is None


def test_all_commands_find_what_they_import_late(launcher: Path, tmp_path: Path) -> None:
    assert "ociVersionMax" in run(launcher, "features").stdout
    assert run(launcher, "spec", "--bundle", tmp_path).returncode == 0
    assert run(launcher, "exec", "nobody", "true").returncode == 255
    assert run(launcher, "bogus").returncode == 1


@pytest.mark.parametrize("spoilt", ["gone", "another interpreter's", "stale"])
def test_without_its_code_it_imports_as_any_program(launcher: Path, tmp_path: Path, spoilt: str) -> None:
    code = tmp_path / "code"
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
def test_without_the_late_code_a_late_module_is_imported_as_any(
    launcher: Path, tmp_path: Path, spoilt: str
) -> None:
    code = tmp_path / "code.late"
    if spoilt == "gone":
        code.unlink()
    elif spoilt == "stale":
        modules = marshal.loads(code.read_bytes()[4:])
        name, path, time, *others = modules["runtime.oci_documents"]
        modules[name] = (name, path, time + 1, *others)
        code.write_bytes(code.read_bytes()[:4] + marshal.dumps(modules))
    elif spoilt:
        code.write_bytes(b"\0\0\r\n" + code.read_bytes()[4:])
    done = run(sys.executable, "-ISvv", launcher, "features")
    assert done.returncode == 0 and "ociVersionMax" in done.stdout, done.stderr
    tried = [line for line in done.stderr.splitlines() if line.startswith("# trying")]
    assert any("oci_documents" in line for line in tried) == bool(spoilt)


def test_what_each_start_imports_late_is_in_the_first_file(launcher: Path, tmp_path: Path) -> None:
    _, eager, beside, late, lazy, _ = marshal.loads((tmp_path / "code").read_bytes()[4:])
    names = {entry[0] for entry in eager} | beside.keys()
    assert late == str(tmp_path / "code.late") and not names & lazy
    assert type(cgroups.detect()).__module__ in names and "runtime.spec_resources" in names


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
