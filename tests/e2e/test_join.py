"""A second machine becomes a node by one command, and is as before after another."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_node import NODE_IP, Done, Node, has_kubectl, need_kubectl, pod
from second_node import SECOND_IP, SecondNode, second_machine

from kubelet_py.cli.token import ca_hash
from kubelet_py.node.certificate_store import read_pair
from kubelet_py.paths import NodePaths

pytestmark = pytest.mark.e2e

SERVER = f"https://{NODE_IP}:6443"


@pytest.fixture(scope="module")
def machine(node: Node) -> Iterator[SecondNode]:
    """The second machine, with an image, not joined. What it leaves the first node's fixture would see."""
    root = Path(tempfile.mkdtemp(prefix="kpy-", dir="/tmp"))
    with second_machine(root) as found:
        found.import_busybox()
        yield found
        if (root / "etc/kubelet-py/node.json").exists():
            found.cli("leave", check=False)
    shutil.rmtree(root)


def token(node: Node, *options: str) -> str:
    return node.cli("token", "create", *options).out.strip()


def pin(node: Node) -> str:
    return ca_hash((node.root / "etc/kubelet-py/pki/ca.crt").read_bytes())


def join(machine: SecondNode, **options: str) -> Done:
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return machine.cli("join", "--node-name=n2", *argv, check=False)


WRONG = "sha256:" + "0" * 64


def test_a_wrong_join_says_what_is_wrong_and_makes_nothing(node: Node, machine: SecondNode) -> None:
    good, hashed = token(node), pin(node)
    signing = token(node, "--usages", "signing")
    right = {"server": SERVER, "token": good, "discovery_token_ca_cert_hash": hashed}
    taken = node.kubectl("get", "nodes", "-o", "name").out.strip().removeprefix("node/")
    # The controller signs cluster-info for the new tokens first.
    node.until(
        "signed", lambda: signing[:6] in node.kubectl("get", "cm", "-n", "kube-public", "-o", "json").out
    )
    cases: list[tuple[dict[str, str], str]] = [
        ({"discovery_token_ca_cert_hash": WRONG}, f"is {hashed}, not {WRONG}"),
        ({"token": "nobody.0123456789abcdef"}, "does not know the token nobody, or it has expired"),
        ({"token": signing}, "does not let the token"),
        ({"server": "https://198.51.101.10:1"}, "Could not connect to 198.51.101.10:1: Connection refused"),
        ({"server": "https://198.51.101.10:6443"}, "its certificate does not name 198.51.101.10"),
        ({"node_name": taken}, f"There is a node {taken} already, and it is Ready"),
    ]
    for change, text in cases:
        done = join(machine, **{**right, **change})
        assert (done.code, text in done.err) == (1, True), (change, done)
        assert "Traceback" not in done.err and len(done.err.splitlines()) == 1
    assert not (machine.root / "etc/kubelet-py").exists()
    assert not (machine.root / "run/kubelet-py/supervisor.json").exists()
    assert machine.cli("leave", check=False).code == 1


