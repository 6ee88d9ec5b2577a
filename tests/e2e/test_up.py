"""The node's own commands as a person types them: up in the foreground, status, inspect, doctor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_node import NODE_IP, REPOSITORY, Node, pod
from resource_node import events, wait_for_event

pytestmark = pytest.mark.e2e


class Foreground:
    """`kubelet-py up` as on a terminal: a session of its own, its output in a file."""

    def __init__(self, node: Node, *options: str) -> None:
        self.output = node.home / "up.out"
        argv = [sys.executable, "-m", "kubelet_py", "up", "--root", str(node.root), *options]
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=node.environment(), cwd=REPOSITORY, start_new_session=True,
            )  # fmt: skip
        node.until("the last word is said", lambda: "Use it: " in self.text())

    def text(self) -> str:
        return self.output.read_text()

    def interrupt(self) -> int:
        """Ctrl-C: the terminal sends SIGINT to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(20)


@pytest.fixture
def web(node: Node) -> Iterator[Node]:
    """A pod that counts, behind a NodePort Service."""
    serve = 'mkdir -p /www; hostname > /www/index.html; trap "exit 0" TERM; httpd -f -p 8080 -h /www & wait'
    node.apply(pod("web", serve, container={"ports": [{"containerPort": 8080}]}))
    node.kubectl("expose", "pod", "web", "--port=80", "--target-port=8080", "--type=NodePort")
    node.wait_running("web")
    yield node
    node.kubectl("delete", "pod/web", "service/web")


def containers(node: Node) -> list[Any]:
    pods = node.kubectl("get", "pods", "-o", "json").json()["items"]
    return [(p["metadata"]["name"], p["status"]["containerStatuses"][0].get("containerID"),
             p["status"]["containerStatuses"][0]["restartCount"]) for p in pods]  # fmt: skip


def answer(node: Node, url: str) -> str:
    return node._run(["curl", "-s", "-m", "3", url], check=False, timeout=10).out.strip()


def test_up_in_the_foreground_ends_with_ctrl_c_and_leaves_the_pods_running(unstarted_node: Node) -> None:
    node = unstarted_node
    first = Foreground(node)
    assert "API server answers on port 6443" in first.text()
    assert f"export KUBECONFIG={node.kubeconfig}" in first.text()
    assert node.pid("supervisor") == first.process.pid
    node.apply(pod("stays", "trap 'exit 0' TERM; httpd -f -p 8080 -h / & wait"))
    node.wait_running("stays")
    before, address = containers(node), node.get("pod", "stays")["status"]["podIP"]
    assert first.interrupt() == 0
    assert "kubelet-py down" in first.text().splitlines()[-1] and "pods" in first.text().splitlines()[-1]
    assert "Traceback" not in first.text()
    assert node.cli("status", check=False).code == 1
    assert answer(node, f"http://{address}:8080/etc/hostname") == "stays"
    second = Foreground(node)
    node.until("exec works again", lambda: node.kubectl("exec", "stays", "--", "true", check=False).code == 0)
    assert containers(node) == before, "adopted, not started again"
    node.kubectl("delete", "pod", "stays")
    assert second.interrupt() == 0


def test_status_tells_processes_conditions_and_pods(web: Node) -> None:
    text = web.cli("status").out
    for name in ("supervisor", "controlplane", "agent", "proxy"):
        pid = web.cli("status", "--pid", name).out.strip()
        assert Path(f"/proc/{pid}/stat").exists()
        assert f"pid {pid}, up " in next(line for line in text.splitlines() if line.startswith(name))
    assert f"({NODE_IP}), Ready" in text and "MemoryPressure" in text and "1 Running" in text
    report = web.cli("status", "--output", "json").json()
    assert report["ready"] is True and report["pods"] == {"Running": 1}
    assert report["server"] == f"https://{NODE_IP}:6443"
    assert set(report["processes"]) == {"supervisor", "controlplane", "agent", "proxy"}
    assert all(entry["pss"] > 1_000_000 for entry in report["processes"].values())
    assert report["conditions"]["Ready"]["status"] == "True"


def test_kubeconfig_prints_a_path_that_kubectl_can_use(node: Node) -> None:
    path = node.cli("kubeconfig").out.strip()
    assert path == str(node.kubeconfig)
    assert os.stat(path).st_mode & 0o077 == 0, "the administrator's key is for root alone"


def test_status_without_a_node_says_how_to_start_one(node: Node, tmp_path: Path) -> None:
    other = [sys.executable, "-m", "kubelet_py", "status", "--root", str(tmp_path)]
    done = node._run(other, check=False, timeout=30)
    assert done.code == 1 and "supervisor    not running" in done.out
    assert "kubelet-py up --detach" in done.out
    asked = node._run([*other, "--pid", "agent"], check=False, timeout=30)
    assert asked.code == 1 and asked.out == "" and "no agent runs here" in asked.err
    report = node._run([*other, "--output", "json"], check=False, timeout=30)
    assert report.code == 1 and json.loads(report.out)["processes"] == {}
    wrong = node._run([*other, "--pid", "kubelet"], check=False, timeout=30)
    assert wrong.code == 2 and "invalid choice" in wrong.err
    assert not list(tmp_path.iterdir()), "asking leaves no trace"


