"""Removing trees of any depth: runtime/removal.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.removal import remove_tree

DEEPEST = 5000  # a path of 10,000 bytes, too


def nest(folder: Path, depth: int) -> None:
    held = os.open(folder, os.O_RDONLY)
    for level in range(depth):
        os.mkdir("d", dir_fd=held)
        if level % 500 == 0:
            os.close(os.open("file", os.O_CREAT, dir_fd=held))
        inner = os.open("d", os.O_RDONLY, dir_fd=held)
        os.close(held)
        held = inner
    os.close(held)


def test_a_tree_deeper_than_the_stack_is_removed(tmp_path: Path) -> None:
    (tmp_path / "tree/beside/it").mkdir(parents=True)
    nest(tmp_path / "tree", DEEPEST)
    nest(tmp_path / "tree/beside", 40)
    remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_a_tree_is_removed_below_a_descriptor(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    nest(tmp_path / "tree", 100)
    held = os.open(tmp_path, os.O_RDONLY)
    try:
        remove_tree("tree", dir_fd=held)
    finally:
        os.close(held)
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to(tmp_path / "kept")
    (tmp_path / "tree/dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "tree/fifo")
    remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "file"]
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(OSError):
        remove_tree(tmp_path / "link")
    assert (tmp_path / "kept/file").exists()


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        remove_tree(tmp_path / "tree")