def test_an_address_that_all_machines_or_another_node_have_is_refused(
    node: Node, machine: SecondNode
) -> None:
    argv = (
        f"--server={SERVER}",
        f"--token={token(node)}",
        f"--discovery-token-ca-cert-hash={pin(node)}",
        "--node-name=n2",
        "--timeout=110",
    )
    better = f"give --node-ip {SECOND_IP} or --node-interface up3"
    machine.outside_run("ip", "addr", "add", "10.0.2.15/24", "dev", "up3")
    done = machine.cli("join", *argv, "--node-ip=10.0.2.15", check=False)
    machine.outside_run("ip", "addr", "del", "10.0.2.15/24", "dev", "up3")
    assert done.code == 1 and "10.0.2.15 (up3) is what VirtualBox" in done.err and better in done.err
    # Nobody asked for it, but the default route leads that way, as on a machine of VirtualBox.
    before = machine.outside_run("ip", "route", "show", "default").out.split()
    machine.outside_run("ip", "route", "add", NODE_IP, *before[1:])
    for words in (
        "link add nat0 type veth peer name nat1",
        "link set nat1 up",
        "link set nat0 up",
        "addr add 10.0.2.15/24 dev nat0",
        "route replace default via 10.0.2.2 dev nat0",
    ):
        machine.outside_run("ip", *words.split())
    done = machine.cli("join", *argv, check=False)
    machine.outside_run("ip", "link", "del", "nat0")
    machine.outside_run("ip", "route", "replace", *before)
    machine.outside_run("ip", "route", "del", NODE_IP)
    assert done.code == 1 and "10.0.2.15 (nat0) is what VirtualBox" in done.err and better in done.err
    ghost = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost"}}
    addresses = [{"type": "InternalIP", "address": SECOND_IP}]
    node.apply({**ghost, "status": {"addresses": addresses}})
    assert node.get("node", "ghost")["status"]["addresses"] == addresses
    done = machine.cli("join", *argv, check=False)
    assert done.code == 1 and f"{SECOND_IP} (up3) is announced by node ghost already" in done.err
    assert "kubectl delete node ghost" in done.err and len(done.err.splitlines()) == 1
    node.kubectl("delete", "node", "ghost")
    assert node.kubectl("get", "node", "n2", check=False).code == 1
    assert not (machine.root / "etc/kubelet-py").exists()
    assert not (machine.root / "run/kubelet-py").exists()
    assert "KUBE-" not in machine.outside_run("iptables-save").out


@pytest.fixture(scope="module")
def joined(node: Node, machine: SecondNode) -> SecondNode:
    """Joined by the very command that the control plane printed, typed again by one who lost patience."""
    command = shlex.split(token(node, "--ttl", "1h", "--description", "for n2", "--print-join-command"))
    assert command[:2] == ["kubelet-py", "join"]
    argv = (*command[1:], "--node-name", "n2", "--node-interface", "up3")
    done = machine.cli(*argv, "--timeout", "0", check=False)
    assert done.code == 1 and "it goes on trying: kubelet-py status --root" in done.err
    node.until("it did go on", (machine.root / "etc/kubelet-py/kubelet.conf").exists)
    token_file = machine.root / "etc/kubelet-py/bootstrap-kubelet.conf"
    assert token_file.exists()
    done = machine.cli(*argv)
    assert "Node n2 is Ready after" in done.out, done
    assert not token_file.exists()
    again = machine.cli(*argv, check=False)
    assert again.code == 1 and "This machine is node n2 of" in again.err
    return machine


def test_a_joined_node_has_its_own_range_and_runs_pods(node: Node, joined: SecondNode) -> None:
    nodes = node.kubectl("get", "nodes", "-o", "json").json()["items"]
    ranges = {found["metadata"]["name"]: found["spec"]["podCIDR"] for found in nodes}
    assert len(ranges) == 2 and len(set(ranges.values())) == 2
    second = node.get("node", "n2")
    assert {"type": "InternalIP", "address": SECOND_IP} in second["status"]["addresses"]
    node.apply(
        pod("there", "echo hello from $(hostname); sleep 3600", nodeSelector={"kubernetes.io/hostname": "n2"})
    )
    node.wait_running("there")
    address = node.get("pod", "there")["status"]["podIP"]
    assert address.startswith(ranges["n2"].rpartition(".")[0])
    # The API server trusts port 10250 by the certificate that was signed upon request.
    node.until("logs", lambda: node.kubectl("logs", "there", check=False).out == "hello from there\n")
    assert node.kubectl("exec", "there", "--", "hostname").out == "there\n"
    spread = [pod(f"spread-{number}", labels={"app": "spread"}) for number in range(4)]
    node.apply(*spread)
    node.wait_running(*(each["metadata"]["name"] for each in spread))
    found = node.kubectl("get", "pods", "-l", "app=spread", "-o", "json").json()["items"]
    assert "n2" in {each["spec"]["nodeName"] for each in found}


