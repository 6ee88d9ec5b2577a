"""Starting one container of a pod whose sandbox and volumes are ready: look up, describe, create, start."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kubelet_py.config import Config
from kubelet_py.errors import (
    ContainerConfigError,
    ContainerError,
    CreateContainerError,
    ImageError,
    NodeError,
    RunContainerError,
    VolumeError,
)
from kubelet_py.paths import NodePaths
from kubelet_py.pods import app_armor, environment, files, resources, security, timeline
from kubelet_py.pods.actions import Start, spec_hash
from kubelet_py.pods.container_spec import Facts, Mount, oci_spec
from kubelet_py.pods.context import NodeFacts, ObjectSource
from kubelet_py.pods.held_start import HeldStart, may_be_held
from kubelet_py.pods.host_devices import host_devices
from kubelet_py.pods.image_puller import ImagePuller
from kubelet_py.pods.image_volumes import Ids, image_volumes
from kubelet_py.pods.model import (
    ANNOTATION_HASH,
    ANNOTATION_MESSAGE_FILE,
    ANNOTATION_MESSAGE_PATH,
    ANNOTATION_MESSAGE_POLICY,
    ANNOTATION_USER,
    LABEL_CONTAINER_NAME,
    LABEL_POD_NAME,
    LABEL_POD_NAMESPACE,
    LABEL_POD_UID,
    Object,
    PodView,
    host_network,
    is_static,
    uid_of,
    user_text,
)
from kubelet_py.pods.timeline import Timelines
from kubelet_py.volumes.manager import VolumeManager
from kubelet_py.volumes.plugin import Volumes
from runtime import users
from runtime.errors import RuntimeFailure, UserError
from runtime.images.store import Image
from runtime.kernel import Kernel
from runtime.sandbox_start import SandboxStart
from runtime.service import ContainerConfig, RuntimeService

log = logging.getLogger(__name__)

Event = Callable[[Object, str, str, str, str], None]
"""(pod, container name or "", Normal or Warning, reason, message)"""


class ContainerStarter:
    def __init__(
        self,
        *,
        paths: NodePaths,
        config: Config,
        runtime: RuntimeService,
        images: ImagePuller,
        volumes: VolumeManager,
        objects: ObjectSource,
        kernel: Kernel,
        services: Callable[[], Sequence[Object] | None],
        node: NodeFacts,
        event: Event,
        timelines: Timelines,
        cpus: Callable[[str, str], str] = lambda uid, name: "",
        ids: Ids = lambda pod: (0, 0),
    ) -> None:
        """`cpus(pod uid, container name)`: the processors it may use, "" for any. `ids(pod)`: its users."""
        self._cpus = cpus
        self._ids = ids
        self._timelines = timelines
        self._paths = paths
        self._config = config
        self._runtime = runtime
        self._images = images
        self._volumes = volumes
        self._objects = objects
        self._kernel = kernel
        self._services = services
        self._node = node
        self._event = event
        self._app_armor = app_armor.Profiles(enabled=app_armor.enabled())
        self._selinux = security.selinux_enabled()
        self._users: dict[tuple[str, str], users.User] = {}
        self._lock = threading.Lock()

    def start(
        self,
        pod: Object,
        container: Object,
        start: Start,
        sandbox_id: str,
        view: PodView,
        volumes: Volumes,
        held: Callable[[], HeldStart | None] = lambda: None,
    ) -> str:
        """Image → description → create → start; its id. Raises ContainerError; events are told here. `held`
        gives the container if it was set up before; it is asked when nothing but the start is left to do."""
        name = container["name"]
        tell, secrets = self._teller(pod, name), self._pull_secrets(pod)
        try:
            with self._timelines.step(pod["metadata"]["uid"], timeline.IMAGE, name, goes_on=True):
                image = self._images.ensure(pod, container, tell, secrets)
                shown = image_volumes(pod, container, self._images, self._volumes, tell, secrets, self._ids)
            if (ready := held()) is not None:
                return self._release(pod, ready)
            config = self.describe(pod, container, start.attempt, image, view.ips, {**volumes, **shown})
            if container.get("targetContainerName"):
                config = self._beside(config, container["targetContainerName"], view)
        except (ImageError, ContainerConfigError, CreateContainerError) as error:
            what = error.reason if isinstance(error, ImageError) else error
            self._event(pod, name, "Warning", "Failed", f"Error: {what}")
            raise
        identifier = self._create_and_start(pod, name, sandbox_id, config)
        self._link_log(pod, name, identifier, config.log_path)
        return identifier

    def _beside(self, config: ContainerConfig, target: str, view: PodView) -> ContainerConfig:
        """An ephemeral container sees the processes of its target: it joins that PID namespace."""
        found = view.latest(target)
        if found is None or found.state != "RUNNING":
            raise ContainerConfigError(f'unable to find target container "{target}"')
        pid = self._runtime.container(found.id).pid
        namespaces = [{"type": "pid", "path": f"/proc/{pid}/ns/pid"}]
        linux = {**config.spec["linux"], "namespaces": namespaces}
        return replace(config, spec={**config.spec, "linux": linux})

    def _create_and_start(self, pod: Object, name: str, sandbox_id: str, config: ContainerConfig) -> str:
        uid = pod["metadata"]["uid"]
        try:
            with self._timelines.step(uid, timeline.CREATE, name):
                identifier = self._runtime.create_container(sandbox_id, config)
        except (RuntimeFailure, OSError) as error:
            self._event(pod, name, "Warning", "Failed", f"Error: {error}")
            raise CreateContainerError(str(error)) from error
        self._run(pod, name, lambda: self._runtime.start_container(identifier))
        return identifier

    def _run(self, pod: Object, name: str, start: Callable[[], object]) -> None:
        """A container that is created. Raises RunContainerError."""
        self._event(pod, name, "Normal", "Created", f"Created container: {name}")
        try:
            with self._timelines.step(pod["metadata"]["uid"], timeline.START, name):
                start()
        except (RuntimeFailure, OSError) as error:
            self._event(pod, name, "Warning", "Failed", f"Error: {error}")
            raise RunContainerError(str(error)) from error
        self._event(pod, name, "Normal", "Started", f"Started container {name}")

    def hold(
        self, pod: Object, container: Object, start: Start, sandbox: SandboxStart, volumes: Volumes
    ) -> HeldStart | None:
        """Have the first container of a pod that is being made set up meanwhile; to be given to `start`, or
        to `drop`. None where that cannot be, for whatever reason: `start` tells it."""
        if sandbox.config.runtime_handler or not may_be_held(pod, container):
            return None
        image = self._images.present(container)
        if image is None:
            return None
        said: list[tuple[Object, str, str, str, str]] = []
        try:
            config = self.describe(
                pod, container, start.attempt, image, (), volumes, lambda *event: said.append(event)
            )
            with self._timelines.step(pod["metadata"]["uid"], timeline.CREATE, config.name) as step:
                held = self._runtime.hold_container(sandbox, config)
                step.void = held is None
        except (ContainerError, OSError):
            return None
        if held is None:
            return None
        return HeldStart(config.name, sandbox.id, config.log_path, held, tuple(said))

    def drop(self, held: HeldStart) -> None:
        """Nobody wants it any more."""
        self._runtime.drop_container(held.container)

    def _release(self, pod: Object, held: HeldStart) -> str:
        for event in held.said:
            self._event(*event)
        self._run(pod, held.name, lambda: self._runtime.release_container(held.container))
        self._link_log(pod, held.name, held.container.id, held.log_path)
        return held.container.id

    def _pull_secrets(self, pod: Object) -> Callable[[str], Object | None]:
        lookup = self._objects.lookup(pod)

        def secret(secret_name: str) -> Object | None:
            try:
                return lookup("secret", secret_name)
            except VolumeError as error:
                log.info("Failed to read pull secret name=%s error=%s", secret_name, error)
                return None

        return secret

    def _teller(self, pod: Object, container: str) -> Callable[[str, str, str], None]:
        return lambda kind, reason, message: self._event(pod, container, kind, reason, message)

    def describe(
        self,
        pod: Object,
        container: Object,
        attempt: int,
        image: Image,
        ips: tuple[str, ...],
        volumes: Volumes,
        tell: Event | None = None,
    ) -> ContainerConfig:
        """The runtime's ContainerConfig. Raises ContainerConfigError, CreateContainerError. `tell`: who is
        told of events in place of the API."""
        metadata, name, node = pod["metadata"], container["name"], self._node
        values = self._environment(pod, container, ips, tell or self._event)
        context = security.effective(pod, container)
        user = self._user(image, security.wanted_user(context, image.config.get("User") or ""))
        where = f'pod: "{metadata["name"]}_{metadata["namespace"]}({metadata["uid"]})", container: {name}'
        security.check_non_root(context, user, image.config.get("User") or "", where)
        message_file = self._message_file(pod, container, attempt)
        spec = oci_spec(
            pod,
            container,
            Facts(
                argv=environment.command_line(container, image.config, values),
                environment=values,
                user=user,
                image_config=image.config,
                mounts=self._mounts(pod, container, values, message_file, volumes),
                resources=self._resources(pod, container),
                oom_score_adj=resources.oom_score_adj(pod, container, node.memory_bytes),
                hostname=files.nodename_of(pod, node.name, self._config.cluster_domain),
                shm=self._shm(pod),
                seccomp_default=self._config.seccomp_default,
                devices=host_devices() if context.get("privileged") else (),
                localhost_seccomp=security.localhost_profile(self._paths.state / "seccomp", context),
                app_armor=self._app_armor.provide(context),
                selinux=self._selinux,
            ),
        )
        folder = self.log_folder(pod) / name
        folder.mkdir(parents=True, exist_ok=True)
        return ContainerConfig(
            name=name,
            attempt=attempt,
            image=image.repo_tags[0] if image.repo_tags else container["image"],
            image_id=image.repo_digests[0] if image.repo_digests else image.id,
            spec=spec,
            layers=image.layers,
            log_path=str(folder / f"{attempt}.log"),
            tty=bool(container.get("tty")),
            stdin=bool(container.get("stdin")),
            stdin_once=bool(container.get("stdinOnce")),
            stop_signal=image.config.get("StopSignal") or "SIGTERM",
            labels={
                LABEL_POD_NAME: metadata["name"],
                LABEL_POD_NAMESPACE: metadata["namespace"],
                LABEL_POD_UID: metadata["uid"],
                LABEL_CONTAINER_NAME: name,
            },
            annotations={
                ANNOTATION_HASH: spec_hash(container),
                ANNOTATION_USER: user_text(user.uid, user.gid, security.supplemental_groups(pod, user)),
                ANNOTATION_MESSAGE_FILE: str(message_file),
                ANNOTATION_MESSAGE_PATH: container.get("terminationMessagePath") or "/dev/termination-log",
                ANNOTATION_MESSAGE_POLICY: container.get("terminationMessagePolicy") or "File",
            },
        )

    def _resources(self, pod: Object, container: Object) -> dict[str, Any]:
        answer = resources.container_resources(container, self._node.rules)
        if cpus := self._cpus(uid_of(pod), container["name"]):
            answer["cpu"]["cpus"] = cpus
        return answer

    def _shm(self, pod: Object) -> str:
        if pod["spec"].get("hostIPC"):
            return "/dev/shm"
        return str(self._paths.pods / uid_of(pod) / files.SHM)

    def log_folder(self, pod: Object) -> Path:
        """`var/log/pods/<namespace>_<name>_<uid>`, as log collectors expect."""
        metadata = pod["metadata"]
        return self._paths.pod_logs / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"

    def field_facts(self, pod: Object, ips: tuple[str, ...]) -> dict[str, str]:
        """status.* of fieldRef: what is known of addresses now."""
        node = self._node
        own = node.ips if host_network(pod) else ips
        return {
            "status.hostIP": node.ips[0] if node.ips else "",
            "status.hostIPs": ",".join(node.ips),
            "status.podIP": own[0] if own else "",
            "status.podIPs": ",".join(own),
        }

    def _environment(
        self, pod: Object, container: Object, ips: tuple[str, ...], tell: Event
    ) -> dict[str, str]:
        services = self._services()
        if services is None:
            if not is_static(pod):  # which may be the very API server that does not answer
                text = "services have not yet been read at least once, cannot construct envvars"
                raise ContainerConfigError(text)
            services = []
        namespace, lookup = pod["metadata"]["namespace"], self._objects.lookup(pod)
        try:
            return environment.container_environment(
                pod,
                container,
                services=environment.service_variables(
                    services, namespace, pod["spec"].get("enableServiceLinks", True) is not False
                ),
                lookup=lookup,
                facts=self.field_facts(pod, ips),
                allocatable=self._node.allocatable,
                skipped=partial(_tell_skipped, tell, pod, container["name"]),
            )
        except ContainerConfigError:
            raise
        except (NodeError, ValueError) as error:
            raise ContainerConfigError(str(error)) from error

    def _user(self, image: Image, wanted: str) -> users.User:
        key = (image.id, wanted)
        found = self._users.get(key)
        if found is None:
            try:
                # Policy Merge: the image's groups of the user, whichever group is its first.
                found = users.lookup(self._kernel, image.layers, wanted, keep_groups=True)
            except (UserError, OSError) as error:
                raise ContainerConfigError(str(error)) from error
            with self._lock:
                self._users[key] = found
        return found

    def _message_file(self, pod: Object, container: Object, attempt: int) -> Path:
        folder = self._paths.pods / uid_of(pod) / "containers" / container["name"]
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.message") if attempt > 1 else ():
            if old.stem.isdigit() and int(old.stem) < attempt - 1:
                old.unlink()
        file: Path = folder / f"{attempt}.message"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.fchmod(descriptor, 0o666)  # any user of the container may write its last words
        finally:
            os.close(descriptor)
        return file

    def _mounts(
        self,
        pod: Object,
        container: Object,
        values: dict[str, str],
        message_file: Path,
        volumes: Volumes,
    ) -> list[Mount]:
        folder = self._paths.pods / uid_of(pod)
        try:
            mounts = self._volumes.mounts(uid_of(pod), container, volumes, values)
        except VolumeError as error:
            raise ContainerConfigError(str(error)) from error
        mounts += files.managed_mounts(container, folder, True)
        path = container.get("terminationMessagePath") or "/dev/termination-log"
        if all(mount.destination != path for mount in mounts):
            mounts.append(Mount(str(message_file), path))
        return mounts

    def _link_log(self, pod: Object, name: str, identifier: str, log_path: str) -> None:
        """`var/log/containers/<pod>_<namespace>_<container>-<id>.log`, for log collectors."""
        metadata = pod["metadata"]
        folder = self._paths.container_logs
        link = folder / f"{metadata['name']}_{metadata['namespace']}_{name}-{identifier}.log"
        try:
            try:
                os.symlink(log_path, link)
            except FileNotFoundError:
                folder.mkdir(parents=True, exist_ok=True)
                os.symlink(log_path, link)
        except OSError as error:
            log.warning("Failed to link log link=%s error=%s", link, error.strerror)


def _tell_skipped(
    tell: Event, pod: Object, container: str, kind: str, name: str, keys: Sequence[str]
) -> None:
    what = {"configmap": "configMap", "secret": "secret"}[kind]
    text = (
        f"Keys [{', '.join(keys)}] from the EnvFrom {what} {pod['metadata']['namespace']}/{name} were "
        "skipped since they are considered invalid environment variable names."
    )
    tell(pod, container, "Warning", "InvalidEnvironmentVariableNames", text)
