"""When a silent node counts as gone and how fast pods are sent away: values, and upstream's flags for them.

A module of its own, so that reading the command line does not import the controllers: serving starts first.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from controlplane.flag_values import count, duration, not_negative

KEPT_FINISHED = 12500


@dataclass(frozen=True, slots=True)
class Rates:
    """--node-eviction-rate, --secondary-node-eviction-rate (nodes per second), --unhealthy-zone-threshold
    (share of nodes), --large-cluster-size-threshold (nodes)."""

    normal: float = 0.1
    secondary: float = 0.01
    unhealthy: float = 0.55
    large: int = 50


@dataclass(frozen=True, slots=True)
class Deadlines:
    """--node-monitor-grace-period, --node-startup-grace-period and --node-monitor-period, in seconds."""

    grace: float = 40.0
    startup: float = 60.0
    period: float = 5.0
    rates: Rates = field(default_factory=Rates)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What becomes of silent nodes and their pods: kube-apiserver's and kube-controller-manager's flags."""
    default = Deadlines()
    for flag, seconds, text in (
        ("--node-monitor-grace-period", default.grace, "silence after which a node is Unknown"),
        ("--node-startup-grace-period", default.startup, "the same for one that never spoke"),
        ("--node-monitor-period", default.period, "between two looks at each node"),
    ):
        parser.add_argument(flag, type=duration, default=seconds, help=f"{text} (default {seconds:.0f}s)")
    rates = default.rates
    for flag, number, text in (
        ("--node-eviction-rate", rates.normal, "silent nodes per second whose pods are sent away"),
        ("--secondary-node-eviction-rate", rates.secondary, "the same in a large unhealthy zone"),
        ("--unhealthy-zone-threshold", rates.unhealthy, "share of silent nodes that makes it unhealthy"),
    ):
        parser.add_argument(flag, type=not_negative, default=number, help=f"{text} (default {number})")
    for flag, number_of, text in (
        ("--large-cluster-size-threshold", rates.large, "nodes of a zone above which it is large"),
        ("--terminated-pod-gc-threshold", KEPT_FINISHED, "finished pods that are kept; 0 keeps all"),
        ("--default-not-ready-toleration-seconds", 300, "how long pods stay on a node that is not ready"),
        ("--default-unreachable-toleration-seconds", 300, "how long pods stay on a silent node"),
    ):
        parser.add_argument(flag, type=count, default=number_of, help=f"{text} (default {number_of})")


def read_flags(found: argparse.Namespace) -> Deadlines:
    rates = Rates(
        found.node_eviction_rate,
        found.secondary_node_eviction_rate,
        found.unhealthy_zone_threshold,
        found.large_cluster_size_threshold,
    )
    return Deadlines(
        found.node_monitor_grace_period, found.node_startup_grace_period, found.node_monitor_period, rates
    )