def test_what_joining_leaves_on_the_disk(node: Node, joined: SecondNode) -> None:
    config, pki = joined.root / "etc/kubelet-py", joined.root / "var/lib/kubelet-py/pki"
    assert not (config / "bootstrap-kubelet.conf").exists(), "the token does not stay"
    assert not (config / "admin.conf").exists() and not (config / "pki/ca.key").exists()
    for name in ("kubelet-client", "kubelet-server"):
        link = pki / f"{name}-current.pem"
        node.until(name, link.is_symlink)
        pair = read_pair(link)
        assert pair is not None and pair.certificate.common_name == "system:node:n2"
        assert link.resolve().stat().st_mode & 0o777 == 0o600
    document = json.loads((config / "kubelet.conf").read_text())
    assert document["users"][0]["user"]["client-certificate"] == str(pki / "kubelet-client-current.pem")
    rows = [row.split() for row in node.kubectl("get", "csr", "--no-headers").out.splitlines()]
    mine = {row[2].rpartition("/")[2]: row[-1] for row in rows if row[0].startswith("node-csr-")}
    assert mine == {"kube-apiserver-client-kubelet": "Approved,Issued", "kubelet-serving": "Approved,Issued"}
    status = joined.cli("status")
    assert status.code == 0
    assert f"{SECOND_IP} on up3: its interface was asked for (--node-interface up3)" in status.out
    assert (
        f"address={SECOND_IP} interface=up3 reason=its"
        in (joined.root / "var/log/kubelet-py/agent.log").read_text()
    )
    again = joined.cli("join", "--server", SERVER, "--token", "abcdef.0123456789abcdef",
                       "--discovery-token-ca-cert-hash", WRONG, check=False)  # fmt: skip
    assert again.code == 1 and f"node n2 of {SERVER} already" in again.err


