"""Which endpoints serve a Service port on this node: PURE.

Ready endpoints serve. When there is none, those that are terminating but still serving do, so that a
rollout does not drop connections (KEP-1669). The traffic policies restrict the choice to this node's.
Source: upstream's pkg/proxy/topology.go (CategorizeEndpoints), without zone hints.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proxy.changes import Endpoint, ServicePort


@dataclass(frozen=True, slots=True)
class Reachable:
    """`internal` for the cluster IP, `external` for node ports and load balancers.

    `cluster` and `local` are the endpoints of each policy, `local` empty when no policy asks for it.
    """

    cluster: tuple[Endpoint, ...]
    local: tuple[Endpoint, ...]
    internal: tuple[Endpoint, ...]
    external: tuple[Endpoint, ...]


def reachable(port: ServicePort, endpoints: Iterable[Endpoint]) -> Reachable:
    found = tuple(endpoints)
    cluster = _serving(found)
    asked = port.internal_local or (port.external_local and bool(port.node_port or port.ingress_ips))
    local = _serving(tuple(e for e in found if e.local)) if asked else ()
    return Reachable(
        cluster=cluster,
        local=local,
        internal=local if port.internal_local else cluster,
        external=local if port.external_local else cluster,
    )


def _serving(endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    ready = tuple(e for e in endpoints if e.ready)
    return ready or tuple(e for e in endpoints if e.serving and e.terminating)
