"""The documents name files that are there, and the dependencies that pyproject lists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conformance_titles import HEADER

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LIST = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
FILES = subprocess.run(LIST, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text()
    named = set(re.findall(r"`([a-z_0-9/]+\.py)`", text))
    missing = {name for name in named if not any(f"/{found}".endswith(f"/{name}") for found in FILES)}
    folders = set(re.findall(r"`((?:tests|docs|hack|examples|controlplane)/[a-z_0-9/]+)`", text))
    missing |= {name for name in folders if not (ROOT / name).exists()}
    assert missing == set()


@pytest.mark.parametrize("document", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_the_page_of_dependencies_lists_what_is_installed_and_nothing_else() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = {tuple(requirement.split(">=")) for requirement in listed}
    page = (ROOT / "docs/dependencies.md").read_text()
    assert set(re.findall(r"^\| ([\w.-]+) \| ([\d.]+):", page, re.MULTILINE)) == wanted


def test_every_test_that_the_conformance_page_names_is_there() -> None:
    page = (ROOT / "docs/conformance.md").read_text()
    rows = re.findall(r"^\| .* \| `(tests/\S+\.py)`: (\w+) \|$", page, re.M)
    assert len(rows) > 100
    assert [row for row in rows if f"def {row[1]}(" not in (ROOT / row[0]).read_text()] == []


def test_the_conformance_page_and_the_tests_markers_say_the_same() -> None:
    for module in ("kubernetes", "websocket"):
        pytest.importorskip(module, reason=f"without {module} some of the marked tests are not collected")
    plugin = ["-p", "conformance_titles", "--collect-only", "-q"]
    command = [sys.executable, "-m", "pytest", *plugin, "tests/e2e"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (line,) = [text for text in done.stdout.splitlines() if text.startswith(HEADER)]
    marked = {tuple(row) for row in json.loads(line.removeprefix(HEADER))}
    sections = re.split(r"^## ", (ROOT / "docs/conformance.md").read_text(), flags=re.M)
    listed = set()
    for section in sections:
        area = re.match(r".*\((sig-\w+)\)$", section.partition("\n")[0])
        if area:
            rows = re.findall(r"^\| (.*) \| `(tests/\S+\.py)`: (\w+) \|$", section, re.M)
            listed |= {(f"[{area[1]}] {title}", file, name) for title, file, name in rows}
    assert listed == marked


def test_every_room_has_a_page() -> None:
    pages = {path.stem for path in (ROOT / "docs/rooms").glob("*.md")}
    assert pages == {"kubeclient", "runtime", "cni", "proxy", "kubelet", "controlplane"}
