"""What the agent remembers of one pod, and the parts that everything done to a pod works with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kubeclient.rest import RestClient
from kubelet_py.pods.admission import Gate, Requests
from kubelet_py.pods.backoff import MAXIMUM, BackoffEntry
from kubelet_py.pods.containers import ContainerStarter, Event
from kubelet_py.pods.context import NodeFacts, ObjectSource, TokenSource
from kubelet_py.pods.cpu_manager import CpuManager
from kubelet_py.pods.held_start import HeldStart
from kubelet_py.pods.image_puller import ImagePuller
from kubelet_py.pods.model import Ending, Object, Waiting
from kubelet_py.pods.pleg import Pleg
from kubelet_py.pods.prober import Prober
from kubelet_py.pods.references import Key, changes, references
from kubelet_py.pods.resize import Progress, Table, with_resources
from kubelet_py.pods.resizer import Resizer
from kubelet_py.pods.sandboxes import Sandboxes
from kubelet_py.pods.status_manager import StatusManager
from kubelet_py.pods.timeline import Timelines
from kubelet_py.volumes.manager import VolumeManager
from kubelet_py.volumes.plugin import Volume
from runtime.service import RuntimeService


@dataclass(slots=True)
class PodRecord:
    """One pod of this node, with what only the agent remembers. Its worker alone changes it, but for
    `pod`, `gone`, `requests`, `released`, `ending` and `stale`."""

    pod: Object  # with the resources that the node has agreed to
    seen_at: float
    synced: Object | None = None  # the pod as its worker saw it last
    gone: bool = False  # the API (or the manifest folder) has it no more
    finished: bool = False  # phase Succeeded or Failed: never runs again
    cleaned: bool = False  # and what it held was given back
    deleted: bool = False  # everything is gone, the record too
    requests: Requests | None = None  # what it takes of the node, once it was let in
    released: bool = False  # and then nothing any more
    ending: Ending | None = None  # the node's decision to end it, for its worker to carry out
    failure: Waiting | None = None  # why the node ended it
    wanted: Object = field(default_factory=dict)  # the pod as the API has it
    allocated: Table | None = None  # the containers' resources that the node has agreed to
    resize: Progress = field(default_factory=Progress)
    restarting: frozenset[str] = frozenset()  # containers that start anew for a resize
    returning: frozenset[str] = frozenset()  # ids of the attempts that were killed to come back
    volumes: dict[str, Volume] | None = None
    stale: bool = False  # something that its volumes show has changed
    shown: tuple[object, object] | None = None  # the labels and annotations that its volumes show
    refreshed_at: float = 0.0  # monotonic second at which its volumes were last looked at
    waiting: dict[str, Waiting] = field(default_factory=dict)
    backoffs: dict[str, BackoffEntry] = field(default_factory=dict)
    held: HeldStart | None = None  # its first container, set up while the pod was made
    failures: int = 0  # of its starts, one after another
    status: Object | None = None  # what was last said of it
    mirrored: bool = False  # and goes on from what a static pod's mirror said when it was found
    ending_since: float | None = None
    kill_at: float | None = None  # epoch second at which what still runs is killed
    nudge: threading.Event = field(default_factory=threading.Event)  # wakes a worker that waits for a hook

    _referred: tuple[Object, frozenset[Key], bool] | None = None

    @property
    def references(self) -> frozenset[Key]:
        """The objects that the pod names."""
        return self._read()[1]

    @property
    def changing(self) -> bool:
        """Whether it has a volume whose content may change while it runs."""
        return self._read()[2]

    def _read(self) -> tuple[Object, frozenset[Key], bool]:
        """Worked out once per version of the pod: the agent's loop asks every second."""
        pod, known = self.pod, self._referred
        if known is None or known[0] is not pod:
            known = self._referred = (pod, references(pod), changes(pod))
        return known

    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.wanted = self.pod

    def take(self, pod: Object) -> None:
        """The API has the pod like this now."""
        with self._lock:
            self.wanted = pod
            self.pod = with_resources(pod, self.allocated) if self.allocated else pod

    def allocate(self, allocated: Table) -> None:
        """The node has agreed to these resources."""
        with self._lock:
            self.allocated = allocated
            self.pod = with_resources(self.wanted, allocated) if allocated else self.wanted

    def take_held(self, name: str, sandbox_id: str) -> HeldStart | None:
        """The container `name`, if it was set up in this sandbox. It is the caller's then."""
        held = self.held
        if held is None or (held.name, held.sandbox_id) != (name, sandbox_id):
            return None
        self.held = None
        return held

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def emptied(self) -> bool:
        return self.cleaned or self.deleted

    @property
    def ends(self) -> bool:
        return self.gone or bool(self.pod["metadata"].get("deletionTimestamp"))


def census(records: Sequence[PodRecord]) -> str:
    """PURE. How many pods there are, each counted once: one that ends is still in phase Running, too."""
    staying = [record for record in records if not record.ends]
    running = sum(1 for record in staying if (record.status or {}).get("phase") == "Running")
    return (
        f"running {running} pods, {len(staying) - running} not running, {len(records) - len(staying)} ending"
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """What the syncer works with."""

    runtime: RuntimeService
    sandboxes: Sandboxes
    volumes: VolumeManager
    starter: ContainerStarter
    pleg: Pleg
    prober: Prober
    puller: ImagePuller
    statuses: StatusManager
    objects: ObjectSource
    tokens: TokenSource
    gate: Gate
    cpus: CpuManager
    resizer: Resizer
    node: NodeFacts
    node_object: Callable[[], Object]
    event: Event
    client: RestClient | None
    timelines: Timelines
    mirror: Callable[[Object], Object | None]  # a static pod's image in the API
    longest_wait: float = MAXIMUM  # seconds between two restarts of a container
