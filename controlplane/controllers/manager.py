"""Starts all controllers of a cluster in one process, over one shared set of watches.

A controller must not decide upon a cache that is still being filled (it would create what is already there),
so the workers start when every informer has its first list. Starting returns at once: the API server may
still be on its way up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from controlplane.controllers.base import Controller, SharedInformers
from controlplane.controllers.bootstrap_tokens import BootstrapTokens
from controlplane.controllers.cluster_dns import ClusterDns
from controlplane.controllers.cluster_roles import ClusterRoles
from controlplane.controllers.cronjob import CronJobs
from controlplane.controllers.csr_approving import CsrApproving
from controlplane.controllers.csr_signing import CsrCleaner, CsrSigning
from controlplane.controllers.daemonset import DaemonSets
from controlplane.controllers.deployment import Deployments
from controlplane.controllers.disruption import Disruption
from controlplane.controllers.endpoints import EndpointsController
from controlplane.controllers.endpointslice import EndpointSlices
from controlplane.controllers.endpointslice_mirroring import EndpointSliceMirroring
from controlplane.controllers.ephemeral_volumes import EphemeralVolumes
from controlplane.controllers.finished_jobs import FinishedJobs
from controlplane.controllers.garbage_collector import GarbageCollector
from controlplane.controllers.job import Jobs
from controlplane.controllers.load_balancer import LoadBalancers
from controlplane.controllers.namespace import NamespaceController
from controlplane.controllers.node_ipam import NodeIpam
from controlplane.controllers.node_lifecycle import NodeLifecycle
from controlplane.controllers.pod_gc import PodGc
from controlplane.controllers.replicaset import ReplicaSets
from controlplane.controllers.resource_quota import ResourceQuotas
from controlplane.controllers.service_account import ServiceAccounts
from controlplane.controllers.statefulset import StatefulSets
from controlplane.controllers.taint_eviction import TaintEviction
from controlplane.controllers.volume_binder import VolumeBinder
from controlplane.controllers.volume_protection import VolumeProtection
from controlplane.issuing import Issuer
from controlplane.node_deadlines import KEPT_FINISHED, Deadlines
from kubeclient.events import EventRecorder
from kubeclient.ranges import USUAL_SIZES
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")


class ControllerManager:
    """All controllers; `root_ca` is the PEM text that pods get to check the API server with, `issuer` signs
    certificate requests. The informers are started and stopped here, whoever else listens to them.
    """

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        *,
        root_ca: str,
        issuer: Issuer,
        cluster_cidr: str = "10.244.0.0/16",
        node_cidr_mask_sizes: Mapping[int, int] = USUAL_SIZES,
        cluster_dns: str = "",
        load_balancer_addresses: str = "",
        node_deadlines: Deadlines | None = None,
        kept_finished_pods: int = KEPT_FINISHED,
    ) -> None:
        self._informers = informers
        shared = (client, self._informers)
        self._controllers: list[Controller] = [
            Deployments(*shared, EventRecorder(client, "deployment-controller")),
            ReplicaSets(*shared, EventRecorder(client, "replicaset-controller")),
            StatefulSets(*shared, EventRecorder(client, "statefulset-controller")),
            DaemonSets(*shared, EventRecorder(client, "daemonset-controller")),
            Jobs(*shared, EventRecorder(client, "job-controller")),
            CronJobs(*shared, EventRecorder(client, "cronjob-controller")),
            FinishedJobs(*shared, EventRecorder(client, "ttl-after-finished-controller")),
            EndpointSlices(*shared, EventRecorder(client, "endpoint-slice-controller")),
            EndpointSliceMirroring(*shared, EventRecorder(client, "endpoint-slice-mirroring-controller")),
            EndpointsController(*shared, EventRecorder(client, "endpoint-controller")),
            NamespaceController(*shared, EventRecorder(client, "namespace-controller")),
            GarbageCollector(*shared, EventRecorder(client, "garbage-collector-controller")),
            NodeLifecycle(*shared, EventRecorder(client, "node-controller"), deadlines=node_deadlines),
            TaintEviction(*shared, EventRecorder(client, "taint-eviction-controller")),
            PodGc(*shared, EventRecorder(client, "pod-garbage-collector"), kept_finished=kept_finished_pods),
            NodeIpam(
                *shared,
                EventRecorder(client, "cidrAllocator"),
                cluster_cidr=cluster_cidr,
                mask_sizes=node_cidr_mask_sizes,
            ),
            Disruption(*shared, EventRecorder(client, "controllermanager")),
            ResourceQuotas(*shared, EventRecorder(client, "resourcequota-controller")),
            VolumeBinder(*shared, EventRecorder(client, "persistentvolume-controller")),
            VolumeProtection(*shared, EventRecorder(client, "volume-protection-controller")),
            EphemeralVolumes(*shared, EventRecorder(client, "ephemeral_volume")),
            CsrApproving(*shared, EventRecorder(client, "certificate-controller")),
            CsrSigning(*shared, EventRecorder(client, "certificate-controller"), issuer=issuer),
            CsrCleaner(*shared, EventRecorder(client, "certificate-controller")),
            BootstrapTokens(*shared, EventRecorder(client, "bootstrap-token-controller")),
            ClusterRoles(*shared, EventRecorder(client, "clusterrole-aggregation-controller")),
            ServiceAccounts(*shared, EventRecorder(client, "service-account-controller"), root_ca=root_ca),
        ]
        if cluster_dns:
            recorder = EventRecorder(client, "cluster-dns-controller")
            self._controllers.append(ClusterDns(*shared, recorder, address=cluster_dns))
        if load_balancer_addresses:
            recorder = EventRecorder(client, "service-controller")
            self._controllers.append(LoadBalancers(*shared, recorder, addresses=load_balancer_addresses))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controllers", daemon=True)

    def start(self) -> None:
        """Start watching now and working as soon as the first lists are in."""
        self._thread.start()

    def stop(self) -> None:
        """End all workers and watches; returns within about a second."""
        self._stopping.set()
        for controller in self._controllers:
            controller.queue.shut_down()
        self._informers.stop()
        for controller in self._controllers:
            controller.stop()

    def _run(self) -> None:
        began = time.monotonic()
        self._informers.start()
        while not self._informers.wait_synced(0.5):
            if self._stopping.is_set():
                return
        for controller in self._controllers:
            controller.start()
        log.info(
            "Started controllers count=%d ms=%d", len(self._controllers), (time.monotonic() - began) * 1000
        )