def test_status_shows_a_process_that_is_gone(web: Node) -> None:
    os.kill(web.pid("supervisor"), signal.SIGKILL)
    os.kill(web.pid("proxy"), signal.SIGKILL)
    done = web.cli("status", check=False)
    assert done.code == 1 and "proxy         not running" in done.out
    assert "agent         pid " in done.out
    web.cli("up", "--detach")
    assert web.cli("status").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cluster-cidr", "10.244.0.0/33"], "10.244.0.0/33"),
        (["--cluster-cidr", "10.244.0.1/16"], "10.244.0.1/16"),
        (["--cluster-cidr", "10.96.0.0/16"], "overlap"),
        (["--cluster-cidr", "198.51.100.0/24"], "lies in --cluster-cidr"),
        (["--service-cidr", "pods"], "pods"),
        (["--node-ip", "198.51.100.300"], "198.51.100.300"),
        (["--secure-port", "70000"], "--secure-port 70000"),
        (["--node-name", "Not_A_Name"], "Not_A_Name"),
        (["--kubelet-config", "/no/such/file"], "/no/such/file"),
    ],
)
def test_a_bad_option_is_refused_in_one_line_and_leaves_nothing(
    node: Node, tmp_path: Path, options: list[str], message: str
) -> None:
    argv = [sys.executable, "-m", "kubelet_py", "up", "--detach", "--root", str(tmp_path), *options]
    done = node._run(argv, check=False, timeout=30)
    assert done.code == 1 and message in done.err
    assert done.err.count("\n") == 1 and done.err.startswith("kubelet-py up: ")
    assert not (tmp_path / "etc").exists() and not (tmp_path / "var/lib").exists()


@pytest.mark.parametrize("what", ["a file", "read-only"])
def test_a_root_that_cannot_be_written_is_named(node: Node, tmp_path: Path, what: str) -> None:
    root = tmp_path / "root"
    if what == "a file":
        root.write_text("")
    else:
        root.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(root)], check=True)
    try:
        for detach in (["--detach"], []):
            argv = [sys.executable, "-m", "kubelet_py", "up", *detach, "--root", str(root)]
            done = node._run(argv, check=False, timeout=30)
            assert done.code == 1 and str(root) in done.err and "Traceback" not in done.err
            assert ("ENOTDIR" if what == "a file" else "EROFS") in done.err
            assert done.err.count("\n") == 1
    finally:
        if what == "read-only":
            subprocess.run(["umount", str(root)], check=True)


def test_oci_runs_a_bundle_while_the_node_is_up(web: Node, tmp_path: Path) -> None:
    before = containers(web)
    bundle = tmp_path / "bundle"
    (bundle / "rootfs/bin").mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, bundle / "rootfs/bin/sh")
    oci = [sys.executable, "-m", "runtime.oci_cli", "--root", str(tmp_path / "state")]
    subprocess.run([*oci, "spec", "--bundle", str(bundle)], check=True, cwd=REPOSITORY)
    config = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["sh", "-c", "echo hello from $$; exit 5"]}
    (bundle / "config.json").write_text(json.dumps(config))
    done = web._run([*oci, "run", "--bundle", str(bundle), "aside"], check=False, timeout=30)
    assert (done.code, done.out) == (5, "hello from 1\n"), done.err
    listed = web._run([*oci, "list"], check=True, timeout=30)
    assert "aside" not in listed.out
    assert containers(web) == before and web.cli("status").code == 0


def test_doctor_names_each_thing_it_looks_at(node: Node) -> None:
    done = node.cli("doctor", check=False)
    names = [line.split()[1] for line in done.out.splitlines() if not line.startswith(" ")]
    assert {"rights", "python", "kernel", "overlayfs", "cgroups", "iptables", "disk"} <= set(names)
    assert done.code == 0, done.out
    findings = node.cli("doctor", "--output", "json").json()
    assert all(entry["purpose"] and entry["found"] for entry in findings)
    assert all(entry["mend"] for entry in findings if entry["state"] != "ok")


def test_doctor_finds_what_is_missing_and_says_how_to_mend_it(node: Node, tmp_path: Path) -> None:
    done = node.cli("doctor", check=False, env={"PATH": str(tmp_path)})
    assert done.code == 1
    assert "missing   iptables" in done.out and "apt-get install iptables" in done.out
    assert "degraded  conntrack" in done.out


