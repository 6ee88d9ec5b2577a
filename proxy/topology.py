"""Which endpoints serve a Service port on this node: PURE.

Ready endpoints serve. When there is none, those that are terminating but still serving do, so that a
rollout does not drop connections (KEP-1669). The traffic policies restrict the choice to this node's;
otherwise hints of the EndpointSlice controller (topology-aware routing, trafficDistribution) do to this
node's or this zone's, as long as every ready endpoint has one and one is for us.
Source: upstream's pkg/proxy/topology.go (CategorizeEndpoints).
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where this proxy runs."""

    node: str = ""
    zone: str = ""


NOWHERE = Place()


def reachable(port: ServicePort, endpoints: Iterable[Endpoint], place: Place = NOWHERE) -> Reachable:
    found = tuple(endpoints)
    cluster = _serving(_meant_for(found, place))
    asked = port.internal_local or (port.external_local and port.external)
    local = _serving(tuple(e for e in found if e.local)) if asked else ()
    return Reachable(
        cluster=cluster,
        local=local,
        internal=local if port.internal_local else cluster,
        external=local if port.external_local else cluster,
    )


def _meant_for(endpoints: tuple[Endpoint, ...], place: Place) -> tuple[Endpoint, ...]:
    ready = [e for e in endpoints if e.ready]
    if not ready or not (ready[0].zones or ready[0].nodes):
        return endpoints
    if place.node and all(e.nodes for e in ready) and any(place.node in e.nodes for e in ready):
        return tuple(e for e in endpoints if place.node in e.nodes)
    if place.zone and all(e.zones for e in ready) and any(place.zone in e.zones for e in ready):
        return tuple(e for e in endpoints if place.zone in e.zones)
    return endpoints


def _serving(endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    ready = tuple(e for e in endpoints if e.ready)
    return ready or tuple(e for e in endpoints if e.serving and e.terminating)
