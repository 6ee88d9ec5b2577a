"""What a pod's spec asks for is what its processes find: environment, volumes, identity, limits, phases."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_node import NODE_IP, Node, pod

pytestmark = pytest.mark.e2e


def sh(node: Node, name: str, line: str) -> str:
    return node.kubectl("exec", name, "--", "sh", "-c", line).out


@pytest.fixture(scope="module")
def configured(node: Node) -> Iterator[Node]:
    """A ConfigMap and a Secret, and one pod that uses both in all ways."""
    node.kubectl("create", "configmap", "conf", "--from-literal=colour=red", "--from-literal=not.an.env=x")
    node.kubectl("create", "secret", "generic", "cred", "--from-literal=password=s3cret")
    env: list[dict[str, Any]] = [
        {"name": "PLAIN", "value": "one"},
        {"name": "COMPOSED", "value": "$(PLAIN)-$$(PLAIN)-$(MISSING)"},
        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "colour"}}},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "cred", "key": "password"}}},
        {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "nobody", "key": "x", "optional": True}}},
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
    ]
    container = {
        "env": env,
        "envFrom": [{"configMapRef": {"name": "conf"}, "prefix": "C_"}],
        "command": ["sh", "-c", "echo arg $0 $1; trap 'exit 0' TERM; sleep 3600 & wait"],
        "args": ["$(PLAIN)", "$(COLOUR)"],
        "volumeMounts": [
            {"name": "conf", "mountPath": "/conf"},
            {"name": "cred", "mountPath": "/cred", "readOnly": True},
            {"name": "scratch", "mountPath": "/scratch"},
            {"name": "memory", "mountPath": "/memory"},
            {"name": "host", "mountPath": "/host", "readOnly": True},
            {"name": "conf", "mountPath": "/single", "subPath": "colour"},
        ],
        "resources": {
            "limits": {"memory": "32Mi", "cpu": "500m"},
            "requests": {"memory": "16Mi", "cpu": "100m"},
        },
    }
    volumes = [
        {
            "name": "conf",
            "configMap": {"name": "conf", "items": [{"key": "colour", "path": "colour", "mode": 0o440}]},
        },
        {"name": "cred", "secret": {"secretName": "cred", "defaultMode": 0o400}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "host", "hostPath": {"path": "/etc", "type": "Directory"}},
    ]
    node.apply(pod("all", container=container, volumes=volumes))
    node.wait_running("all")
    yield node
    node.kubectl("delete", "pod", "all")
    node.kubectl("delete", "configmap/conf", "secret/cred")


def test_environment(configured: Node) -> None:
    lines = dict(line.split("=", 1) for line in sh(configured, "all", "env").splitlines())
    address = configured.get("pod", "all")["status"]["podIP"]
    expected = {
        "PLAIN": "one",
        "COMPOSED": "one-$(PLAIN)-$(MISSING)",
        "COLOUR": "red",
        "PASSWORD": "s3cret",
        "POD_NAME": "all",
        "POD_IP": address,
        "NODE_IP": NODE_IP,
        "LABEL": "all",
        "C_colour": "red",
        "HOSTNAME": "all",
    }
    assert {name: lines.get(name) for name in expected} == expected
    assert "MAYBE" not in lines


def test_arguments_are_expanded(configured: Node) -> None:
    configured.until("its line", lambda: configured.kubectl("logs", "all").out == "arg one red\n")


def test_config_map_and_secret_volumes(configured: Node) -> None:
    assert (
        sh(configured, "all", "cat /conf/colour; stat -L -c %a /conf/colour; ls /conf") == "red440\ncolour\n"
    )
    assert sh(configured, "all", "cat /cred/password; stat -L -c %a /cred/password") == "s3cret400\n"
    assert "tmpfs" in sh(configured, "all", "grep ' /cred ' /proc/mounts")
    assert sh(configured, "all", "cat /single") == "red"
    refused = configured.kubectl("exec", "all", "--", "sh", "-c", "echo x > /cred/new", check=False)
    assert refused.code != 0 and "Read-only" in refused.err


def test_empty_dirs_on_disk_and_in_memory(configured: Node) -> None:
    assert sh(configured, "all", "echo hi > /scratch/f; cat /scratch/f") == "hi\n"
    assert "tmpfs" in sh(configured, "all", "grep ' /memory ' /proc/mounts")
    full = configured.kubectl(
        "exec", "all", "--", "sh", "-c", "head -c 2m /dev/zero > /memory/x", check=False
    )
    assert full.code != 0


def test_host_path_shows_the_host_read_only(configured: Node) -> None:
    assert sh(configured, "all", "cat /host/passwd") == Path("/etc/passwd").read_text()


def test_a_changed_config_map_reaches_the_volume(configured: Node) -> None:
    configured.kubectl("patch", "configmap", "conf", "-p", '{"data":{"colour":"blue"}}')
    configured.until("new content", lambda: sh(configured, "all", "cat /conf/colour") == "blue", seconds=70)
    assert sh(configured, "all", "cat /single") == "red", "a subPath does not follow, as upstream"
    configured.kubectl("patch", "configmap", "conf", "-p", '{"data":{"colour":"red"}}')


def test_limits_are_in_the_kernel_and_inspect_shows_them(configured: Node) -> None:
    report = configured.cli("inspect", "pod", "all", "--output", "json").json()
    values = json.dumps(report["limits"])
    assert str(32 * 1024 * 1024) in values
    assert '"50000"' in values or '"50000 100000"' in values
    assert report["network"]["links"] and report["processes"]
    pid = next(p["pid"] for p in report["processes"] if p["container"] == "main")
    back = configured.cli("inspect", "pid", str(pid), "--output", "json").json()
    assert back["pod"] == "default/all"


def test_identity_and_confinement(node: Node) -> None:
    context = {"runAsUser": 1000, "runAsGroup": 3000, "allowPrivilegeEscalation": False,
               "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}  # fmt: skip
    node.apply(pod("user", container={"securityContext": context}), pod("plain"))
    node.wait_running("user", "plain")
    status = sh(node, "user", "cat /proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split()[0] == "1000" and fields["Gid"].split()[0] == "3000"
    assert (fields["NoNewPrivs"], fields["Seccomp"], int(fields["CapEff"], 16)) == ("1", "2", 0)
    assert "Read-only" in node.kubectl("exec", "user", "--", "touch", "/x", check=False).err
    assert sh(node, "plain", "id -u; hostname; cat /etc/hostname") == "0\nplain\nplain\n"
    assert node.get("pod", "plain")["status"]["podIP"] in sh(node, "plain", "cat /etc/hosts")
    assert sh(node, "plain", "ls /proc/self/fd | wc -l").strip() in ("3", "4")
    assert node.kubectl("exec", "plain", "--", "unshare", "-m", "true", check=False).code != 0
    node.kubectl("delete", "pod", "user", "plain")


@pytest.mark.parametrize(
    ("policy", "codes", "phase"),
    [
        ("Never", [0], "Succeeded"),
        ("Never", [1], "Failed"),
        ("Never", [0, 1], "Failed"),
        ("OnFailure", [0, 0], "Succeeded"),
    ],
)
def test_phase_by_restart_policy_and_exit_codes(
    node: Node, policy: str, codes: list[int], phase: str
) -> None:
    name = f"phase-{policy.lower()}-{''.join(map(str, codes))}"
    body = pod(name, "true", restartPolicy=policy)
    template = body["spec"]["containers"][0]
    body["spec"]["containers"] = [
        template | {"name": f"c{i}", "command": ["sh", "-c", f"exit {code}"]} for i, code in enumerate(codes)
    ]
    node.apply(body)
    node.until(phase, lambda: node.phase(name) == phase)
    states = node.get("pod", name)["status"]["containerStatuses"]
    assert [s["state"]["terminated"]["exitCode"] for s in states] == codes
    node.kubectl("delete", "pod", name)


def test_init_containers_run_in_order_before_the_others(node: Node) -> None:
    body = pod("init", "cat /data/log; sleep 3600", volumes=[{"name": "data", "emptyDir": {}}])
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    main = body["spec"]["containers"][0] | mount
    body["spec"]["containers"] = [main]
    body["spec"]["initContainers"] = [
        main | {"name": f"i{n}", "command": ["sh", "-c", f"echo step {n} >> /data/log"]} for n in (1, 2)
    ]
    node.apply(body)
    node.wait_running("init")
    node.until("log", lambda: node.kubectl("logs", "init").out == "step 1\nstep 2\n")
    node.kubectl("delete", "pod", "init", "--force", "--grace-period=0")


def test_static_pod_gets_a_mirror_and_follows_its_file(node: Node) -> None:
    manifest = node.root / "etc/kubelet-py/manifests/web.json"
    manifest.write_text(json.dumps(pod("static", "trap 'exit 0' TERM; sleep 3600 & wait")))
    name = "static-" + node.kubectl("get", "nodes", "-o", "name").out.strip().removeprefix("node/")
    node.wait_running(name)
    mirror = node.get("pod", name)
    assert mirror["metadata"]["annotations"]["kubernetes.io/config.source"] == "file"
    node.kubectl("delete", "pod", name)
    node.wait_running(name)
    manifest.unlink()
    node.until("mirror gone", lambda: node.kubectl("get", "pod", name, check=False).code == 1)


def test_graceful_deletion_waits_for_the_process_and_forces_one_that_ignores(node: Node) -> None:
    polite = "trap 'echo bye > /out/said; exit 0' TERM; sleep 3600 & wait"
    out = node.root / "home/out"
    out.mkdir(exist_ok=True)
    volume = {"volumes": [{"name": "out", "hostPath": {"path": str(out)}}]}
    mount = {"volumeMounts": [{"name": "out", "mountPath": "/out"}]}
    node.apply(pod("polite", polite, container=mount, **volume), pod("rude", "trap '' TERM; sleep 3600"))
    node.wait_running("polite", "rude")
    # The shell's own line has the word, too.
    node.until("trap set", lambda: " sleep 3600\n" in sh(node, "polite", "ps"))
    node.kubectl("delete", "pod", "polite", "--grace-period=5")
    assert (out / "said").read_text() == "bye\n"
    node.kubectl("delete", "pod", "rude", "--grace-period=1")
    assert node.kubectl("get", "pod", "rude", check=False).code == 1
    shutil.rmtree(out)


def test_pod_logs_lie_where_log_collectors_look(node: Node) -> None:
    node.apply(pod("logged", "echo hello; sleep 3600"))
    node.wait_running("logged")
    uid = node.get("pod", "logged")["metadata"]["uid"]
    file = node.root / f"var/log/pods/default_logged_{uid}/main/0.log"
    node.until("a line", lambda: file.exists() and file.read_text().endswith(" stdout F hello\n"))
    links = [
        link
        for link in os.listdir(node.root / "var/log/containers")
        if link.startswith("logged_default_main-")
    ]
    assert len(links) == 1
    node.kubectl("delete", "pod", "logged", "--force", "--grace-period=0")
