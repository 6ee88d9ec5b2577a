"""The four pages of metrics, from plain values to Prometheus' text."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from kubelet_py.instruments import Histogram, Number
from kubelet_py.pods.durations import Durations
from kubelet_py.server import cadvisor, metrics, resource_metrics
from kubelet_py.server.exposition import Family, Sample, text
from tests.unit.server import usage_sample

PLACE = 'container="main",pod="web",namespace="default"'
LABELS = (
    'container="main",id="/kubepods/podu1/c1",image="registry/app:1",name="c1",namespace="default",pod="web"'
)


def test_text_escapes_labels_and_tells_a_family_once() -> None:
    family = Family("a", "gauge", "x\\y\nz", (Sample(1, {"l": 'q"\\\n'}), Sample(0.5, at=1.5)))
    assert text([family, Family("empty", "gauge", "", ())]) == (
        '# HELP a x\\\\y\\nz\n# TYPE a gauge\na{l="q\\"\\\\\\n"} 1\na 0.5 1500\n'
    )


def test_resource_metrics_have_names_labels_and_milliseconds_of_the_reading() -> None:
    lines = text(resource_metrics.resource_families(usage_sample.node(disks=False))).splitlines()
    at = "1800000000500"
    for line in (
        f"node_cpu_usage_seconds_total 2.5 {at}",
        f"node_memory_working_set_bytes 600 {at}",
        f"node_swap_usage_bytes 100 {at}",
        f"container_cpu_usage_seconds_total{{{PLACE}}} 2.5 {at}",
        f"container_memory_working_set_bytes{{{PLACE}}} 600 {at}",
        f"container_swap_usage_bytes{{{PLACE}}} 40 {at}",
        f"container_start_time_seconds{{{PLACE}}} 1799999900.0",
        f'pod_cpu_usage_seconds_total{{pod="web",namespace="default"}} 2.5 {at}',
        f'pod_memory_working_set_bytes{{pod="web",namespace="default"}} 600 {at}',
        "resource_scrape_error 0",
    ):
        assert line in lines


def test_cadvisor_has_the_series_that_dashboards_query() -> None:
    lines = text(cadvisor.cadvisor_families(usage_sample.node())).splitlines()
    at = "1800000000500"
    for line in (
        f'container_cpu_usage_seconds_total{{cpu="total",{LABELS}}} 2.5 {at}',
        f"container_cpu_user_seconds_total{{{LABELS}}} 1.5 {at}",
        f"container_cpu_cfs_periods_total{{{LABELS}}} 10 {at}",
        f"container_cpu_cfs_throttled_periods_total{{{LABELS}}} 4 {at}",
        f"container_cpu_cfs_throttled_seconds_total{{{LABELS}}} 0.25 {at}",
        f"container_memory_working_set_bytes{{{LABELS}}} 600 {at}",
        f"container_memory_rss{{{LABELS}}} 500 {at}",
        f"container_memory_cache{{{LABELS}}} 77 {at}",
        f"container_memory_swap{{{LABELS}}} 40 {at}",
        f"container_memory_failcnt{{{LABELS}}} 3 {at}",
        f"container_oom_events_total{{{LABELS}}} 1 {at}",
        f"container_spec_memory_limit_bytes{{{LABELS}}} 1000 {at}",
        f"container_spec_cpu_quota{{{LABELS}}} 50000 {at}",
        f"container_spec_cpu_period{{{LABELS}}} 100000 {at}",
        f"container_spec_cpu_shares{{{LABELS}}} 102 {at}",
        f"container_processes{{{LABELS}}} 3 {at}",
        f"container_pressure_cpu_waiting_seconds_total{{{LABELS}}} 1.5 {at}",
        f"container_pressure_cpu_stalled_seconds_total{{{LABELS}}} 0.25 {at}",
        f'container_memory_failures_total{{failure_type="pgmajfault",scope="hierarchy",{LABELS}}} 2 {at}',
        f'container_fs_usage_bytes{{device="",{LABELS}}} 100 {at}',
        'container_network_receive_bytes_total{interface="eth0",container="",id="/kubepods/podu1",'
        f'image="pause",name="s1",namespace="default",pod="web"}} 11 {at}',
    ):
        assert line in lines
    assert 'machine_memory_bytes{boot_id="b",machine_id="m",system_uuid="s"} 4000' in lines


def test_a_number_that_the_kernel_does_not_count_is_left_out() -> None:
    shown = text(cadvisor.cadvisor_families(usage_sample.node(detail=False)))
    assert "container_cpu_cfs_periods_total" not in shown and "container_spec_cpu_quota" not in shown
    assert "container_pressure_memory" not in shown and "container_processes" not in shown
    assert "container_memory_working_set_bytes" in shown


def test_own_metrics_count_pods_states_and_volumes_of_claims() -> None:
    states = [{"state": {"running": {}}}, {"state": {"terminated": {}}}]
    spec = {"ephemeralContainers": [{"name": "debug"}]}
    pod = {"metadata": {"name": "a"}, "spec": spec, "status": {"containerStatuses": states}}
    static = {"metadata": {"annotations": {"kubernetes.io/config.source": "file"}}, "status": {}}
    over = {"metadata": {"name": "b"}, "status": {"phase": "Failed"}}
    lines = text(metrics.own_families([pod, static, over], usage_sample.node())).splitlines()
    assert 'kubelet_desired_pods{static=""} 2' in lines
    assert 'kubelet_active_pods{static=""} 1' in lines
    assert 'kubelet_active_pods{static="true"} 1' in lines and "kubelet_mirror_pods 1" in lines
    assert 'kubelet_node_name{node="n1"} 1' in lines
    assert "kubelet_running_pods 1" in lines and "kubelet_managed_ephemeral_containers 1" in lines
    assert 'kubelet_running_containers{container_state="exited"} 1' in lines
    claim = '{namespace="default",persistentvolumeclaim="claim"}'
    assert f"kubelet_volume_stats_used_bytes{claim} 40" in lines
    assert not any("scratch" in line for line in lines)
    assert "process_start_time_seconds 1799000100.0" in lines


def test_probe_results_are_counted_by_result() -> None:
    labels = {"container": "main", "pod_uid": "u", "probe_type": "Liveness"}
    durations = Durations((1.0,))
    durations.observe(0.25)
    shown = text(metrics.probe_families([(labels, {"failed": 3, "successful": 1}, durations.read())]))
    prefix = 'container="main",pod_uid="u",probe_type="Liveness"'
    assert f'prober_probe_total{{{prefix},result="failed"}} 3' in shown
    assert 'prober_probe_duration_seconds_sum{container="main",probe_type="Liveness"} 0.25' in shown


def test_what_parts_counted_can_be_read_by_prometheus_own_parser() -> None:
    number, histogram = Number("kubelet_evictions", "x", "eviction_signal"), Histogram("h_seconds", "x", "a")
    number.add('quote " and \\ and \n')
    histogram.observe(0.3, "b")
    histogram.observe(0.3, "c")
    pages = (
        *metrics.own_families([], usage_sample.node()),
        *metrics.instrument_families([number, histogram, Number("none", "never counted", "why")]),
        *metrics.instrument_families([Number("zero_total", "x"), Histogram("empty_seconds", "x")]),
        *metrics.certificate_families({"client": math.inf, "server": 150.0}, 100.0),
        *metrics.volume_families({("kubernetes.io/secret", "desired_state_of_world"): 2}),
    )
    found = {each.name: each for each in text_string_to_metric_families(text(pages))}
    assert found["kubelet_evictions"].samples[0].labels == {"eviction_signal": 'quote " and \\ and \n'}
    assert found["h_seconds"].type == "histogram" and len(found["h_seconds"].samples) == 2 * 14
    assert found["kubelet_certificate_manager_client_ttl_seconds"].samples[0].value == math.inf
    assert found["kubelet_certificate_manager_server_ttl_seconds"].samples[0].value == 50.0
    assert found["volume_manager_total_volumes"].samples[0].labels["plugin_name"] == "kubernetes.io/secret"
    assert "none" not in found
    assert found["zero"].samples[0].value == 0
    assert {sample.value for sample in found["empty_seconds"].samples} == {0}


def test_traffic_of_disks_is_told_by_device_and_way() -> None:
    lines = text(cadvisor.cadvisor_families(usage_sample.node())).splitlines()
    place = 'container="main",id="/kubepods/podu1/c1"'
    assert any(
        line.startswith(f'container_fs_writes_bytes_total{{device="999:7",{place}') and " 4096 " in line
        for line in lines
    )
    assert sum(line.startswith("container_fs_reads_total{") for line in lines) == 2, "the pod's too"


def test_a_histogram_adds_its_buckets_up() -> None:
    counted = Durations((0.5, 1.0))
    for seconds in (0.1, 0.5, 0.7, 9.0):
        counted.observe(seconds, failed=seconds > 1)
    shown = text(metrics.start_families(Durations((1.0,)).read(), {"start_container": counted.read()}))
    name, label = "kubelet_runtime_operations", 'operation_type="start_container"'
    for line in (
        f"{name}_total{{{label}}} 4",
        f"{name}_errors_total{{{label}}} 1",
        f'{name}_duration_seconds_bucket{{{label},le="0.5"}} 2',
        f'{name}_duration_seconds_bucket{{{label},le="1"}} 3',
        f'{name}_duration_seconds_bucket{{{label},le="+Inf"}} 4',
        f"{name}_duration_seconds_sum{{{label}}} 10.3",
        f"{name}_duration_seconds_count{{{label}}} 4",
        'kubelet_pod_start_duration_seconds_bucket{le="+Inf"} 0',
    ):
        assert line in shown.splitlines()
