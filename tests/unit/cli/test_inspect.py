from __future__ import annotations

from kubelet_py.cli.inspect import service_rules

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
