"""What a client may change of a pod that runs, read back from the API and from what the node makes of it."""

from __future__ import annotations

import json

import pytest
from e2e_node import NODE_IP, Node, need_kubectl, pod

pytestmark = pytest.mark.e2e

POLITE = "trap 'exit 0' TERM; sleep 3600 & wait"
PODS = "[sig-node] Pods should"


@pytest.mark.conformance(f"{PODS} get a host IP")
@pytest.mark.conformance(f"{PODS} be updated")
def test_labels_of_a_running_pod(node: Node) -> None:
    node.apply(pod("labelled", POLITE, labels={"time": "before"}))
    node.wait_running("labelled")
    status = node.get("pod", "labelled")["status"]
    assert (status["hostIP"], status["hostIPs"]) == (NODE_IP, [{"ip": NODE_IP}])
    node.kubectl("label", "pod", "labelled", "time=after", "--overwrite")
    assert node.kubectl("get", "pods", "-l", "time=before", "-o", "name").out == ""
    assert node.kubectl("get", "pods", "-l", "time=after", "-o", "name").out == "pod/labelled\n"
    assert node.get("pod", "labelled")["status"]["containerStatuses"] == status["containerStatuses"]
    node.kubectl("delete", "pod", "labelled")


@pytest.mark.conformance(f"{PODS} allow activeDeadlineSeconds to be updated")
def test_a_deadline_given_to_a_running_pod(node: Node) -> None:
    node.apply(pod("late", POLITE))
    node.wait_running("late")
    patch = '{"spec":{"activeDeadlineSeconds":1}}'
    node.kubectl("patch", "pod", "late", "-p", patch)
    node.until("Failed", lambda: node.phase("late") == "Failed")
    assert node.get("pod", "late")["status"]["reason"] == "DeadlineExceeded"
    longer = node.kubectl("patch", "pod", "late", "-p", '{"spec":{"activeDeadlineSeconds":9}}', check=False)
    assert longer.code and "activeDeadlineSeconds" in longer.err, "a deadline may only come nearer"
    node.kubectl("delete", "pod", "late")


@pytest.mark.conformance(f"{PODS} delete a collection of pods")
def test_a_collection_goes_at_once(node: Node) -> None:
    names = [f"many-{index}" for index in range(3)]
    node.apply(*(pod(name, POLITE, labels={"type": "Testing"}) for name in names), pod("other", POLITE))
    node.wait_running(*names, "other")
    node.kubectl("delete", "--raw", "/api/v1/namespaces/default/pods?labelSelector=type%3DTesting")
    left = ("get", "pods", "-o", "name")
    node.until("only the other one left", lambda: node.kubectl(*left).out == "pod/other\n")
    node.kubectl("delete", "pod", "other")


@pytest.mark.conformance(f"{PODS} patch a pod status")
def test_a_patched_status_is_answered_with(node: Node) -> None:
    need_kubectl("1.24", "patch --subresource")
    node.apply(pod("patched", POLITE))
    node.wait_running("patched")
    body = json.dumps({"status": {"message": "Patched by a client", "reason": "Client"}})
    argv = ("patch", "pod", "patched", "--subresource=status", "--type=merge", "-p", body, "-o", "json")
    answer = node.kubectl(*argv).json()["status"]
    assert (answer["message"], answer["reason"], answer["phase"]) == (
        "Patched by a client", "Client", "Running",
    )  # fmt: skip
    assert node.phase("patched") == "Running"
    node.kubectl("delete", "pod", "patched")
