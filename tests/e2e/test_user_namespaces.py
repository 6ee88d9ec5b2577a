"""Pods with users of their own (`hostUsers: false`): what they see, and what the host sees of them.

Upstream tests the same in [sig-node] Security Context "when if the container's securityContext".
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2e_node import Node, need_kubectl, pod
from e2e_registry import make_image
from on_terminal import OnTerminal

from runtime.linux import LinuxKernel
from runtime.userns import supported

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not supported(LinuxKernel()), reason="this kernel cannot idmap a tmpfs (Linux 6.3)"),
]
LOOK = "cat /secret/key /config/key /down/labels; id; exec sleep 3600"
SERVE = "echo from-root > /made; mkdir /www; echo ok > /www/index.html; exec httpd -f -p 8080 -h /www"


def mapped(name: str, command: str, **more: Any) -> dict[str, Any]:
    return pod(name, command, hostUsers=False, **more)


@pytest.fixture(scope="module")
def users(node: Node, tmp_path_factory: pytest.TempPathFactory) -> tuple[Node, Path]:
    """All pods of this module, running, and the folder that `volumes` has as a hostPath."""
    shared = tmp_path_factory.mktemp("shared")
    shared.chmod(0o777)
    (shared / "given").write_text("of the host's root\n")
    (shared / "given").chmod(0o600)
    probe = {"httpGet": {"port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5}
    alive = {"exec": {"command": ["test", "-e", "/made"]}, "periodSeconds": 1, "timeoutSeconds": 5}
    mounts = {"data": "/data", "memory": "/memory", "secret": "/secret", "config": "/config", "down": "/down"}
    labels = [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels['app']"}}]
    node.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"key": "secret;"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"key": "config;"}},
        mapped("web", SERVE, container={"readinessProbe": probe, "livenessProbe": alive}),
        mapped("other", "exec sleep 3600"),
        mapped(
            "volumes",
            f"cat /host/given; echo x > /host/made; touch /data/go; {LOOK}",
            securityContext={"fsGroup": 2000},
            container={
                "volumeMounts": [
                    *({"name": name, "mountPath": path} for name, path in mounts.items()),
                    {"name": "host", "mountPath": "/host"},
                ]
            },
            volumes=[
                {"name": "data", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
                {"name": "secret", "secret": {"secretName": "s", "defaultMode": 0o400}},
                {"name": "config", "configMap": {"name": "c"}},
                {"name": "down", "downwardAPI": {"items": labels}},
                {"name": "host", "hostPath": {"path": str(shared)}},
            ],
        ),
        mapped(
            "user",
            "id -u; cat /secret/key; echo; exec sleep 3600",
            securityContext={"runAsUser": 1000, "fsGroup": 2000},
            container={"volumeMounts": [{"name": "secret", "mountPath": "/secret"}]},
            volumes=[{"name": "secret", "secret": {"secretName": "s", "defaultMode": 0o440}}],
        ),
    )
    node.wait_running("web", "other", "volumes", "user")
    return node, shared


def first_id(node: Node, name: str) -> int:
    """The first of the pod's ids on the host, as the node wrote it down."""
    uid = node.get("pod", name)["metadata"]["uid"]
    written = json.loads((node.root / "var/lib/kubelet-py/pods" / uid / "userns").read_text())
    assert written["uidMappings"] == written["gidMappings"]
    return int(written["uidMappings"][0]["hostId"])


def logs(node: Node, name: str, start: str) -> str:
    def look() -> str:
        out = node.kubectl("logs", name).out
        return out if start in out else ""

    return str(node.until(f"{start!r} in the log of {name}", look))


def inside(node: Node, name: str, script: str) -> str:
    return node.kubectl("exec", name, "--", "sh", "-c", script).out


def test_root_in_the_pod_is_nobody_on_the_host(users: tuple[Node, Path]) -> None:
    node, _ = users
    first, second = first_id(node, "web"), first_id(node, "other")
    assert first >= 65536 and first % 65536 == 0 and abs(first - second) >= 65536
    assert inside(node, "web", "id -u").strip() == "0"
    assert inside(node, "web", "cat /proc/self/uid_map").split() == ["0", str(first), "65536"]
    written = node.root.glob("var/lib/kubelet-py/containers/*/upper/made")
    assert [file.stat().st_uid for file in written] == [first]
    theirs = f"Uid:\t{first}\t{first}"
    assert any(theirs in text_of(status) for status in Path("/proc").glob("[0-9]*/status"))


