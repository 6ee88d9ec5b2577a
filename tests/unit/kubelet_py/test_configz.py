"""The settings in use, as a document that can be read again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kubelet_py.config import Config, from_document, parse_duration
from kubelet_py.configz import duration_text, to_document
from kubelet_py.errors import ConfigError


def test_what_is_shown_can_be_given_to_another_node() -> None:
    config = replace(
        Config(),
        cluster_dns=("10.96.0.10",),
        eviction_soft={"memory.available": "200Mi"},
        eviction_soft_grace_period={"memory.available": "1m30s"},
        cpu_cfs_quota_period=0.05,
        max_pods=7,
    )
    document = to_document(config)
    assert document["maxPods"] == 7 and document["clusterDNS"] == ["10.96.0.10"]
    assert document["cpuCFSQuotaPeriod"] == "50ms" and document["evictionPressureTransitionPeriod"] == "5m0s"
    assert from_document(document) == config


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (1e-9, "1ns"), (0.0015, "1.5ms"), (2, "2s"), (90.5, "1m30.5s"), (3600, "1h0m0s")],
)
def test_durations_read_as_go_writes_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
    assert parse_duration(text) == pytest.approx(seconds)


def test_a_node_that_looks_more_often_reports_as_often_unless_that_is_said() -> None:
    found = from_document({"nodeStatusUpdateFrequency": "4s"})
    assert (found.node_status_update_frequency, found.node_status_report_frequency) == (4.0, 4.0)
    found = from_document({"nodeStatusUpdateFrequency": "4s", "nodeStatusReportFrequency": "5m"})
    assert found.node_status_report_frequency == 300.0
    assert from_document({"nodeStatusUpdateFrequency": "0s"}) == Config()


def test_a_healthz_port_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="healthzPort"):
        from_document({"healthzPort": 70000})
