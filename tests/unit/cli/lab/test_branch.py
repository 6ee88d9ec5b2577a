from __future__ import annotations

import threading
from pathlib import Path

from kubelet_py.cli.lab.branch import Branch, hierarchies

HYBRID = """\
30 24 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
31 24 0:27 / /sys/fs/cgroup/net_cls,net_prio rw,relatime shared:9 - cgroup cgroup rw,net_cls,net_prio
32 24 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
33 24 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
34 24 0:26 /docker /elsewhere/cpu rw,relatime - cgroup cgroup rw,cpu
"""


def test_a_hybrid_host_has_a_v2_tree_and_each_v1_hierarchy_once() -> None:
    unified, others = hierarchies(HYBRID)
    assert unified == "/sys/fs/cgroup/unified"
    assert others == {
        "cpu": "/sys/fs/cgroup/cpu",
        "net_cls,net_prio": "/sys/fs/cgroup/net_cls,net_prio",
        "name=systemd": "/sys/fs/cgroup/systemd",
    }


def test_a_pure_v2_host_has_one() -> None:
    line = "29 23 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    assert hierarchies(line) == ("/sys/fs/cgroup", {})


def test_a_machine_is_gone_when_nothing_of_it_is_counted_any_more(tmp_path: Path) -> None:
    """A process that is ending is listed no more, and still holds its folder."""
    folder = tmp_path / "lab/node1"
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").write_text("")
    (folder / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    branch = Branch("lab", str(tmp_path), ())
    waiter = threading.Thread(target=branch.wait_empty, args=("node1",))
    waiter.start()
    waiter.join(0.1)
    assert waiter.is_alive()
    (folder / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    waiter.join(10)
    assert not waiter.is_alive()
    branch.wait_empty("node2")  # which is not there
