from __future__ import annotations

from kubelet_py.cli.lab.branch import hierarchies

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