def ask(node: Node, path: str, token: str = "") -> tuple[int, str]:
    """GET on the second node's port 10250, whose certificate has to name its address."""
    tls = ssl.create_default_context(cafile=str(node.root / "etc/kubelet-py/pki/ca.crt"))
    connection = http.client.HTTPSConnection(SECOND_IP, 10250, context=tls, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_port_10250_takes_bearer_tokens_and_asks_whether_they_may(node: Node, joined: SecondNode) -> None:
    need_kubectl("1.24", "create token")
    account = node.kubectl("create", "token", "default").out.strip()
    assert ask(node, "/metrics") == (401, "Unauthorized")
    assert ask(node, "/metrics", "nonsense") == (401, "Unauthorized")
    code, text = ask(node, "/metrics", account)
    who = "user=system:serviceaccount:default:default"
    assert (code, text) == (403, f"Forbidden ({who}, verb=get, resource=nodes, subresource(s)=[metrics])")
    role = ("clusterrole", "see", "--verb=get", "--resource=nodes/metrics,nodes/pods")
    node.kubectl("create", *role)
    node.kubectl(
        "create", "clusterrolebinding", "see", "--clusterrole=see", "--serviceaccount=default:default"
    )
    # What was refused is remembered for 30 seconds; another subresource was not asked about.
    code, text = ask(node, "/pods", account)
    assert code == 200 and '"kind": "PodList"' in text.replace('":"', '": "')
    assert ask(node, "/containerLogs/default/there/main", account)[0] == 403


def test_a_nodes_credentials_reach_its_own_objects_only(node: Node, joined: SecondNode) -> None:
    """With real requests of kubectl, as node n2."""
    node.kubectl("create", "secret", "generic", "mine", "--from-literal=a=b")
    node.kubectl("create", "secret", "generic", "other", "--from-literal=a=b")
    volume = {"name": "v", "secret": {"secretName": "mine"}}
    node.apply(pod("uses", nodeSelector={"kubernetes.io/hostname": "n2"}, volumes=[volume]))
    first = next(
        name for name in node.kubectl("get", "nodes", "-o", "name").out.split() if name != "node/n2"
    ).removeprefix("node/")
    node.apply(pod("elsewhere", nodeSelector={"kubernetes.io/hostname": first}))
    node.wait_running("uses", "elsewhere")

    def code(*argv: str) -> tuple[int, str]:
        login = ("--kubeconfig", str(joined.root / "etc/kubelet-py/kubelet.conf"))
        done = node.kubectl(*argv, *login, check=False)
        return done.code, done.err

    for allowed in (
        ("get", "secret", "mine"),
        ("get", "pod", "uses"),
        ("get", "pods", "-A", "--field-selector=spec.nodeName=n2"),
        ("get", "lease", "n2", "-n", "kube-node-lease"),
        ("label", "node", "n2", "plain=yes"),
    ):
        assert code(*allowed)[0] == 0, (allowed, code(*allowed))
    for refused in (
        ("get", "secret", "other"),
        ("get", "secrets"),
        ("get", "pod", "elsewhere"),
        ("get", "pods", "-A"),
        ("delete", "pod", "elsewhere"),
        ("get", "lease", first, "-n", "kube-node-lease"),
        ("label", "node", first, "plain=yes"),
        ("label", "node", "n2", "node-restriction.kubernetes.io/a=b"),
        ("taint", "node", "n2", "a=b:NoSchedule"),
        ("delete", "node", first),
        *([("create", "token", "default")] if has_kubectl("1.24") else []),
        ("run", "own", "--image=busybox"),
    ):
        found, text = code(*refused)
        assert found != 0 and "orbidden" in text, (refused, text)


def test_a_joined_node_comes_back_by_up(node: Node, joined: SecondNode) -> None:
    before = containers(node)
    supervisor = joined.pid("supervisor")
    os.kill(supervisor, 15)
    node.until("ended", lambda: joined.cli("status", "--pid", "agent", check=False).code != 0)
    assert "Node n2 is Ready after" in joined.cli("up", "--detach").out
    assert joined.pid("supervisor") != supervisor
    assert containers(node) == before, "adopted, not started again"


def containers(node: Node) -> list[Any]:
    found = node.kubectl("get", "pods", "-o", "json").json()["items"]
    return sorted(
        each["status"]["containerStatuses"][0]["containerID"]
        for each in found
        if each["spec"]["nodeName"] == "n2"
    )


def test_tokens_are_listed_and_deleted(node: Node, machine: SecondNode) -> None:
    text = token(node, "--ttl", "30m", "--description", "for the list")
    listed = next(line for line in node.cli("token", "list").out.splitlines() if text in line)
    assert "authentication,signing" in listed or "signing,authentication" in listed
    assert "for the list" in listed and "system:bootstrappers:kubeadm:default-node-token" in listed
    shown = node.cli("token", "list", "-o", "json").out.replace("}\n{", "},{")
    found = {each["token"]: each for each in json.loads(f"[{shown}]")}[text]
    assert found["kind"] == "BootstrapToken" and found["apiVersion"] == "output.kubeadm.k8s.io/v1alpha3"
    assert found["usages"] == ["authentication", "signing"] and found["description"] == "for the list"
    assert text[:6] in node.kubectl("get", "secrets", "-n", "kube-system").out
    twice = node.cli("token", "create", text, check=False)
    assert twice.code == 1 and "is there already" in twice.err
    assert node.cli("token", "delete", text).out == f"Deleted bootstrap token {text[:6]}\n"
    assert text not in node.cli("token", "list").out
    assert node.cli("token", "delete", text, check=False).code == 1
    assert len(node.cli("token", "generate").out.strip()) == 23
    without = machine.cli("token", "list", check=False)
    assert without.code == 1 and "tokens are made where the control plane runs" in without.err


def test_a_node_that_leaves_is_gone_on_both_sides(node: Node, joined: SecondNode) -> None:
    done = joined.cli("leave")
    assert "Deleted node n2" in done.out
    assert node.kubectl("get", "node", "n2", check=False).code != 0
    node.until(
        "its pods gone", lambda: "n2" not in node.kubectl("get", "pods", "-o", "wide", "--no-headers").out
    )
    for left in ("etc/kubelet-py", "var/lib/kubelet-py", "run/kubelet-py", "var/log/pods"):
        assert not (joined.root / left).exists(), left
    group = NodePaths(joined.root).cgroup_root
    assert not [parent for parent, folders, _ in os.walk("/sys/fs/cgroup") if group in folders]
    links = joined.outside_run("ip", "-brief", "link").out.split("\n")
    assert sorted(line.split("@")[0].split()[0] for line in links if line) == ["lo", "up3"]
    assert "KUBE-" not in joined.outside_run("iptables-save").out
