"""AppArmor in the kernel: containers and execs of kubelet-py-oci under a profile, and under none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle import Bundle

pytestmark = pytest.mark.privileged

PARSER = shutil.which("apparmor_parser", path="/usr/sbin:/sbin")
LISTED = Path("/sys/kernel/security/apparmor/profiles")
NAME = f"kubelet-py-test-{os.getpid()}"
TEXT = f"""
profile {NAME} flags=(attach_disconnected, mediate_deleted) {{
  capability,
  file,
  signal,
  deny /denied w,
}}
"""
CURRENT = "cat /proc/self/attr/current"
WRITES = f"{CURRENT}; echo a >/allowed && echo allowed; echo a >/denied || echo refused"


@pytest.fixture(scope="module")
def profile() -> Iterator[str]:
    if PARSER is None or not LISTED.exists():
        pytest.skip("a kernel with AppArmor, or apparmor_parser, is missing (sudo ./hack/test --vm)")
    subprocess.run([PARSER, "--replace", "--skip-cache"], input=TEXT, text=True, check=True)
    yield NAME
    subprocess.run([PARSER, "--remove"], input=TEXT, text=True, check=True)


def confine(bundle: Bundle, profile: str) -> None:
    bundle.change(lambda config: config["process"].update(apparmorProfile=profile))


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_a_container_is_confined_by_its_profile(
    bundle: Bundle, profile: str, no_new_privileges: bool
) -> None:
    confine(bundle, profile)
    bundle.change(lambda config: config["process"].update(noNewPrivileges=no_new_privileges))
    done = bundle.run(WRITES)
    assert done.stdout == f"{profile} (enforce)\nallowed\nrefused\n", done.stderr
    assert "Permission denied" in done.stderr


def test_without_a_profile_it_is_unconfined(bundle: Bundle, profile: str) -> None:
    for text in ("", "unconfined"):
        confine(bundle, text)
        done = bundle.run(WRITES)
        assert done.stdout == "unconfined\nallowed\n", done.stderr
        bundle("delete", "--force", bundle.identity)


def test_an_exec_is_confined_as_its_container_unless_another_profile_is_asked_for(
    bundle: Bundle, profile: str
) -> None:
    confine(bundle, profile)
    bundle.args("sleep", "1000")
    assert bundle.create().returncode == 0, bundle.output()
    assert bundle("start", bundle.identity).returncode == 0
    done = bundle("exec", bundle.identity, "sh", "-c", WRITES)
    assert done.stdout == f"{profile} (enforce)\nallowed\nrefused\n", done.stderr
    free = bundle("exec", "--apparmor", "unconfined", bundle.identity, "sh", "-c", CURRENT)
    assert free.stdout == "unconfined\n", free.stderr
    missing = bundle("exec", "--apparmor", "kubelet-py-nowhere", bundle.identity, "sh", "-c", CURRENT)
    assert missing.returncode != 0 and "kubelet-py-nowhere: ENOENT" in missing.stderr


def test_a_profile_that_is_not_loaded_starts_nothing(bundle: Bundle, profile: str) -> None:
    confine(bundle, "kubelet-py-nowhere")
    done = bundle.run("echo ran")
    assert (done.stdout, done.returncode != 0) == ("", True)
    assert "Could not set the apparmor label kubelet-py-nowhere: ENOENT" in done.stderr
