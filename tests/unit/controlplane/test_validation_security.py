"""What pods may not ask for: security contexts, sysctls, mounts that travel. Upstream's words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.controlplane.test_validation import create, pod

Object = dict[str, Any]
CONTEXT = "spec.securityContext"
OWN = "spec.containers[0].securityContext"
MOUNT = "spec.containers[0].volumeMounts[0]"
PROFILES = '"Localhost", "RuntimeDefault", "Unconfined"'
REGEX = r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"


INTO = "HostToContainer"
ONCE = {"accessModes": ["ReadWriteOnce"]}


def whole(context: Object, **spec: Any) -> Object:
    return pod(securityContext=context, **spec)


def own(context: Object, **spec: Any) -> Object:
    return pod(containers=[{"name": "c", "image": "i", "securityContext": context}], **spec)


def mounted(mount: Object, privileged: bool = False) -> Object:
    container = {"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v", **mount}]}
    container["securityContext"] = {"privileged": privileged}
    return pod(containers=[container], volumes=[{"name": "v", "emptyDir": {}}])


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        (whole({"runAsUser": 1, "fsGroup": 2, "supplementalGroups": [3], "runAsNonRoot": True}), []),
        (whole({"runAsUser": -1}),
         [f"{CONTEXT}.runAsUser: "
          f"Invalid value: -1: must be between 0 and 2147483647, inclusive"]),
        (whole({"supplementalGroups": [1, 2**31]}),
         [f"{CONTEXT}.supplementalGroups[1]: "
          f"Invalid value: 2147483648: must be between 0 and 2147483647, inclusive"]),
        (whole({"supplementalGroupsPolicy": "Some"}),
         [f'{CONTEXT}.supplementalGroupsPolicy: '
          f'Unsupported value: "Some": supported values: "Merge", "Strict"']),
        (whole({"fsGroupChangePolicy": "Never"}),
         [f'{CONTEXT}.fsGroupChangePolicy: '
          f'Unsupported value: "Never": supported values: "Always", "OnRootMismatch"']),
        (whole({"windowsOptions": {"runAsUserName": "x"}}),
         [f"{CONTEXT}.windowsOptions: Forbidden: windows options cannot be set for a linux pod"]),
        (own({"windowsOptions": {}}),
         [f"{OWN}.windowsOptions: Forbidden: windows options cannot be set for a linux pod"]),
        (whole({"seccompProfile": {"type": "RuntimeDefault"}, "appArmorProfile": {"type": "Unconfined"}}),
         []),
        (whole({"seccompProfile": {"type": "Strict"}}),
         [f'{CONTEXT}.seccompProfile.type: Unsupported value: "Strict": supported values: {PROFILES}']),
        (whole({"seccompProfile": {"type": "Localhost"}}),
         [f"{CONTEXT}.seccompProfile.localhostProfile: "
          f"Required value: must be set when seccomp type is Localhost"]),
        (own({"seccompProfile": {"type": "Unconfined", "localhostProfile": "x"}}),
         [f'{OWN}.seccompProfile.localhostProfile: '
          f'Invalid value: "x": can only be set when seccomp type is Localhost']),
        (own({"seccompProfile": {"type": "Localhost", "localhostProfile": "../x"}}),
         [f"{OWN}.seccompProfile.localhostProfile: Invalid value: \"../x\": must not contain '..'"]),
        (own({"seccompProfile": {"type": "Localhost", "localhostProfile": "/x"}}),
         [f'{OWN}.seccompProfile.localhostProfile: Invalid value: "/x": must be a relative path']),
        (own({"appArmorProfile": {"type": "Localhost"}}),
         [f"{OWN}.appArmorProfile.localhostProfile: "
          f"Required value: must be set when AppArmor type is Localhost"]),
        (own({"appArmorProfile": {"type": "Localhost", "localhostProfile": " x"}}),
         [f'{OWN}.appArmorProfile.localhostProfile: '
          f'Invalid value: " x": must not be padded with whitespace']),
        (whole({"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"},
                            {"name": "kernel/shm_rmid_forced", "value": "1"}]}), []),
        (whole({"sysctls": [{"name": "foo-", "value": "bar"}]}),
         [f'{CONTEXT}.sysctls[0].name: '
          f'Invalid value: "foo-": must have at most 253 characters and match regex {REGEX}']),
        (whole({"sysctls": [{"name": "a.b", "value": ""}, {"name": "a/b", "value": ""}]}),
         [f'{CONTEXT}.sysctls[1].name: Duplicate value: "a/b"']),
        (whole({"sysctls": [{"name": "net.a", "value": ""}]}, hostNetwork=True),
         [f"{CONTEXT}.sysctls[0].name: "
          f"Invalid value: \"net.a\": may not be specified when 'hostNetwork' is true"]),
        (whole({"sysctls": [{"name": "kernel.msgmax", "value": ""}]}, hostIPC=True),
         [f"{CONTEXT}.sysctls[0].name: "
          f"Invalid value: \"kernel.msgmax\": may not be specified when 'hostIPC' is true"]),
        (own({"procMount": "Unmasked"}, hostUsers=False), []),
        (own({"procMount": "Unmasked"}),
         [f'{OWN}.procMount: Invalid value: "Unmasked": `hostUsers` must be false to use `Unmasked`']),
        (own({"procMount": "Some"}),
         [f'{OWN}.procMount: Unsupported value: "Some": supported values: "Default", "Unmasked"']),
        (pod(hostUsers=False, hostPID=True), ["spec.hostPID: Forbidden: when `hostUsers` is false"]),
        (mounted({"mountPropagation": "Bidirectional"}, privileged=True), []),
        (mounted({"mountPropagation": "Bidirectional"}),
         [f"{MOUNT}.mountPropagation: "
          f"Forbidden: Bidirectional mount propagation is available only to privileged containers"]),
        (mounted({"mountPropagation": "Up"}),
         [f'{MOUNT}.mountPropagation: '
          f'Unsupported value: "Up": supported values: "Bidirectional", "HostToContainer", "None"']),
        (mounted({"readOnly": True, "recursiveReadOnly": "Enabled"}), []),
        (mounted({"recursiveReadOnly": "Disabled"}), []),
        (mounted({"recursiveReadOnly": "Enabled"}),
         [f"{MOUNT}.recursiveReadOnly: Forbidden: may only be specified when readOnly is true"]),
        (mounted({"readOnly": True, "recursiveReadOnly": "IfPossible", "mountPropagation": INTO}),
         [f"{MOUNT}.recursiveReadOnly: "
          f"Forbidden: may only be specified when mountPropagation is None or not specified"]),
        (pod(volumes=[{"name": "v", "image": {}}]), ["spec.volumes[0].image.reference: Required value"]),
        (pod(volumes=[{"name": "v", "emptyDir": {"sizeLimit": "-1"}}]),
         ["spec.volumes[0].emptyDir.sizeLimit: "
          "Forbidden: SizeLimit field must be a valid resource quantity"]),
        (pod(volumes=[{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": ONCE}}}]),
         ["spec.volumes[0].ephemeral.volumeClaimTemplate.spec.resources[storage]: Required value"]),
    ],
)  # fmt: skip
def test_what_is_refused(obj: Object, wanted: list[str]) -> None:
    assert create(obj) == wanted