def text_of(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # it has ended
        return ""


def test_what_only_the_hosts_root_may_is_refused(users: tuple[Node, Path]) -> None:
    """A container with every capability, in its own namespace: none of them counts for the host."""
    node, _ = users
    node.apply(mapped("mighty", "exec sleep 3600", container={"securityContext": {"privileged": True}}))
    node.wait_running("mighty")
    script = (
        "busybox mknod /memory c 1 1 2>/dev/null && echo mknod; nice -n -5 echo nice 2>/dev/null; "
        "mkdir -p /mnt; busybox mount -t tmpfs none /mnt && echo mount"
    )
    assert inside(node, "mighty", script).split() == ["mount"]


def test_volumes_are_readable_and_keep_their_owners(users: tuple[Node, Path]) -> None:
    node, shared = users
    said = logs(node, "volumes", "groups=")
    assert said.startswith("of the host's root\nsecret;config;volumes")
    assert "uid=0(root) gid=0(root)" in said and "2000" in said
    assert (shared / "made").stat().st_uid == 0  # as the pod sees it: an idmapped mount
    assert inside(node, "volumes", "touch /memory/x; stat -c %u:%g /memory/x /data/go").split() == [
        "0:2000",
        "0:2000",
    ]


def test_an_image_volume_of_several_layers(users: tuple[Node, Path], tmp_path: Path) -> None:
    """An overlay cannot be idmapped, so its layers are; below a subPath, too."""
    node, _ = users
    archive = make_image(tmp_path / "two.tar", "two")
    node.cli("image", "import", str(archive), "--name", "two-layers", check=True)
    node.apply(
        mapped(
            "image",
            "cat /v/etc/version; stat -c %u:%g /v/bin/busybox /etc-only/version; touch /v/x; sleep 3600",
            container={
                "volumeMounts": [
                    {"name": "v", "mountPath": "/v"},
                    {"name": "v", "mountPath": "/etc-only", "subPath": "etc"},
                ]
            },
            volumes=[{"name": "v", "image": {"reference": "two-layers", "pullPolicy": "Never"}}],
        )
    )
    node.wait_running("image")
    wanted = ["two0:0", "0:0", "touch: /v/x: Read-only file system"]
    assert logs(node, "image", "Read-only").splitlines() == wanted


def test_another_user_reads_by_the_fs_group(users: tuple[Node, Path]) -> None:
    node, _ = users
    assert logs(node, "user", "secret;").splitlines() == ["1000", "secret;"]


def test_probes_logs_attach_and_debug(users: tuple[Node, Path]) -> None:
    need_kubectl("1.23", "debug")
    node, _ = users

    def ready() -> bool:
        return bool(node.get("pod", "web")["status"]["containerStatuses"][0]["ready"])

    node.until("the http probe succeeds", ready)
    assert node.get("pod", "web")["status"]["containerStatuses"][0]["restartCount"] == 0
    assert "resolv.conf" in inside(node, "web", "cat /etc/resolv.conf >/dev/null && ls /etc")
    assert inside(node, "web", "ls /sys/class/net; ls -d /proc/1").split() == ["eth0", "lo", "/proc/1"]
    node.kubectl(
        "debug", "web", "--image=busybox", "--image-pull-policy=IfNotPresent", "--target=main", "-c", "dbg",
        "--", "sh", "-c", "cat /proc/self/uid_map; cat /proc/1/root/made; ls -d /proc/1; exec sleep 3600",
    )  # fmt: skip

    def seen() -> str:
        out = node.kubectl("logs", "web", "-c", "dbg", check=False).out
        return out if "/proc/1\n" in out else ""

    words = str(node.until("the debug container looked", seen)).split()
    assert words[:3] == ["0", str(first_id(node, "web")), "65536"] and "from-root" in words


def test_the_hosts_namespaces_cannot_be_had_with_it(users: tuple[Node, Path]) -> None:
    node, _ = users
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        body = json.dumps(mapped("refused", "true", **{field: True}))
        done = node.kubectl("create", "-f", "-", stdin=body, check=False)
        assert done.code != 0 and f"spec.{field}: Forbidden: when `hostUsers` is false" in done.err


def test_a_range_survives_the_agent_and_ends_with_the_pod(users: tuple[Node, Path]) -> None:
    node, _ = users
    before = {name: first_id(node, name) for name in ("web", "other")}
    old = node.pid("agent")
    os.kill(old, 9)

    def another() -> bool:
        return node.cli("status", "--pid", "agent", check=False).out.strip() not in ("", str(old))

    node.until("another agent", another)
    node.apply(mapped("later", "exec sleep 3600"))
    node.wait_running("later")
    assert {name: first_id(node, name) for name in before} == before
    assert first_id(node, "later") not in before.values()
    assert inside(node, "other", "id -u").strip() == "0"
    folder = node.root / "var/lib/kubelet-py/pods" / node.get("pod", "other")["metadata"]["uid"]
    node.kubectl("delete", "pod", "other")
    node.until("its range is free", lambda: not folder.exists())


def test_attach_reaches_a_container_with_users_of_its_own(users: tuple[Node, Path]) -> None:
    """By pipes and on a terminal; the terminal must be the pod's root's for `>$(tty)` to open it."""
    node, _ = users
    node.apply(
        mapped("pipes", "read x; echo got $x; exec sleep 600", container={"stdin": True}),
        mapped("tty", "read x; echo got $x >$(tty); exec sleep 600", container={"stdin": True, "tty": True}),
    )
    node.wait_running("pipes", "tty")
    argv = node.kubectl_argv("attach", "-i", "pipes")
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=node.environment()
    ) as attach:
        assert attach.stdin and attach.stdout
        attach.stdin.write("fish\n")
        attach.stdin.flush()
        assert "got fish" in attach.stdout.readline()
        attach.terminate()
    terminal = OnTerminal(node.kubectl_argv("attach", "-it", "tty"), node.environment())
    try:
        terminal.until("try pressing enter")
        terminal.send("bird\n")
        terminal.until(r"got bird\r")
    finally:
        terminal.end()
