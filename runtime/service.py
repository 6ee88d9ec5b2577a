"""The runtime service: CRI's verbs for the agent, over one shim per pod.

It holds nothing that is not on disk or in a shim. Every method may be called from any thread; one thread
of its own waits for all shims (shims.py) and calls the subscribers. Killing the process that holds it changes
nothing for the containers: the next `start` finds the shims by their folders and goes on (adoption.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime import recovery, shim_link, state
from runtime.adoption import Adoption
from runtime.ahead import Ahead
from runtime.cgroups import CgroupDriver
from runtime.cleaner import Cleaner
from runtime.creation import Creation
from runtime.early_network import made
from runtime.endings import Endings
from runtime.errors import RuntimeFailure, ShimError, StartError
from runtime.forkserver_link import Forkserver
from runtime.gate import Gate
from runtime.held import HeldContainer, remove_log
from runtime.known import Known
from runtime.oci_config import signal_number
from runtime.sandbox_start import SandboxStart, SandboxStarter
from runtime.sessions import Sessions
from runtime.shim_link import SHIM_LOST
from runtime.shims import Shims
from runtime.spare_network import SpareNetwork
from runtime.state import READY, RUNNING
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

__all__ = [
    "Container", "ContainerConfig", "Event", "ExecResult", "OciRuntime", "RuntimeService", "Sandbox",
    "SandboxConfig",
]  # fmt: skip

log = logging.getLogger(__name__)

START_SECONDS = 60.0
ANSWER_SECONDS = 30.0


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
        self._known = Known()
        self._endings = Endings(
            cgroups,
            self._cleaner,
            self._known,
            sandboxes=self._sandboxes_dir,
            containers=self._containers_dir,
        )
        self._shims = Shims(self._known, self._endings)
        self._starter = SandboxStarter(
            sandboxes=self._sandboxes_dir,
            containers=self._containers_dir,
            forkserver=self._forkserver,
            ahead=self._ahead,
            networks=self._networks,
            known=self._known,
            shims=self._shims,
            endings=self._endings,
        )

    # life

    def start(self) -> None:
        """Start the forkserver, adopt what runs, end what has lost its shim. Raises OSError."""
        for folder in (self._sandboxes_dir, self._containers_dir):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._forkserver.start()
        self._ahead.open()
        self._adopt()
        self._shims.start()
        self._networks.start()
        self._cleaner.start()

    def _adopt(self) -> None:
        for folder in recovery.owed(self._sandboxes_dir) + recovery.owed(self._containers_dir):
            self._cleaner.add(folder)
        adoption = Adoption(self._cgroups, self._known, self._shims, self._endings)
        for never_begun in adoption.adopt(self._sandboxes_dir, self._containers_dir):
            self._remove_held(never_begun)

    def close(self) -> None:
        """Let go: shims and containers go on."""
        self._shims.stop()
        self._networks.close()
        self._ahead.close()
        self._cleaner.close()
        self._shims.close()
        self._forkserver.close()

    def subscribe(self, callback: Callable[[Event], None]) -> None:
        """Have `callback` called, in the event thread, for every change. It must not block."""
        self._known.subscribe(callback)

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
        return self._starter.begin(config, meanwhile)

    def stop_pod_sandbox(self, sandbox_id: str) -> None:
        """Kill everything in the pod, pause included. Idempotent; an unknown id is stopped already."""
        if not self._known.has_sandbox(sandbox_id):
            return
        link = self._shims.links.get(sandbox_id)
        if link is not None:
            link.expected_to_end = True
            try:
                answer = link.request("end", ANSWER_SECONDS)
                self._known.sandbox_changed(sandbox_id, state.sandbox_state_from(answer.get("sandbox")))
            except ShimError as error:
                log.warning("Ended pod without its shim sandbox=%s error=%s", sandbox_id[:12], error)
                self._endings.end_lost(sandbox_id)
        if self._known.sandbox(sandbox_id).state == READY:
            self._endings.end_lost(sandbox_id)

    def remove_pod_sandbox(self, sandbox_id: str) -> None:
        """Stop it and forget it, with its containers. Idempotent."""
        self.stop_pod_sandbox(sandbox_id)
        for container in self.list_containers():
            if container.sandbox_id == sandbox_id:
                self.remove_container(container.id)
        if self._known.forget_sandbox(sandbox_id):
            self._cleaner.add(recovery.give_up(self._sandboxes_dir / sandbox_id))

    def list_sandboxes(self) -> list[Sandbox]:
        return self._known.sandboxes()

    # containers

    def create_container(self, sandbox_id: str, config: ContainerConfig) -> str:
        """Write down a container; its 64-digit id. Nothing runs yet. Raises StartError, NotFoundError."""
        sandbox = self._known.sandbox(sandbox_id)
        container, _ = self._creation.make(sandbox_id, sandbox.config, config, self._runtime(sandbox.config))
        self._known.add_container(container)
        return container.id

    def start_container(self, container_id: str) -> None:
        """Start it. Raises StartError; the container is then EXITED, code 128, reason StartError."""
        link, answer = self._shims.ask(self.container(container_id), "start")
        self._networks.refill()
        self._started(container_id, link.wait("start", answer, START_SECONDS))

    def _started(self, container_id: str, answer: Mapping[str, Any]) -> None:
        if "state" in answer:
            self._known.container_changed(container_id, state.container_state_from(answer["state"]))
        if "error" in answer:
            raise StartError(answer["error"])

    def hold_container(self, start: SandboxStart, config: ContainerConfig) -> HeldContainer | None:
        """Create a container of a pod that is being made, and have it set up as far as its program (held.py).
        The caller must call `release_container` or `drop_container`, after `start.finish`. One for a pod.
        None if that cannot be done, with this one or now: create it afterwards, which also tells why."""
        link = self._shims.links.get(start.id)
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
        self._known.add_container(held.container)
        try:
            opened = held.go()
            self._networks.refill()
            answer = held.wait()
        except ShimError:
            self._endings.end_container(held.container.sandbox_id, held.id)
            raise
        if answer.get("kind") == SHIM_LOST:  # maybe before it was let go: who ended its pod did not know it
            self._endings.end_container(held.container.sandbox_id, held.id)
        if "error" in answer or answer.get("started"):
            self._started(held.id, answer)
            if not opened:  # killed at the gate: nobody knew it when its end was told
                found = recovery.container_state(self._containers_dir / held.id)
                self._known.container_changed(held.id, found)
        else:
            self.start_container(held.id)
        return held.id

    def drop_container(self, held: HeldContainer) -> None:
        """As if it had never been. Its pod may be gone as well."""
        held.stop()
        self._known.add_container(held.container)
        self._remove_held(held.container)

    def _remove_held(self, container: Container) -> None:
        """Before another one is started: that may have the same log."""
        remove_log(container.config.log_path)
        self.remove_container(container.id)

    def stop_container(self, container_id: str, grace_seconds: float) -> None:
        """Its stop signal, then after `grace_seconds` SIGKILL; returns when it has ended. Idempotent."""
        container = self._known.find_container(container_id)
        if container is None or container.state != RUNNING:
            return
        number = signal_number(container.config.stop_signal)
        timeout = max(grace_seconds, 0) + ANSWER_SECONDS
        try:
            answer = self._shims.request(container, "stop", timeout, signal=number, grace=grace_seconds)
        except ShimError:
            self._endings.end_lost(container.sandbox_id)
            return
        if "state" in answer:
            self._known.container_changed(container_id, state.container_state_from(answer["state"]))

    def remove_container(self, container_id: str) -> None:
        """Kill it if it runs, and forget it. Its log stays. Idempotent."""
        container = self._known.find_container(container_id)
        if container is None:
            return
        self.stop_container(container_id, 0)
        link = self._shims.links.get(container.sandbox_id)
        if link is not None:
            try:
                link.send("forget", {"container": container_id})
            except ShimError:
                pass  # a shim that has gone has forgotten everything
        if self._known.forget_container(container_id):
            self._cleaner.add(recovery.give_up(self._containers_dir / container_id))

    def wait_for_removals(self, seconds: float) -> bool:
        """Until the disk has back what removed containers held, or for so long; whether it has."""
        return self._cleaner.wait(seconds)

    def list_containers(self) -> list[Container]:
        return self._known.containers()

    def container(self, container_id: str) -> Container:
        """Raises NotFoundError."""
        return self._known.container(container_id)

    def reopen_log(self, container_id: str) -> None:
        """Go on in a new log file, after the old one was renamed."""
        container = self.container(container_id)
        shim_link.checked("reopen log", self._shims.request(container, "reopen", ANSWER_SECONDS))

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
        parent = self._known.sandbox(container.sandbox_id).config.cgroup_parent
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
