"""Security contexts of pods and containers, as a real kubectl asks for them and the kernel shows them."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from e2e_node import Node, pod
from volume_pods import Case, check, event, holding, looking, over, parameters, start_all, waiting

from runtime.linux import LinuxKernel
from runtime.userns import supported

pytestmark = pytest.mark.e2e

Object = dict[str, Any]
STATUS = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'"
SHOW_ID = "id -u; id -g"
NO_NEW = "grep NoNewPrivs /proc/self/status | tr -d '\\t'"
SECCOMP = "grep ^Seccomp: /proc/self/status | tr -d '\\t'"


def case(
    title: str, name: str, script: str, said: list[str], own: Object | None = None, **whole: Any
) -> Case:
    spec: Object = {"securityContext": whole} if whole else {}
    body = looking(name, script, [], container={"securityContext": own or {}}, **spec)
    return Case(title, body, said)


UPSTREAM = "[sig-node] Security Context"
CASES = [
    case(f"{UPSTREAM} When creating a container with runAsUser should run the container with uid 65534",
         "uid", "id -u", ["65534"], {"runAsUser": 65534}),
    case(f"{UPSTREAM} When creating a pod with privileged should run the container as unprivileged when "
         "false",
         "unprivileged", "ip link add dummy1 type dummy 2>/dev/null || echo refused", ["refused"],
         {"privileged": False}),
    case(f"{UPSTREAM} When creating a pod with readOnlyRootFilesystem should run the container with writable "
         "rootfs when readOnlyRootFilesystem=false",
         "writable", "echo x > /file; cat /file", ["x"], {"readOnlyRootFilesystem": False}),
    case("[sig-node] Kubelet when scheduling a read only busybox container should not write to root "
         "filesystem",
         "readonly", "touch /file 2>&1 || true; touch /dev/shm/file && echo shm",
         ["touch: /file: Read-only file system", "shm"], {"readOnlyRootFilesystem": True}),
    case(f"{UPSTREAM} should support container.SecurityContext.RunAsUser And "
         "container.SecurityContext.RunAsGroup",
         "own-ids", SHOW_ID, ["1001", "2002"], {"runAsUser": 1001, "runAsGroup": 2002}, runAsUser=7,
         runAsGroup=8),
    case(f"{UPSTREAM} should support pod.Spec.SecurityContext.RunAsUser And "
         "pod.Spec.SecurityContext.RunAsGroup",
         "pod-ids", SHOW_ID, ["1001", "2002"], None, runAsUser=1001, runAsGroup=2002),
    case(f"{UPSTREAM} when creating containers with AllowPrivilegeEscalation should not allow privilege "
         "escalation when false",
         "no-escalation", NO_NEW, ["NoNewPrivs:1"],
         {"allowPrivilegeEscalation": False, "runAsUser": 1000}),
    case("allowPrivilegeEscalation true leaves the way open", "escalation",
         NO_NEW, ["NoNewPrivs:0"],
         {"allowPrivilegeEscalation": True, "runAsUser": 1000}),
    case("supplementalGroups and fsGroup are the process's groups", "groups", "id -G", ["3000 2000 4000"],
         None, runAsUser=1000, runAsGroup=3000, fsGroup=2000, supplementalGroups=[4000]),
    case("capabilities are dropped and added", "capabilities", "grep CapEff /proc/self/status | tr -d '\\t'",
         ["CapEff:0000000000002000"], {"capabilities": {"drop": ["ALL"], "add": ["NET_RAW"]}}),
    case("a container is confined by default", "confined", STATUS,
         ["CapEff:00000000000005fb", "NoNewPrivs:0", "Seccomp:2"]),
    case("seccompProfile Unconfined of the pod", "unconfined", SECCOMP,
         ["Seccomp:0"], None, seccompProfile={"type": "Unconfined"}),
    case("a container's own seccompProfile wins", "own-profile", SECCOMP,
         ["Seccomp:2"], {"seccompProfile": {"type": "RuntimeDefault"}},
         seccompProfile={"type": "Unconfined"}),
    case("privileged lifts the confinement", "privileged", STATUS.replace("CapEff|", ""),
         ["NoNewPrivs:0", "Seccomp:0"], {"privileged": True}),
    case("seLinuxOptions are for hosts that have SELinux", "selinux", "echo ran", ["ran"], None,
         seLinuxOptions={"level": "s0:c1"}),
    case("[sig-node] Sysctls [LinuxOnly] should support sysctls", "sysctl",
         "cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_unprivileged_port_start", ["1", "99"],
         None, sysctls=[{"name": "kernel.shm_rmid_forced", "value": "1"},
                        {"name": "net.ipv4.ip_unprivileged_port_start", "value": "99"}]),
]  # fmt: skip


UNMASKED = looking(
    "unmasked", "grep -c ' /proc/' /proc/mounts; grep -q . /proc/keys && echo shown", [], hostUsers=False,
    container={"securityContext": {"procMount": "Unmasked"}},
)  # fmt: skip
if supported(LinuxKernel()):
    CASES.append(Case("procMount Unmasked covers nothing of /proc", UNMASKED, ["0", "shown"]))


@pytest.fixture(scope="module")
def started(node: Node) -> Node:
    start_all(node, CASES)
    return node


@pytest.mark.parametrize("case", parameters(CASES))
def test_conformance(started: Node, case: Case) -> None:
    check(started, case)


def refused(node: Node, body: Object) -> str:
    return node.kubectl("apply", "-f", "-", stdin=json.dumps(body), check=False).err


@pytest.mark.conformance("[sig-node] Sysctls [LinuxOnly] should reject invalid sysctls")
def test_invalid_sysctls_are_refused_by_the_api(node: Node) -> None:
    names = ["foo-", "kernel.shmmax", "safe-and-unsafe", "bar.."]
    context = {"sysctls": [{"name": name, "value": "bar"} for name in names]}
    text = refused(node, pod("sysctls-bad", securityContext=context))
    for index, name in ((0, "foo-"), (3, "bar..")):
        assert f'spec.securityContext.sysctls[{index}].name: Invalid value: "{name}"' in text
    assert "sysctls[1]" not in text and "sysctls[2]" not in text


def test_a_sysctl_that_the_node_does_not_allow_ends_the_pod(node: Node) -> None:
    context = {"sysctls": [{"name": "kernel.msgmax", "value": "4096"}]}
    node.apply(pod("sysctl-unsafe", securityContext=context))
    node.until("refused", lambda: node.phase("sysctl-unsafe") == "Failed")
    status = node.get("pod", "sysctl-unsafe")["status"]
    text = 'forbidden sysctl: "kernel.msgmax" not allowlisted'
    assert (status["reason"], status["message"]) == ("SysctlForbidden", f"Pod was rejected: {text}")
    assert event(node, "sysctl-unsafe", "SysctlForbidden") == text


def test_app_armor_is_refused_where_the_host_has_none(node: Node) -> None:
    from kubelet_py.pods import app_armor

    if app_armor.enabled():
        pytest.skip("this host has AppArmor")
    context = {"appArmorProfile": {"type": "RuntimeDefault"}}
    node.apply(pod("armoured", securityContext=context))
    node.until("refused", lambda: node.phase("armoured") == "Failed")
    text = "Cannot enforce AppArmor: AppArmor is not enabled on the host"
    assert event(node, "armoured", "AppArmor") == text


def test_windows_options_are_refused(node: Node) -> None:
    text = refused(node, pod("windows", securityContext={"windowsOptions": {"runAsUserName": "x"}}))
    wanted = "windows options cannot be set for a linux pod"
    assert f"spec.securityContext.windowsOptions: Forbidden: {wanted}" in text


def test_a_container_that_must_not_be_root_waits(node: Node) -> None:
    node.apply(
        pod("root-image", securityContext={"runAsNonRoot": True}),
        pod("root-asked", container={"securityContext": {"runAsUser": 0, "runAsNonRoot": True}}),
    )
    for name, text in (
        ("root-image", "container has runAsNonRoot and image will run as root"),
        ("root-asked", "container's runAsUser breaks non-root policy"),
    ):
        assert text in event(node, name, "Failed")
        node.until("told", lambda name=name: waiting(node, name)["reason"] == "CreateContainerConfigError")


def test_a_profile_of_the_nodes_own(node: Node) -> None:
    """Localhost: from <root>/var/lib/kubelet-py/seccomp; one that is missing keeps its container waiting."""
    folder = node.root / "var/lib/kubelet-py/seccomp/deep"
    folder.mkdir(parents=True)
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    (folder / "nodirs.json").write_text(json.dumps(profile))

    def using(name: str) -> Object:
        return {"seccompProfile": {"type": "Localhost", "localhostProfile": name}}

    script = "mkdir /tmp/x 2>&1 || true; touch /file && echo touched"
    node.apply(
        looking("profiled", script, [], securityContext=using("deep/nodirs.json")),
        holding("unprofiled", container={"securityContext": using("absent.json")}),
    )
    node.until("profiled over", lambda: node.phase("profiled") == "Succeeded", 60)
    said = node.kubectl("logs", "profiled").out
    assert "Operation not permitted" in said and said.endswith("touched\n")
    absent = node.root / "var/lib/kubelet-py/seccomp/absent.json"
    text = f'cannot load seccomp profile "{absent}": open {absent}: no such file or directory'
    assert event(node, "unprofiled", "Failed") == f"Error: {text}"
    told = {"reason": "CreateContainerError", "message": text}
    node.until("told", lambda: waiting(node, "unprofiled") == told)
    absent.write_text(json.dumps(profile))
    node.wait_running("unprofiled")


NODES = "cd /dev && find . -type b -o -type c | xargs stat -c '%n %F %t:%T %a %u %g'"
OWN_NODES = ("./pts/", "./ptmx ", "./console ")


def hosts_nodes() -> set[str]:
    said = subprocess.run(["busybox", "sh", "-c", NODES], capture_output=True, text=True).stdout.splitlines()
    return {line for line in said if not line.startswith(OWN_NODES)}


def test_a_privileged_container_has_the_hosts_devices(node: Node) -> None:
    """With their names, numbers, modes and owners; but not in place of what a volume brings there."""
    volume = {"name": "v", "hostPath": {"path": "/dev/null", "type": "CharDevice"}}
    mounts = [{"name": "v", "mountPath": "/dev/kmsg"}]
    privileged = {"securityContext": {"privileged": True}}
    before = hosts_nodes()
    own_users = [looking("devices-own", NODES, [], container=privileged, hostUsers=False)]
    node.apply(
        looking("devices", NODES, [], container=privileged),
        *(own_users if supported(LinuxKernel()) else ()),
        looking("devices-none", NODES, []),
        looking("devices-volume", "stat -c %t:%T /dev/kmsg", [volume], mounts=mounts, container=privileged),
    )
    seen = set(over(node, "devices"))
    lasting = before & hosts_nodes()
    assert len(lasting) > 10 and lasting - seen == set()
    if supported(LinuxKernel()):
        names = {line.split()[0] for line in over(node, "devices-own")}
        assert {line.split()[0] for line in lasting} - names == set()
    assert {line.split()[0].removeprefix("./") for line in over(node, "devices-none")} - {
        "full", "null", "ptmx", "random", "tty", "urandom", "zero", "pts/ptmx",
    } == set()  # fmt: skip
    assert over(node, "devices-volume") == ["1:3"]


def test_the_status_says_who_a_container_is(node: Node) -> None:
    context = {"runAsUser": 1000, "runAsGroup": 3000, "supplementalGroups": [4000]}
    node.apply(pod("user", securityContext=context))
    node.wait_running("user")
    status = node.get("pod", "user")["status"]["containerStatuses"][0]
    assert status["user"] == {"linux": {"uid": 1000, "gid": 3000, "supplementalGroups": [3000, 4000]}}
