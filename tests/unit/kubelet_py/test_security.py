"""What of a security context this node refuses, and what it makes of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubelet_py import config
from kubelet_py.errors import ConfigError, ContainerConfigError, CreateContainerError
from kubelet_py.pods import security
from kubelet_py.pods.model import UserView, Waiting, user_from, user_text

Object = dict[str, Any]


def pod(sysctl: str = "", context: Object | None = None, own: Object | None = None, **spec: Any) -> Object:
    whole = dict(context or {}) | ({"sysctls": [{"name": sysctl, "value": "1"}]} if sysctl else {})
    container = {"name": "c", "securityContext": own or {}}
    return {"metadata": {}, "spec": {"securityContext": whole, "containers": [container], **spec}}


@pytest.mark.parametrize(
    ("body", "unsafe", "wanted"),
    [
        (pod(), [], None),
        (pod("kernel.shm_rmid_forced"), [], None),
        (pod("net/ipv4/tcp_syncookies"), [], None),
        (pod("kernel.msgmax"), [], 'forbidden sysctl: "kernel.msgmax" not allowlisted'),
        (pod("kernel.msgmax"), ["kernel.msgmax"], None),
        (pod("kernel.msgmax"), ["kernel.msg*"], None),
        (pod("kernel.msgmax"), ["kernel.msg"], 'forbidden sysctl: "kernel.msgmax" not allowlisted'),
        (pod("net.core.somaxconn"), ["net.*"], None),
        (pod("net.core.somaxconn", hostNetwork=True), ["net.*"],
         'forbidden sysctl: "net.core.somaxconn" not allowed with host net enabled'),
        (pod("kernel.shm_rmid_forced", hostIPC=True), [],
         'forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host ipc enabled'),
    ],
)  # fmt: skip
def test_sysctls(body: Object, unsafe: list[str], wanted: str | None) -> None:
    found = security.refusal(body, unsafe_sysctls=unsafe, apparmor=False)
    assert found == (Waiting("SysctlForbidden", wanted) if wanted else None)


def test_an_unknown_capability_is_named() -> None:
    with pytest.raises(ContainerConfigError, match=r'^unknown capability "NOPE"$'):
        security.capability_names({"capabilities": {"add": ["NET_ADMIN", "NOPE"]}})


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, '^cannot load seccomp profile "{0}": open {0}: no such file or directory$'),
        ("[]", '^cannot decode seccomp profile "{0}": it is no JSON object$'),
        ("{", '^cannot decode seccomp profile "{0}": Expecting property name'),
    ],
)
def test_a_profile_of_the_node_that_cannot_be_read_is_told(
    tmp_path: Path, content: str | None, wanted: str
) -> None:
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content)
    context = {"seccompProfile": {"type": "Localhost", "localhostProfile": "mine.json"}}
    with pytest.raises(CreateContainerError, match=wanted.format(file)):
        security.localhost_profile(tmp_path, context)
    assert security.localhost_profile(tmp_path, context | {"privileged": True}) is None
    file.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    assert security.localhost_profile(tmp_path, context) == {"defaultAction": "SCMP_ACT_ALLOW"}
    with pytest.raises(ContainerConfigError, match="must be a relative path"):
        upwards = {"type": "Localhost", "localhostProfile": "../mine.json"}
        security.localhost_profile(tmp_path / "a", {"seccompProfile": upwards})
    assert security.localhost_profile(tmp_path, {}) is None


LOCAL = {"appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"}}
DEFAULT = {"appArmorProfile": {"type": "RuntimeDefault"}}
UNCONFINED = {"appArmorProfile": {"type": "Unconfined"}}


@pytest.mark.parametrize(
    ("body", "enabled", "refused"),
    [
        (pod(), False, False),
        (pod(context=UNCONFINED), False, False),
        (pod(context=LOCAL), False, True),
        (pod(own=DEFAULT), False, True),
        (pod(own=LOCAL), True, False),
        (pod(context=LOCAL, own=UNCONFINED), False, False),
    ],
)
def test_app_armor_that_the_host_does_not_have(body: Object, enabled: bool, refused: bool) -> None:
    found = security.refusal(body, unsafe_sysctls=(), apparmor=enabled)
    wanted = Waiting("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host")
    assert found == (wanted if refused else None)


@pytest.mark.parametrize(
    ("options", "enabled", "wanted"),
    [
        ({"level": "s0:c1,c2"}, True, "system_u:system_r:container_t:s0:c1,c2"),
        ({"user": "u", "role": "r", "type": "t", "level": "l"}, True, "u:r:t:l"),
        ({"level": "s0"}, False, ""),
        ({}, True, ""),
    ],
)
def test_the_label_of_a_container(options: Object, enabled: bool, wanted: str) -> None:
    assert security.selinux_label({"seLinuxOptions": options}, enabled) == wanted


def test_what_the_host_has_is_read_from_it(tmp_path: Path) -> None:
    file = tmp_path / "enforce"
    assert not security.selinux_enabled(file)
    file.write_text("0\n")
    assert security.selinux_enabled(file)


NAMESPACED = ["kernel.msgmax", "kernel.msg*", "net.*", "net.core.somaxconn", "fs.mqueue.*"]


@pytest.mark.parametrize("pattern", NAMESPACED)
def test_unsafe_sysctls_that_may_be_allowed(pattern: str) -> None:
    assert config.from_document({"allowedUnsafeSysctls": [pattern]}).allowed_unsafe_sysctls == (pattern,)


@pytest.mark.parametrize("pattern", ["kernel.panic", "vm.*", "*", "", "kernel.*", "net.CORE", "net.*.x"])
def test_unsafe_sysctls_of_the_whole_host_may_not(pattern: str) -> None:
    with pytest.raises(ConfigError, match="allowedUnsafeSysctls"):
        config.from_document({"allowedUnsafeSysctls": [pattern]})


def test_a_user_is_written_down_and_read_again() -> None:
    assert user_from(user_text(1000, 3000, [4000, 10])) == UserView(1000, 3000, (10, 3000, 4000))
    assert user_from(user_text(0, 0, [])) == UserView(0, 0, (0,))
    assert user_from("") is None
