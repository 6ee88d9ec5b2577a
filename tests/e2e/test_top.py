"""What a node says of its use of things: to an HTTPS client on 10250, and through the API server."""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e_node import NODE_IP, Done, Node, need_kubectl, pod
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.e2e

BUSY = "dd if=/dev/zero of=/layer bs=1024 count=512; cp /layer /data/; while :; do :; done"
Get = Any


@pytest.fixture(scope="module")
def busy(node: Node) -> str:
    """A pod that burns CPU, and has written half a megabyte to its layer and to an emptyDir each."""
    container = {
        "command": ["sh", "-c", BUSY],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
        "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1},
    }
    node.apply(pod("busy", container=container, volumes=[{"name": "data", "emptyDir": {}}]))
    node.kubectl("label", "pod", "busy", "load=high")
    node.until("busy runs", lambda: node.get("pod", "busy")["status"].get("phase") == "Running")
    return str(node.get("pod", "busy")["metadata"]["uid"])


@pytest.fixture(scope="module")
def get(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """GET a path of 10250 with the administrator's certificate: (status, text)."""
    folder = tmp_path_factory.mktemp("admin")
    user = yaml.safe_load(node.kubeconfig.read_text())["users"][0]["user"]
    files = []
    for key in ("client-certificate", "client-key"):
        file = Path(user[key]) if key in user else folder / key
        if key not in user:
            file.write_bytes(base64.b64decode(user[f"{key}-data"]))
        files.append(file)
    context = ssl.create_default_context(cafile=str(node.root / "etc/kubelet-py/pki/ca.crt"))
    context.check_hostname = False
    context.load_cert_chain(*files)

    def ask(path: str, method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPSConnection(NODE_IP, 10250, context=context, timeout=30)
        connection.request(method, path)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    yield ask


def series(text: str, name: str, /, **labels: str) -> list[float]:
    """The values of the samples of `name` that carry these labels."""
    return [
        float(found[2])
        for line in text.splitlines()
        if (found := re.fullmatch(r"(\w+(?:{.*})?) (\S+)(?: \d+)?", line)) is not None
        and found[1].partition("{")[0] == name
        and all(f'{key}="{value}"' in found[1] for key, value in labels.items())
    ]


def test_the_summary_agrees_with_what_the_pod_does(node: Node, busy: str, get: Get) -> None:
    def look() -> Any:
        document = json.loads(get("/stats/summary")[1])
        found = next((p for p in document["pods"] if p["podRef"]["uid"] == busy), None)
        ready = found and found["cpu"].get("usageNanoCores") and found["containers"][0]["rootfs"]["usedBytes"]
        # 100m by its limit; never the whole core that the loop would take, nor, in the end, next to nothing.
        right = ready and 20e6 < found["containers"][0]["cpu"]["usageNanoCores"] < 400e6
        return (document["node"], found) if right else None

    machine, found = node.until("the pod's rate", look)
    (container,) = found["containers"]
    assert 0 < container["memory"]["workingSetBytes"] < 64 << 20
    assert container["memory"]["availableBytes"] + container["memory"]["workingSetBytes"] == 64 << 20
    assert machine["cpu"]["usageCoreNanoSeconds"] > container["cpu"]["usageCoreNanoSeconds"]
    assert machine["memory"]["workingSetBytes"] > container["memory"]["workingSetBytes"]
    assert machine["fs"]["capacityBytes"] > machine["fs"]["usedBytes"] > 0
    assert found["network"]["name"] == "eth0"


def test_disk_and_volume_usage_is_what_was_written(node: Node, busy: str, get: Get) -> None:
    node.until(
        "both files", lambda: node.kubectl("exec", "busy", "--", "ls", "/data/layer", check=False).code == 0
    )
    # A folder is walked once a minute: the first look may have come before the writing.

    def look() -> Any:
        document = json.loads(get("/stats/summary")[1])
        found = next(p for p in document["pods"] if p["podRef"]["uid"] == busy)
        volume = next(v for v in found["volume"] if v["name"] == "data")
        sizes = (found["containers"][0]["rootfs"]["usedBytes"], volume["usedBytes"])
        return sizes if min(sizes) >= 512 << 10 else None

    rootfs, data = node.until("what was written", look, 75)
    assert rootfs < 2 << 20 and data < 2 << 20


def test_metrics_have_the_pod_under_upstreams_names(node: Node, busy: str, get: Get) -> None:
    place = {"container": "main", "pod": "busy", "namespace": "default"}
    text = get("/metrics/resource")[1]
    (first,) = series(text, "container_cpu_usage_seconds_total", **place)
    (memory,) = series(text, "container_memory_working_set_bytes", **place)
    (started,) = series(text, "container_start_time_seconds", **place)
    assert memory > 0 and abs(time.time() - started) < 300
    assert series(text, "node_cpu_usage_seconds_total")[0] > first
    node.until(
        "more CPU time",
        lambda: series(get("/metrics/resource")[1], "container_cpu_usage_seconds_total", **place)[0] > first,
    )
    throttled = "container_cpu_cfs_throttled_periods_total"
    node.until("it is slowed down", lambda: series(get("/metrics/cadvisor")[1], throttled, **place)[0] > 0)
    text = get("/metrics/cadvisor")[1]
    assert series(text, "container_spec_memory_limit_bytes", **place) == [64 << 20]
    assert series(text, "container_spec_cpu_quota", **place) == [10_000]
    assert series(text, "container_processes", **place)[0] >= 1
    assert series(text, "container_network_receive_bytes_total", pod="busy", interface="eth0")
    text = get("/metrics")[1]
    assert series(text, "kubelet_running_pods")[0] >= 1
    assert series(text, "process_resident_memory_bytes")[0] > 1 << 20
    assert series(text, "kubelet_runtime_operations_total", operation_type="start_container")[0] >= 1
    node.until(
        "a start was counted",
        lambda: series(get("/metrics")[1], "kubelet_pod_start_duration_seconds_count")[0],
    )


# What dashboards and rules of kube-prometheus query (../shared/wire/kubelet-api.md), after a pod has started.
# Not here: what happens seldom (evictions, a relist), and errors; tests/unit/kubelet_py/test_instruments.py.
DASHBOARDS = {
    "/metrics": (
        "kubelet_node_name", "kubelet_running_pods", "kubelet_running_containers", "kubelet_desired_pods",
        "kubelet_active_pods", "kubelet_mirror_pods", "kubelet_runtime_operations_total",
        "kubelet_runtime_operations_duration_seconds_bucket", "kubelet_pod_start_duration_seconds_bucket",
        "kubelet_pod_start_sli_duration_seconds_bucket", "kubelet_pod_start_total_duration_seconds_bucket",
        "kubelet_pod_worker_duration_seconds_bucket", "kubelet_pod_worker_start_duration_seconds_bucket",
        "kubelet_pod_status_sync_duration_seconds_bucket", "kubelet_cgroup_manager_duration_seconds_bucket",
        "kubelet_started_pods_total", "kubelet_started_containers_total", "kubelet_http_requests_total",
        "kubelet_http_requests_duration_seconds_bucket", "kubelet_http_inflight_requests",
        "kubelet_certificate_manager_client_ttl_seconds", "kubelet_certificate_manager_server_ttl_seconds",
        "kubelet_containers_per_pod_count_bucket", "storage_operation_duration_seconds_bucket",
        "volume_manager_total_volumes", "kubelet_run_podsandbox_duration_seconds_bucket",
        "kubelet_node_startup_duration_seconds", "kubelet_node_startup_pre_kubelet_duration_seconds",
        "kubelet_node_startup_pre_registration_duration_seconds",
        "kubelet_node_startup_registration_duration_seconds",
        "kubelet_node_startup_post_registration_duration_seconds", "kubelet_restarted_pods_total",
        "kubelet_orphaned_runtime_pods_total", "kubelet_volume_metric_collection_duration_seconds_bucket",
        "kubelet_managed_ephemeral_containers", "kubelet_graceful_shutdown_start_time_seconds",
        "rest_client_requests_total", "rest_client_request_duration_seconds_bucket",
        "workqueue_adds_total", "workqueue_depth", "workqueue_queue_duration_seconds_bucket",
        "workqueue_work_duration_seconds_bucket", "kubernetes_build_info", "process_cpu_seconds_total",
        "process_resident_memory_bytes", "process_start_time_seconds", "process_open_fds", "process_max_fds",
    ),
    "/metrics/probes": ("prober_probe_total", "prober_probe_duration_seconds_bucket"),
    "/metrics/cadvisor": (
        "container_cpu_usage_seconds_total", "container_cpu_cfs_periods_total",
        "container_cpu_cfs_throttled_periods_total", "container_memory_working_set_bytes",
        "container_memory_rss", "container_memory_cache", "container_memory_swap",
        "container_network_receive_bytes_total", "container_network_transmit_packets_dropped_total",
        "container_fs_usage_bytes", "container_fs_limit_bytes", "machine_memory_bytes",
    ),
    "/metrics/resource": ("node_cpu_usage_seconds_total", "container_memory_working_set_bytes"),
}  # fmt: skip


def test_dashboards_find_their_series_and_prometheus_can_read_them(node: Node, busy: str, get: Get) -> None:
    node.until(
        "a start was counted",
        lambda: series(get("/metrics")[1], "kubelet_pod_start_sli_duration_seconds_count")[0],
    )
    for page, names in DASHBOARDS.items():
        families = list(text_string_to_metric_families(get(page)[1]))
        assert len({family.name for family in families}) == len(families), f"{page}: a family is told once"
        found = {sample.name for family in families for sample in family.samples}
        assert set(names) - found == set(), page


def test_the_numbers_move(node: Node, busy: str, get: Get) -> None:
    place = {"pod": "busy", "container": "main", "probe_type": "Readiness", "result": "successful"}
    moving = (
        ("/metrics/probes", "prober_probe_total", place),
        ("/metrics", "rest_client_requests_total", {"method": "PUT", "code": "200"}),  # its lease
        ("/metrics", "kubelet_http_requests_total", {"path": "metrics", "method": "GET"}),
        ("/metrics", "workqueue_adds_total", {"name": "pods"}),
        ("/metrics", "kubelet_runtime_operations_total", {"operation_type": "exec_sync"}),  # its probe
    )
    before = [sum(series(get(page)[1], name, **labels)) for page, name, labels in moving]
    node.kubectl("annotate", "pod", "busy", "seen=again", "--overwrite")

    def look() -> Any:
        now = [sum(series(get(page)[1], name, **labels)) for page, name, labels in moving]
        return now if all(new > old for new, old in zip(now, before, strict=True)) else None

    node.until(f"more than {before}", look)
    ttl = series(get("/metrics")[1], "kubelet_certificate_manager_server_ttl_seconds")[0]
    assert 3600 < ttl < 10 * 366 * 86400


def test_a_monitor_reads_metrics_with_the_token_of_its_service_account(node: Node, busy: str) -> None:
    need_kubectl("1.24", "create token")
    node.kubectl("create", "serviceaccount", "monitor")
    token = node.kubectl("create", "token", "monitor").out.strip()
    context = ssl.create_default_context(cafile=str(node.root / "etc/kubelet-py/pki/ca.crt"))
    context.check_hostname = False

    def asked(path: str, bearer: str) -> int:
        connection = http.client.HTTPSConnection(NODE_IP, 10250, context=context, timeout=30)
        connection.request("GET", path, headers={"Authorization": f"Bearer {bearer}"})
        status = connection.getresponse().status
        connection.close()
        return status

    assert (asked("/metrics", "nobody's"), asked("/metrics", token)) == (401, 403)
    node.kubectl("create", "clusterrole", "monitor", "--verb=get", "--resource=nodes/metrics")
    node.kubectl(
        "create", "clusterrolebinding", "monitor", "--clusterrole=monitor", "--serviceaccount=default:monitor"
    )
    node.until("it may read metrics", lambda: asked("/metrics", token) == 200)
    assert asked("/pods", token) == 403, "and nothing else"


def test_the_api_server_hands_the_summary_on(node: Node, busy: str) -> None:
    name = node.kubectl("get", "nodes", "-o", "name").out.strip().partition("/")[2]
    found = node.kubectl("get", "--raw", f"/api/v1/nodes/{name}/proxy/stats/summary").json()
    assert found["node"]["nodeName"] == name
    assert busy in [p["podRef"]["uid"] for p in found["pods"]]


def test_kubectl_top_shows_the_node_and_the_busy_pod(
    node: Node, busy: str, kubectl: Callable[..., Done]
) -> None:
    name = node.kubectl("get", "nodes", "-o", "name").out.strip().partition("/")[2]
    found = node.until("top node", lambda: rows(kubectl("top", "node", check=False)))
    assert found[name][0].endswith("m") and found[name][1].endswith("%") and found[name][2].endswith("Mi")
    # A pod that is newer than the last look at its node has no numbers yet.
    found = node.until("top pod", lambda: rows(kubectl("top", "pod", "busy", check=False)))
    assert 20 < int(found["busy"][0].removesuffix("m")) < 400
    assert "busy" in rows(kubectl("top", "pod", "-l", "load=high"))
    assert "busy" not in rows(kubectl("top", "pod", "-l", "load=none", check=False))
    whole = kubectl("top", "pod", "-A", "--containers").out
    assert re.search(r"^default +busy +main +\d+m +\d+Mi", whole, re.MULTILINE)
    missing = kubectl("top", "pod", "nobody", check=False)
    assert missing.code == 1 and '"nobody" not found' in missing.err


def rows(done: Done) -> dict[str, list[str]]:
    """First column → the others, of what kubectl printed below its heading."""
    lines = [line.split() for line in done.out.splitlines()[1:]] if done.code == 0 else []
    return {line[0]: line[1:] for line in lines}


def test_settings_logs_and_health_can_be_read(node: Node, busy: str, get: Get) -> None:
    settings = json.loads(get("/configz")[1])["kubeletconfig"]
    assert settings["maxPods"] == 110 and settings["nodeStatusUpdateFrequency"] == "10s"
    assert settings["cgroupDriver"] in ("cgroupfs", "systemd")
    name = node.kubectl("get", "nodes", "-o", "name").out.strip().partition("/")[2]
    listing = node.kubectl("get", "--raw", f"/api/v1/nodes/{name}/proxy/logs/").out
    assert 'href="pods/"' in listing
    assert get(f"/logs/pods/default_busy_{busy}/main/0.log")[0] == 200
    running = json.loads(get("/runningpods/")[1])["items"]
    assert busy in [item["metadata"]["uid"] for item in running]
    plain = http.client.HTTPConnection("127.0.0.1", 10248, timeout=10)
    plain.request("GET", "/healthz")
    assert plain.getresponse().read() == b"ok"
    plain.close()


def test_the_steps_of_a_pods_start_are_told_with_milliseconds(node: Node, busy: str, get: Get) -> None:
    found = node.until(
        "the first status", lambda: (d := json.loads(get("/timeline/default/busy")[1])).get("steps") and d
    )
    assert found["pod"]["uid"] == busy
    steps = {step["step"]: step for step in found["steps"]}
    assert {"volumes", "sandbox", "network", "image", "create", "start", "status"} <= set(steps)
    assert steps["start"]["container"] == "main" and steps["start"]["milliseconds"] > 0
    assert steps["sandbox"]["atMilliseconds"] <= steps["network"]["atMilliseconds"]
    assert found["totalMilliseconds"] >= steps["start"]["atMilliseconds"] + steps["start"]["milliseconds"]
    assert get("/timeline/default/nobody")[0] == 404
    shown = node.cli("inspect", "pod", "busy").out
    assert re.search(r"\+\S+ ms: network took \S+ ms", shown) and "told the API that it runs" in shown
