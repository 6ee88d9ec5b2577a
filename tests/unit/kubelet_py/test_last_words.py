"""What a container leaves behind as its termination message."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from pods_in_words import NOW, down, pod, up, view

from kubelet_py.pods import last_words
from kubelet_py.pods.model import ANNOTATION_MESSAGE_FILE, ANNOTATION_MESSAGE_POLICY
from kubelet_py.pods.status import MESSAGES_BYTES, Situation, generate
from runtime.service import Container, ContainerConfig

LOG = "2026-01-01T00:00:00.000000000Z stderr"


@pytest.fixture
def ended(tmp_path: Path) -> Container:
    """Exited with 1, an empty message file, a log of one line, the policy File."""
    file, log = tmp_path / "0.message", tmp_path / "0.log"
    file.touch()
    log.write_text(f"{LOG} F the log\n")
    config = ContainerConfig(
        "c", 0, "i", "i@x", {}, (), log_path=str(log), annotations={ANNOTATION_MESSAGE_FILE: str(file)}
    )
    return Container(
        id="x", sandbox_id="s", config=config, state="EXITED", pid=1, created_at=NOW, started_at=NOW,
        finished_at=NOW, exit_code=1, reason="Error", message="",
    )  # fmt: skip


def falling_back(container: Container, code: int = 1) -> Container:
    annotations = container.config.annotations | {ANNOTATION_MESSAGE_POLICY: "FallbackToLogsOnError"}
    return replace(container, config=replace(container.config, annotations=annotations), exit_code=code)


def write(container: Container, text: str) -> None:
    Path(container.config.annotations[ANNOTATION_MESSAGE_FILE]).write_text(text)


def test_the_log_counts_only_after_a_failure_with_no_message_of_its_own(ended: Container) -> None:
    assert last_words.of(ended) == ""
    assert last_words.of(falling_back(ended)) == "the log\n"
    assert last_words.of(falling_back(ended, 0)) == ""
    write(ended, "DONE")
    assert last_words.of(ended) == last_words.of(falling_back(ended)) == "DONE"


def test_the_end_of_a_long_message_is_kept_and_the_runtimes_own_stands_before_it(ended: Container) -> None:
    write(ended, "a" * 9000 + "end")
    assert last_words.of(ended) == "a" * 4093 + "end"
    write(ended, "bye")
    assert last_words.of(replace(ended, message="could not start")) == "could not start: bye"


def test_the_end_of_the_log_is_at_most_80_lines_and_2048_bytes() -> None:
    lines = "".join(f"{LOG} F line {n}\n" for n in range(100))
    assert last_words.log_end(lines) == "".join(f"line {n}\n" for n in range(20, 100))
    assert last_words.log_end(f"{LOG} F {'x' * 5000}\n") == "x" * 2047 + "\n"
    assert last_words.log_end(f"{LOG} P one \n{LOG} F line\n") == "one line\n"


def test_a_link_to_another_file_is_not_followed_and_a_fifo_not_waited_for(
    ended: Container, tmp_path: Path
) -> None:
    file = Path(ended.config.annotations[ANNOTATION_MESSAGE_FILE])
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    file.unlink()
    file.symlink_to(secret)
    assert last_words.of(ended) == ""
    file.unlink()
    os.mkfifo(file)
    assert last_words.of(ended) == ""


@pytest.mark.parametrize(("containers", "bytes_each"), [(1, 4096), (3, 4096), (6, 2048), (12, 1024)])
def test_a_pods_containers_share_twelve_kibibytes(containers: int, bytes_each: int) -> None:
    names = [f"c{index}" for index in range(containers)]
    message = "é" * 2048
    holds = view(*(up(name, 1) for name in names), *(down(name, 1, message=message) for name in names))
    answer = generate(pod(*names), holds, Situation(NOW))
    kept = [entry["lastState"]["terminated"]["message"] for entry in answer["containerStatuses"]]
    assert {len(text.encode()) for text in kept} == {bytes_each}
    assert sum(len(text.encode()) for text in kept) <= MESSAGES_BYTES


def test_only_a_newline_ends_a_line_of_the_log() -> None:
    text = f"{LOG} F 10%\r100%\n{LOG} F page\x0cfeed\u2028\n{LOG} P cut \n{LOG} F here\r\n"
    assert last_words.log_end(text) == "10%\r100%\npage\x0cfeed\u2028\ncut here\r\n"
