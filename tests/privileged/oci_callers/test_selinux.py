"""SELinux in the kernel: labels of a container's process, of its execs and of its mounts."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle import Bundle

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(
        not Path("/sys/fs/selinux/status").exists(),
        reason="a kernel that runs SELinux is missing (VM_KERNEL=security=selinux sudo -E ./hack/vm/run)",
    ),
]

# Debian's policy knows no containers, but what libvirt runs; that of other distributions knows both.
PROCESS = "system_u:system_r:svirt_t:s0:c1,c2"
FILES = "system_u:object_r:svirt_image_t:s0:c1,c2"
CURRENT = "cat /proc/self/attr/current"


def text(output: str) -> str:
    """The kernel ends the label with a zero byte."""
    return output.rstrip("\0\n")


def label(bundle: Bundle) -> None:
    bundle.change(lambda config: config["process"].update(selinuxLabel=PROCESS))


def test_a_container_and_its_execs_have_the_label(bundle: Bundle) -> None:
    label(bundle)
    done = bundle.run(CURRENT)
    assert text(done.stdout) == PROCESS, done.stderr
    bundle("delete", "--force", bundle.identity)
    bundle.args("sleep", "1000")
    assert bundle.create().returncode == 0, bundle.output()
    assert bundle("start", bundle.identity).returncode == 0
    done = bundle("exec", bundle.identity, "sh", "-c", CURRENT)
    assert text(done.stdout) == PROCESS, done.stderr
    other = PROCESS.replace("c1,c2", "c3,c4")
    done = bundle("exec", "--process-label", other, bundle.identity, "sh", "-c", CURRENT)
    assert text(done.stdout) == other, done.stderr


def test_its_mounts_have_the_mount_label(bundle: Bundle) -> None:
    label(bundle)
    bundle.change(lambda config: config["linux"].update(mountLabel=FILES))
    bundle.mount(destination="/mnt", type="tmpfs", source="tmpfs")
    done = bundle.run("grep ' /mnt ' /proc/self/mountinfo")
    assert FILES in done.stdout, done.stderr


def test_a_label_that_the_policy_does_not_know_starts_nothing(bundle: Bundle) -> None:
    bundle.change(lambda config: config["process"].update(selinuxLabel="nobody:nothing:nowhere_t:s0"))
    done = bundle.run("echo ran")
    assert (done.stdout, done.returncode != 0) == ("", True)
    assert "Could not set the selinux label nobody:nothing:nowhere_t:s0: EINVAL" in done.stderr
