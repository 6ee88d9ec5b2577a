"""What the agent believes about one pod in the runtime, as plain frozen values.

The decisions (actions.py, status.py) see only these and the pod's JSON, so that they can be tested with
tables and no runtime. pleg.py builds them from RuntimeService's lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]

RUNTIME_NAME = "kubelet-py"

# Labels and annotations on what the runtime keeps: upstream's names, so that tools recognise them and a
# new agent can adopt what an old one started.
LABEL_POD_NAME = "io.kubernetes.pod.name"
LABEL_POD_NAMESPACE = "io.kubernetes.pod.namespace"
LABEL_POD_UID = "io.kubernetes.pod.uid"
LABEL_CONTAINER_NAME = "io.kubernetes.container.name"
ANNOTATION_HASH = "io.kubernetes.container.hash"
ANNOTATION_MESSAGE_PATH = "io.kubernetes.container.terminationMessagePath"
ANNOTATION_MESSAGE_POLICY = "io.kubernetes.container.terminationMessagePolicy"
ANNOTATION_USER = "kubelet-py/user"
ANNOTATION_MESSAGE_FILE = "kubelet-py/termination-message-file"

# The mirror of a static pod, as upstream writes it.
ANNOTATION_CONFIG_HASH = "kubernetes.io/config.hash"
ANNOTATION_CONFIG_MIRROR = "kubernetes.io/config.mirror"
ANNOTATION_CONFIG_SOURCE = "kubernetes.io/config.source"
ANNOTATION_CONFIG_SEEN = "kubernetes.io/config.seen"
# Where a pod may come from: the values of kubernetes.io/config.source.
API_SOURCE, FILE_SOURCE, HTTP_SOURCE = "api", "file", "http"


@dataclass(frozen=True, slots=True)
class UserView:
    """Who a container's first process is; `groups` are all that it has, its own included."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def user_text(uid: int, gid: int, groups: Iterable[int]) -> str:
    """A user as an annotation; `user_from` reads it."""
    return f"{uid}:{gid}:{','.join(map(str, sorted({gid, *groups})))}"


def user_from(text: str) -> UserView | None:
    """None for a container of an agent that did not write it down."""
    uid, _, rest = text.partition(":")
    gid, _, groups = rest.partition(":")
    return UserView(int(uid), int(gid), tuple(map(int, groups.split(",")))) if groups else None


@dataclass(frozen=True, slots=True)
class ContainerView:
    """One attempt of one container. Times are epoch seconds; `state` is CRI's word without its prefix."""

    id: str
    name: str
    sandbox_id: str
    attempt: int
    state: str  # CREATED RUNNING EXITED UNKNOWN
    image: str = ""
    image_id: str = ""
    spec_hash: str = ""
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    exit_code: int | None = None
    reason: str = ""
    message: str = ""
    user: UserView | None = None


@dataclass(frozen=True, slots=True)
class SandboxView:
    """One attempt of the pod's namespaces."""

    id: str
    attempt: int
    ready: bool
    created_at: float = 0.0
    netns: str = ""
    cgroup: str = ""  # the one that its containers' are in
    host_network: bool = False
    ips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PodView:
    """Everything the runtime holds for one pod, newest first."""

    uid: str
    sandboxes: tuple[SandboxView, ...] = ()
    containers: tuple[ContainerView, ...] = ()

    def attempts(self, name: str) -> tuple[ContainerView, ...]:
        """All attempts of one container, newest first."""
        return tuple(c for c in self.containers if c.name == name)

    def latest(self, name: str) -> ContainerView | None:
        for container in self.containers:
            if container.name == name:
                return container
        return None

    def running(self) -> tuple[ContainerView, ...]:
        return tuple(c for c in self.containers if c.state in ("RUNNING", "CREATED", "UNKNOWN"))

    @property
    def sandbox(self) -> SandboxView | None:
        return self.sandboxes[0] if self.sandboxes else None

    @property
    def ips(self) -> tuple[str, ...]:
        sandbox = self.sandbox
        return sandbox.ips if sandbox is not None and sandbox.ready else ()


@dataclass(frozen=True, slots=True)
class Health:
    """What the probes say of one running container.

    `started` and `ready` are True when there is no such probe; `failed` names the probe ("liveness" or
    "startup") that went over its failure threshold, so that the container has to be killed.
    """

    started: bool = True
    ready: bool = True
    failed: str = ""


NO_HEALTH = Health()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a container is not there: `state.waiting`."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """The node's decision to end a pod: `reason` and `message` of its status, at most `grace` seconds for it
    (None: its own), and the text of its DisruptionTarget condition ("" for none)."""

    reason: str
    message: str
    grace: float | None = None
    disruption: str = ""


def timestamp(epoch: float) -> str:
    """RFC 3339 in UTC with seconds, as metav1.Time is written."""
    return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def epoch(text: str) -> float:
    """Seconds of an RFC 3339 time as the API writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def containers(pod: Mapping[str, Any]) -> list[Object]:
    """The main containers of the pod."""
    return list(pod["spec"].get("containers") or ())


def init_containers(pod: Mapping[str, Any]) -> list[Object]:
    return list(pod["spec"].get("initContainers") or ())


def ephemeral_containers(pod: Mapping[str, Any]) -> list[Object]:
    return list(pod["spec"].get("ephemeralContainers") or ())


def every_container(pod: Mapping[str, Any]) -> list[Object]:
    return init_containers(pod) + containers(pod) + ephemeral_containers(pod)


def is_restartable(container: Mapping[str, Any]) -> bool:
    """Is this init container a sidecar (restartPolicy: Always)?"""
    return container.get("restartPolicy") == "Always"


def uid_of(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["uid"])


def full_name(pod: Mapping[str, Any]) -> str:
    """name_namespace(uid), as upstream prints a pod in events and logs."""
    metadata = pod["metadata"]
    return f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"


def source_of(pod: Mapping[str, Any]) -> str:
    """API_SOURCE, FILE_SOURCE or HTTP_SOURCE."""
    return str((pod["metadata"].get("annotations") or {}).get(ANNOTATION_CONFIG_SOURCE, API_SOURCE))


def is_static(pod: Mapping[str, Any]) -> bool:
    """Does the pod come from a manifest on this node? (its mirror in the API has the mirror annotation)"""
    return source_of(pod) != API_SOURCE


def is_mirror(pod: Mapping[str, Any]) -> bool:
    return ANNOTATION_CONFIG_MIRROR in (pod["metadata"].get("annotations") or {})


def host_network(pod: Mapping[str, Any]) -> bool:
    return bool(pod["spec"].get("hostNetwork"))
