"""The runtime service: CRI's verbs for the agent, over one shim per pod.

It holds nothing that is not on disk or in a shim. Every method may be called from any thread; one thread
of its own waits for all shims and calls the subscribers. Killing the process that holds it changes
nothing for the containers: the next `start` finds the shims by their folders and goes on.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from runtime import recovery, shim_link, state
from runtime.ahead import Ahead
from runtime.cgroups import CgroupDriver
from runtime.cleaner import Cleaner
from runtime.creation import Creation, plain
from runtime.early_network import EarlyNetwork, SandboxStart, made
from runtime.errors import (
    CgroupError,
    NotFoundError,
    RuntimeFailure,
    ShimError,
    StartError,
)  # fmt: skip
from runtime.forkserver_link import Forkserver
from runtime.gate import Gate
from runtime.held import HeldContainer
from runtime.loop import Loop
from runtime.oci_config import pause_config, signal_number
from runtime.sessions import Sessions
from runtime.shim_link import SHIM_LOST, ShimLink
from runtime.spare_network import SpareNetwork
from runtime.state import CREATED, EXITED, READY, RUNNING, ContainerState, SandboxState
from runtime.streams import Stream
from runtime.values import (
    Container,
    ContainerConfig,
    Event,
    ExecResult,
    OciRuntime,
    Sandbox,
    SandboxConfig,
)  # fmt: skip
from runtime.views import container_from, sandbox_from, with_state

__all__ = [
    "Container", "ContainerConfig", "Event", "ExecResult", "OciRuntime", "RuntimeService", "Sandbox",
    "SandboxConfig",
]  # fmt: skip

log = logging.getLogger(__name__)

START_SECONDS = 60.0
ANSWER_SECONDS = 30.0
ADOPT_SECONDS = 5.0
MISTAKE_PAUSE_SECONDS = 0.1


class RuntimeService:
    """See the module. `run_dir`/sandboxes holds one folder per pod, `state_dir` one per container.
    `runtimes`: handler → the OCI runtime it stands for."""

    def __init__(
        self,
        *,
        run_dir: Path,
        state_dir: Path,
        cgroups: CgroupDriver,
        runtimes: Mapping[str, OciRuntime] | None = None,
    ) -> None:
        self._runtimes = {
            name: runtime if runtime.root else replace(runtime, root=f"{run_dir}/oci/{name}")
            for name, runtime in (runtimes or {}).items()
        }
        self._sandboxes_dir = Path(run_dir) / "sandboxes"
        self._containers_dir = Path(state_dir)
        self._cgroups = cgroups
        self._forkserver = Forkserver()
        self._ahead = Ahead()
        self._networks = SpareNetwork(lambda: made(self._ahead.kernel))
        self._cleaner = Cleaner(cgroups)
        self._creation = Creation(self._containers_dir, self._ahead, self._cleaner)
        self._sessions = Sessions(self._sandboxes_dir, START_SECONDS)
        self._loop = Loop()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run_events, name="runtime-events", daemon=True)
        self._lock = threading.RLock()
        self._sandboxes: dict[str, Sandbox] = {}
        self._containers: dict[str, Container] = {}
        self._links: dict[str, ShimLink] = {}
        self._subscribers: list[Callable[[Event], None]] = []

    # life

    def start(self) -> None:
        """Start the forkserver, adopt what runs, end what has lost its shim. Raises OSError."""
        for folder in (self._sandboxes_dir, self._containers_dir):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._forkserver.start()
        self._ahead.open()
        self._loop.watch(self._wake, lambda mask: self._loop.stop())
        self._adopt()
        self._thread.start()
        self._networks.start()
        self._cleaner.start()

    def close(self) -> None:
        """Let go: shims and containers go on."""
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join()
        self._networks.close()
        self._ahead.close()
        self._cleaner.close()
        for link in self._links.values():
            link.close()
        self._loop.close()
        os.close(self._wake)
        self._forkserver.close()

    def subscribe(self, callback: Callable[[Event], None]) -> None:
        """Have `callback` called, in the event thread, for every change. It must not block."""
        self._subscribers.append(callback)

    # sandboxes

    def run_pod_sandbox(self, config: SandboxConfig) -> Sandbox:
        """Make a pod's namespaces and its shim. Raises StartError, with nothing left behind."""
        return self.begin_pod_sandbox(config).finish()

    def begin_pod_sandbox(
        self, config: SandboxConfig, meanwhile: Callable[[], None] = lambda: None
    ) -> SandboxStart:
        """The same without waiting for it; the network can be wired meanwhile. The caller must call `finish`.
        `meanwhile` is called when the shim has its orders, before pause's cgroup is made. Raises as
        `run_pod_sandbox`, and what `meanwhile` raises."""
        self._runtime(config)
        identifier = os.urandom(32).hex()
        folder = self._sandboxes_dir / identifier
        folder.mkdir(mode=0o700)
        created_at = time.time()
        record = {
            "id": identifier,
            "created_at": created_at,
            "config": plain(config),
            "cgroup": f"{config.cgroup_parent}/{identifier}".lstrip("/"),
            "oci": pause_config(config),
        }
        try:
            link, started, network = self._fork_shim(identifier, folder, record, meanwhile)
        except (OSError, ShimError) as error:
            raise self._failed(identifier, folder, config, error) from error
        except BaseException:
            self._abandon(identifier, folder)
            raise

        def wait() -> Sandbox:
            try:
                answer = link.receive("start sandbox", started, START_SECONDS)
                if "error" in answer:
                    self._abandon(identifier, folder)
                    raise StartError(answer["error"])
                found = state.sandbox_state_from(answer["sandbox"])
                return self._begun(sandbox_from(identifier, created_at, config, found), folder)
            except ShimError as error:
                raise self._failed(identifier, folder, config, error) from error
            finally:
                self._listen(identifier, link)

        return SandboxStart(identifier, config, network, wait)

    def _failed(self, identifier: str, folder: Path, config: SandboxConfig, error: Exception) -> StartError:
        self._abandon(identifier, folder)
        pod = f"{config.namespace}/{config.name}"
        return StartError(f"Could not create sandbox for pod {pod}: {error}")

    def _begun(self, sandbox: Sandbox, folder: Path) -> Sandbox:
        """It is known from here on; what its shim has told before nobody has heard."""
        with self._lock:
            self._sandboxes[sandbox.id] = sandbox
            lost = sandbox.id not in self._links
        if lost:
            self._end_lost(sandbox.id)
        elif (found := recovery.sandbox_state(folder)).exited_at is not None:
            self._sandbox_changed(sandbox.id, found)
        return self._sandboxes[sandbox.id]

    def _fork_shim(
        self, identifier: str, folder: Path, record: Mapping[str, Any], meanwhile: Callable[[], None]
    ) -> tuple[ShimLink, SimpleQueue[dict[str, Any]], EarlyNetwork | None]:
        """Where its answer comes. The shim gets ready while we make the network namespace and prepare pause's
        start, and begins when it is greeted."""
        with shim_link.listen(str(folder)) as listener:
            connection = self._forkserver.fork_shim(str(folder), str(self._containers_dir), listener)
        link = self._watch_shim(identifier, connection)
        try:
            return self._greet_shim(link, folder, record, meanwhile)
        except BaseException:
            self._listen(identifier, link)
            raise

    def _greet_shim(
        self, link: ShimLink, folder: Path, record: Mapping[str, Any], meanwhile: Callable[[], None]
    ) -> tuple[ShimLink, SimpleQueue[dict[str, Any]], EarlyNetwork | None]:
        started = link.expect(0)
        state.write_json(f"{folder}/sandbox.json", record)
        meanwhile()
        network = EarlyNetwork.of(self._networks.take, record["oci"], folder)
        try:
            self._ahead.pause(str(folder), record, network.join if network else None)
        except Exception:
            # A defect in there must not leave a shim that waits for ever: it starts pause without a program.
            log.exception("Failed to prepare pause sandbox=%s", folder.name)
        try:
            link.tell("hello")
        except ShimError:
            if network is not None:
                network.close()
            raise
        return link, started, network

    def _listen(self, identifier: str, link: ShimLink) -> None:
        """Have the event thread read from now on. Not before pause has started: it would have the
        interpreter's lock in the middle of that."""
        self._loop.watch(link.fileno(), lambda mask: self._read_shim(identifier, link))

    def _watch_shim(self, identifier: str, connection: socket.socket) -> ShimLink:
        link = ShimLink(connection, lambda message: self._handle(identifier, message))
        with self._lock:
            self._links[identifier] = link
        return link

    def _abandon(self, identifier: str, folder: Path) -> None:
        link = self._links.get(identifier)
        if link is not None:
            link.expected_to_end = True
        recovery.end_sandbox(self._cgroups, folder)
        self._cleaner.add(recovery.give_up(folder))
        if link is not None:
            link.hang_up()  # one that was not greeted yet finds that there is nothing for it to do

    def stop_pod_sandbox(self, sandbox_id: str) -> None:
        """Kill everything in the pod, pause included. Idempotent; an unknown id is stopped already."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            return
        link = self._links.get(sandbox_id)
        if link is not None:
            link.expected_to_end = True
            try:
                answer = link.request("end", ANSWER_SECONDS)
                self._sandbox_changed(sandbox_id, state.sandbox_state_from(answer.get("sandbox")))
            except ShimError as error:
                log.warning("Ended pod without its shim sandbox=%s error=%s", sandbox_id[:12], error)
                self._end_lost(sandbox_id)
        if self._sandboxes[sandbox_id].state == READY:
            self._end_lost(sandbox_id)

    def remove_pod_sandbox(self, sandbox_id: str) -> None:
        """Stop it and forget it, with its containers. Idempotent."""
        self.stop_pod_sandbox(sandbox_id)
        for container in self.list_containers():
            if container.sandbox_id == sandbox_id:
                self.remove_container(container.id)
        with self._lock:
            sandbox = self._sandboxes.pop(sandbox_id, None)
        if sandbox is not None:
            self._cleaner.add(recovery.give_up(self._sandboxes_dir / sandbox_id))

    def list_sandboxes(self) -> list[Sandbox]:
        with self._lock:
            return list(self._sandboxes.values())

    # containers

    def create_container(self, sandbox_id: str, config: ContainerConfig) -> str:
        """Write down a container; its 64-digit id. Nothing runs yet. Raises StartError, NotFoundError."""
        sandbox = self._sandbox(sandbox_id)
        container, _ = self._creation.make(sandbox_id, sandbox.config, config, self._runtime(sandbox.config))
        with self._lock:
            self._containers[container.id] = container
        return container.id

    def start_container(self, container_id: str) -> None:
        """Start it. Raises StartError; the container is then EXITED, code 128, reason StartError."""
        link, answer = self._ask(self.container(container_id), "start")
        self._networks.refill()
        self._started(container_id, link.wait("start", answer, START_SECONDS))

    def _started(self, container_id: str, answer: Mapping[str, Any]) -> None:
        if "state" in answer:
            self._container_changed(container_id, state.container_state_from(answer["state"]))
        if "error" in answer:
            raise StartError(answer["error"])

    def hold_container(self, start: SandboxStart, config: ContainerConfig) -> HeldContainer | None:
        """Create a container of a pod that is being made, and have it set up as far as its program (held.py).
        The caller must call `release_container` or `drop_container`, after `start.finish`. One for a pod.
        None if that cannot be done, with this one or now: create it afterwards, which also tells why."""
        link = self._links.get(start.id)
        if link is None or config.tty or start.config.runtime_handler:
            return None
        try:
            container, prepared = self._creation.make(start.id, start.config, config, held=True)
        except RuntimeFailure:
            return None
        if prepared:
            try:
                gate = Gate()
                try:
                    answer = link.send("start", {"container": container.id, "gate": gate.name})
                    return HeldContainer(container, link, gate, answer)
                except ShimError:
                    gate.close()
            except OSError as error:
                log.warning("Failed to hold container=%s error=%s", container.id[:12], error)
        self._cleaner.add(recovery.give_up(self._containers_dir / container.id))
        return None

    def release_container(self, held: HeldContainer) -> str:
        """Have its program run; its id. Raises as `start_container`."""
        with self._lock:
            self._containers[held.id] = held.container
        try:
            opened = held.go()
            self._networks.refill()
            answer = held.wait()
        except ShimError:
            self._end_container(held.container.sandbox_id, held.id)
            raise
        if answer.get("kind") == SHIM_LOST:  # maybe before it was let go: who ended its pod did not know it
            self._end_container(held.container.sandbox_id, held.id)
        if "error" in answer or answer.get("started"):
            self._started(held.id, answer)
            if not opened:  # killed at the gate: nobody knew it when its end was told
                self._container_changed(held.id, recovery.container_state(self._containers_dir / held.id))
        else:
            self.start_container(held.id)
        return held.id

    def drop_container(self, held: HeldContainer) -> None:
        """As if it had never been. Its pod may be gone as well."""
        held.stop()
        with self._lock:
            self._containers[held.id] = held.container
        self.remove_container(held.id)

    def stop_container(self, container_id: str, grace_seconds: float) -> None:
        """Its stop signal, then after `grace_seconds` SIGKILL; returns when it has ended. Idempotent."""
        container = self._containers.get(container_id)
        if container is None or container.state != RUNNING:
            return
        number = signal_number(container.config.stop_signal)
        timeout = max(grace_seconds, 0) + ANSWER_SECONDS
        try:
            answer = self._request(container, "stop", timeout, signal=number, grace=grace_seconds)
        except ShimError:
            self._end_lost(container.sandbox_id)
            return
        if "state" in answer:
            self._container_changed(container_id, state.container_state_from(answer["state"]))

    def remove_container(self, container_id: str) -> None:
        """Kill it if it runs, and forget it. Its log stays. Idempotent."""
        container = self._containers.get(container_id)
        if container is None:
            return
        self.stop_container(container_id, 0)
        link = self._links.get(container.sandbox_id)
        if link is not None:
            try:
                link.send("forget", {"container": container_id})
            except ShimError:
                pass  # a shim that has gone has forgotten everything
        with self._lock:
            if self._containers.pop(container_id, None) is None:
                return
        self._cleaner.add(recovery.give_up(self._containers_dir / container_id))

    def wait_for_removals(self, seconds: float) -> bool:
        """Until the disk has back what removed containers held, or for so long; whether it has."""
        return self._cleaner.wait(seconds)

    def list_containers(self) -> list[Container]:
        with self._lock:
            return list(self._containers.values())

    def container(self, container_id: str) -> Container:
        """Raises NotFoundError."""
        found = self._containers.get(container_id)
        if found is None:
            raise NotFoundError(f"Could not find container {container_id}: no such container")
        return found

    def reopen_log(self, container_id: str) -> None:
        """Go on in a new log file, after the old one was renamed."""
        container = self.container(container_id)
        shim_link.checked("reopen log", self._request(container, "reopen", ANSWER_SECONDS))

    def update_resources(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Change a container's limits (OCI linux.resources). Raises CgroupError, StartError."""
        container = self.container(container_id)
        record = state.read_json(f"{self._containers_dir / container_id}/config.json") or {}
        if record.get("runtime"):
            recovery.by_runtime(
                self._cgroups,
                self._containers_dir / container_id,
                record,
                lambda foreign: foreign.update(resources),
            )
            return
        parent = self._sandbox(container.sandbox_id).config.cgroup_parent
        self._cgroups.open(f"{parent}/{container_id}".lstrip("/")).update(resources)

    # sessions

    def exec(
        self, container_id: str, argv: Sequence[str], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> Stream:
        """Run `argv` in the container with the stream as its stdio. Closing the stream kills it."""
        values = {"argv": list(argv), "tty": tty, "stdin": stdin, "stdout": stdout, "stderr": stderr}
        return self._sessions.open("exec", self.container(container_id), **values)

    def attach(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Stream:
        """Join the stdio of the container's first process. Closing the stream detaches."""
        values = {"tty": tty, "stdin": stdin, "stdout": stdout, "stderr": stderr}
        return self._sessions.open("attach", self.container(container_id), **values)

    def exec_sync(self, container_id: str, argv: Sequence[str], timeout: float | None) -> ExecResult:
        """Run `argv` to its end. Raises StartError, or ExecTimeout when all it started had to be killed."""
        return self._sessions.run(self.container(container_id), argv, timeout)

    # events

    def _run_events(self) -> None:
        while not self._loop.stopped:
            try:
                self._loop.run()
            except Exception:
                # Without this thread the agent would be deaf for good; the next relist finds what was missed.
                log.exception("Event handling failed")
                time.sleep(MISTAKE_PAUSE_SECONDS)

    def _read_shim(self, sandbox_id: str, link: ShimLink) -> None:
        if link.read():
            return
        self._loop.forget(link.fileno())
        with self._lock:
            if self._links.get(sandbox_id) is link:
                del self._links[sandbox_id]
        link.close()
        if not link.expected_to_end:
            log.error("Lost shim sandbox=%s (its containers are killed)", sandbox_id[:12])
            threading.Thread(target=self._end_lost, args=(sandbox_id,), name="runtime-lost").start()

    def _handle(self, sandbox_id: str, message: Mapping[str, Any]) -> None:
        kind, at = message["type"], message["at"]
        if kind == "sandbox-exited":
            found = state.sandbox_state_from(message["sandbox"])
            self._sandbox_changed(sandbox_id, found)
            link = self._links.get(sandbox_id)
            if link is not None and link.expected_to_end:
                return  # who ends it knows, and is not to be waked by that to try the pod's start again
            self._tell(Event(sandbox_id, None, kind, found.exit_code, at))
            return
        container_id = message["container"]
        changed = state.container_state_from(message["state"])
        self._container_changed(container_id, changed)
        self._tell(Event(sandbox_id, container_id, kind, changed.exit_code, at))

    def _tell(self, event: Event) -> None:
        for callback in self._subscribers:
            try:
                callback(event)
            except Exception:
                log.exception("Subscriber failed event=%s sandbox=%s", event.type, event.sandbox_id[:12])

    def _container_changed(self, container_id: str, found: ContainerState) -> None:
        with self._lock:
            known = self._containers.get(container_id)
            if known is not None and known.state != EXITED:
                self._containers[container_id] = with_state(known, found)

    def _sandbox_changed(self, sandbox_id: str, found: SandboxState) -> None:
        with self._lock:
            known = self._sandboxes.get(sandbox_id)
            if known is not None:
                self._sandboxes[sandbox_id] = sandbox_from(known.id, known.created_at, known.config, found)

    # what has lost its shim

    def _end_lost(self, sandbox_id: str) -> None:
        """Kill a pod whose shim is gone, and tell what that ended."""
        with self._lock:
            mine = [c.id for c in self._containers.values() if c.sandbox_id == sandbox_id]
            if sandbox_id not in self._sandboxes:
                return
        try:
            ended = recovery.end_sandbox(self._cgroups, self._sandboxes_dir / sandbox_id)
        except (OSError, CgroupError, ValueError) as error:
            log.error("Could not end pod without shim sandbox=%s error=%s", sandbox_id[:12], error)
            return
        for container_id in mine:
            self._end_container(sandbox_id, container_id)
        self._sandbox_changed(sandbox_id, ended)
        self._tell(Event(sandbox_id, None, "sandbox-exited", ended.exit_code, time.time()))

    def _end_container(self, sandbox_id: str, container_id: str) -> None:
        try:
            found = recovery.end_container(self._cgroups, self._containers_dir / container_id)
        except (OSError, CgroupError, ValueError) as error:
            # It may be removed this moment; the others, and the pod, end all the same.
            log.warning("Could not end container id=%s error=%s", container_id[:12], error)
            return
        if found is not None:
            self._container_changed(container_id, found)
            self._tell(Event(sandbox_id, container_id, "exited", recovery.LOST_CODE, time.time()))

    # adoption

    def _adopt(self) -> None:
        for folder in recovery.owed(self._sandboxes_dir) + recovery.owed(self._containers_dir):
            self._cleaner.add(folder)
        folders = recovery.folders(self._sandboxes_dir)
        for folder, connection in zip(folders, shim_link.greet(map(str, folders)), strict=True):
            self._adopt_sandbox(folder, connection)
        for folder in recovery.folders(self._containers_dir):
            self._adopt_container(folder)

    def _adopt_sandbox(self, folder: Path, greeting: socket.socket | OSError) -> None:
        record = state.read_json(f"{folder}/sandbox.json")
        if record is None:
            if isinstance(greeting, socket.socket):
                greeting.close()
            recovery.end_sandbox(self._cgroups, folder)
            self._cleaner.add(recovery.give_up(folder))
            return
        identifier = folder.name
        try:
            # Subscribed before the state files are read, so that no change falls in between.
            connection = shim_link.greeted(greeting, ADOPT_SECONDS)
        except (OSError, ShimError) as error:
            log.warning("Ended pod whose shim does not answer sandbox=%s error=%s", identifier[:12], error)
            found = recovery.end_sandbox(self._cgroups, folder)
        else:
            link = self._watch_shim(identifier, connection)
            self._listen(identifier, link)
            found = recovery.sandbox_state(folder)
        config = SandboxConfig(**record["config"])
        self._sandboxes[identifier] = sandbox_from(identifier, record["created_at"], config, found)

    def _adopt_container(self, folder: Path) -> None:
        record = state.read_json(f"{folder}/config.json")
        if record is None or record["sandbox"] not in self._sandboxes:
            recovery.end_container(self._cgroups, folder)
            self._cleaner.add(recovery.give_up(folder))
            return
        if record["sandbox"] not in self._links:
            recovery.end_container(self._cgroups, folder)
        config = ContainerConfig(**{**record["config"], "layers": tuple(record["config"]["layers"])})
        found = container_from(record, config, recovery.container_state(folder))
        self._containers[folder.name] = found
        if found.state == CREATED and record.get("held"):
            self.remove_container(folder.name)  # it has never been a container (held.py)

    # the end of everything

    def remove_everything(self) -> None:
        """Kill and remove every sandbox and container on disk. Needs neither an agent nor living shims."""
        recovery.end_everything(self._cgroups, self._sandboxes_dir, self._containers_dir, ANSWER_SECONDS)

    # small things

    def _runtime(self, config: SandboxConfig) -> OciRuntime | None:
        """None for our own. Raises StartError, in containerd's words, for a handler nobody has set up."""
        if not config.runtime_handler:
            return None
        found = self._runtimes.get(config.runtime_handler)
        if found is None:
            text = f'no runtime for "{config.runtime_handler}" is configured'
            raise StartError(f"failed to get sandbox runtime: {text}")
        return found

    def _sandbox(self, sandbox_id: str) -> Sandbox:
        found = self._sandboxes.get(sandbox_id)
        if found is None:
            raise NotFoundError(f"Could not find sandbox {sandbox_id}: no such sandbox")
        return found

    def _request(self, container: Container, op: str, timeout: float, **values: Any) -> dict[str, Any]:
        link, answer = self._ask(container, op, **values)
        return link.wait(op, answer, timeout)

    def _ask(
        self, container: Container, op: str, **values: Any
    ) -> tuple[ShimLink, SimpleQueue[dict[str, Any]]]:
        """Where the answer comes. Raises ShimError."""
        link = self._links.get(container.sandbox_id)
        if link is None:
            if self._sandbox(container.sandbox_id).state == READY:  # ending it failed when the shim went
                self._end_lost(container.sandbox_id)
            raise ShimError(f"Could not {op} container {container.id}: the pod's shim has gone")
        return link, link.send(op, {"container": container.id, **values})
