from __future__ import annotations

import os
from pathlib import Path

import pytest

from kubelet_py.cli.inspect import _processes, limits, pod_of, service_rules, warn_of_elsewhere
from kubelet_py.cli.settings import NodeSettings
from kubelet_py.paths import NodePaths

SAVED = """*nat
:KUBE-SVC-AAAA - [0:0]
[5:300] -A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "default/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-AAAA
[0:0] -A KUBE-SERVICES -d 10.96.0.8/32 -p tcp -m comment --comment "default/webb:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-BBBB
[5:300] -A KUBE-SVC-AAAA -j KUBE-SEP-CCCC
[5:300] -A KUBE-SEP-CCCC -p tcp -j DNAT --to-destination 10.244.0.2:8080
[0:0] -A KUBE-SVC-BBBB -j KUBE-SEP-DDDD
COMMIT
"""  # noqa: E501


def test_rules_of_one_service_and_of_the_chains_they_reach_but_no_others() -> None:
    chosen = service_rules(SAVED, "default/web")
    assert [line.split()[2] for line in chosen] == ["KUBE-SERVICES", "KUBE-SVC-AAAA", "KUBE-SEP-CCCC"]
    assert "10.96.0.9/32" in chosen[0]


@pytest.mark.parametrize(
    ("cgroup", "found"),
    [
        ("0::/kubelet-py/kubepods/burstable/pod0123-{}/ab12", ("0123-{}", "ab12")),
        ("0::/kubelet-py/kubepods/pod0123-{}", ("0123-{}", "")),
        ("0::/kubelet_py.slice/kubelet_py-kubepods.slice/kubelet_py-kubepods-besteffort.slice/"
         "kubelet_py-kubepods-besteffort-pod0123_{}.slice/kubelet-py-77.scope/ab12", ("0123-{}", "ab12")),
        ("0::/kubelet_py.slice/kubelet_py-kubepods.slice/kubelet_py-kubepods-pod0123_{}.slice/"
         "kubelet-py-77.scope", ("0123-{}", "")),
        ("0::/kubepods.slice/kubepods-pod0123_{}.slice/x.scope/ab", ("", "")),
        ("0::/user.slice/session-1.scope", ("", "")),
    ],
)  # fmt: skip
def test_a_process_is_told_by_its_cgroup_whichever_driver_made_it(
    cgroup: str, found: tuple[str, str]
) -> None:
    rest = "0" * 31
    assert pod_of(NodePaths(Path("/")), cgroup.format(rest)) == (found[0].format(rest), found[1])


@pytest.mark.parametrize(("node", "warned"), [("other", True), ("mine", False), ("", False)])
def test_a_pod_of_another_node_is_told_where_to_look(
    node: str, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    NodeSettings("mine", "192.0.2.5").save(NodePaths(tmp_path))
    warn_of_elsewhere(NodePaths(tmp_path), {"spec": {"nodeName": node} if node else {}})
    assert ("the pod is on node other, this is mine" in capsys.readouterr().err) == warned


def test_a_cgroup_that_goes_while_the_pod_is_looked_at_holds_nothing(tmp_path: Path) -> None:
    """A probe's, for one: listed, and not there any more when it is read (here: a folder instead)."""
    for name in ("main", "exec-1"):
        (tmp_path / name).mkdir()
    for file, text in (("cgroup.procs", f"{os.getpid()}\n"), ("pids.max", "9\n")):
        (tmp_path / "main" / file).write_text(text)
        (tmp_path / "exec-1" / file).mkdir()
    assert [(seen["pid"], seen["folder"]) for seen in _processes([tmp_path])] == [(os.getpid(), "main")]
    assert limits([tmp_path]) == {"main": {"pids.max": "9"}}