def test_inspect_goes_from_pod_and_service_to_the_kernel_and_back(web: Node) -> None:
    status = web.get("pod", "web")["status"]
    report = web.cli("inspect", "pod", "web", "-o", "json").json()
    assert report["addresses"] == [status["podIP"]] and report["phase"] == "Running"
    [main] = [p for p in report["processes"] if p["command"].startswith("httpd")]
    assert os.readlink(f"/proc/{main['pid']}/ns/net") == main["namespaces"]["net"]
    links = {link["name"]: link for link in report["network"]["links"]}
    assert f"{status['podIP']}/24" in links["eth0"]["addresses"]
    assert links["eth0"]["host end"].startswith("veth") and links["eth0"]["bridge"]
    assert f"addresses:\n  - {status['podIP']}" in web.cli("inspect", "pod", "web").out
    back = web.cli("inspect", "pid", str(main["pid"]), "-o", "json").json()
    assert (back["pod"], back["namespaces"]) == ("default/web", main["namespaces"])
    [pause] = [p["pid"] for p in report["processes"] if p["container"] == "(pause)"]
    [plan] = web.cli("inspect", "plan", "web", "-o", "json").json().values()
    steps = "\n".join(plan)
    entered = (f"/proc/{pause}/ns/net", f"/proc/{pause}/ns/mnt", "cover the empty root", "container's root")
    wanted = ("an overlay", *entered, "seccomp", "execute")
    order = [steps.index(text) for text in wanted]
    assert order == sorted(order)

    service = web.get("service", "web")["spec"]
    port = service["ports"][0]["nodePort"]
    web.until("answer", lambda: answer(web, f"http://{NODE_IP}:{port}/") == "web")
    report = web.cli("inspect", "service", "web", "-o", "json").json()
    assert report["clusterIP"] == service["clusterIP"]
    assert any(f"--dport {port} " in rule for rule in report["rules"])
    [dnat] = [rule for rule in report["rules"] if f"--to-destination {status['podIP']}:8080" in rule]
    assert int(dnat[1:].split(":")[0]) >= 1, "the packet of our own request is counted"


def test_inspect_says_plainly_what_it_does_not_find(node: Node) -> None:
    for argv, message in (
        (["pod", "nobody"], 'pods "nobody" not found'),
        (["service", "kubernetes", "-n", "elsewhere"], 'services "kubernetes" not found'),
        (["pid", "1"], "process 1 belongs to no pod"),
        (["pid", "seven"], "there is no process seven"),
    ):
        done = node.cli("inspect", *argv, check=False)
        assert done.code == 1 and message in done.err and done.err.count("\n") == 1


def _look_for_no_dns(web: Node) -> None:
    """Pods that want the cluster's DNS are told that there is none; others need not hear of it."""
    web.apply(pod("nameless"), pod("hosts", dnsPolicy="Default"))
    web.wait_running("nameless", "hosts")
    warning = wait_for_event(web, "nameless", "Warning MissingClusterDNS")
    assert warning.endswith('Falling back to "Default" policy.')
    assert not any("MissingClusterDNS" in event for event in events(web, "hosts"))
    web.kubectl("delete", "pod", "nameless", "hosts", "--grace-period=0", "--force")


def _look_for_a_load_balancer(web: Node) -> None:
    """An address of the given range, by which the pod answers beyond the uplink, and which goes again."""
    web.kubectl("expose", "pod", "web", "--port=80", "--target-port=8080", "--type=LoadBalancer", "--name=lb")

    def addresses() -> list[str]:
        status = web.get("service", "lb")["status"]["loadBalancer"]
        return [entry["ip"] for entry in status.get("ingress") or ()]

    assert web.until("an address", addresses) == ["203.0.113.1"]
    web.outside_run("ip", "route", "add", "203.0.113.0/29", "via", NODE_IP)
    fetch = ("curl", "-s", "-m", "2", "http://203.0.113.1/")
    web.until("an answer", lambda: web.outside_run(*fetch, check=False).out == "web\n")
    web.kubectl("patch", "service", "lb", "-p", '{"spec":{"type":"ClusterIP"}}')
    web.until("no address", lambda: not addresses())
    web.until("no answer", lambda: web.outside_run(*fetch, check=False).code != 0)
    web.outside_run("ip", "route", "del", "203.0.113.0/29")
    web.kubectl("delete", "service", "lb")


def test_the_options_of_the_first_up_are_remembered(web: Node) -> None:
    before = containers(web)
    web.cli("down")
    options = ("--no-cluster-dns", "--load-balancer-addresses", "203.0.113.0/29")
    web.cli("up", "--detach", "--secure-port", "7443", *options)
    assert web.cli("status", "-o", "json").json()["server"] == f"https://{NODE_IP}:7443"
    web.cli("down")
    web.cli("up", "--detach")
    assert web.cli("status", "-o", "json").json()["server"] == f"https://{NODE_IP}:7443"
    _look_for_no_dns(web)
    web.until("its pod runs again", lambda: containers(web)[0][1] not in (None, before[0][1]))
    _look_for_a_load_balancer(web)
