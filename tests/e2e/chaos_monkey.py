"""Kills and churns at random: what was killed and what was wished for is written down for the checks.

Nothing here waits for anything: a wish that the API server cannot take now, because it is dead, stays a wish
and is tried again at a later turn. All choices come from one seeded generator; how the node's processes
interleave with them does not, so the same seed is the same kind of weather, not the same run.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from chaos_pods import Object, random_pod
from e2e_node import Node

from kubeclient.errors import AlreadyExists, ApiError, NotFound
from kubeclient.resources import CONFIG_MAPS, DEPLOYMENTS, PODS
from kubeclient.rest import RestClient
from kubelet_py.cli.processes import ProcessIdentity
from kubelet_py.cli.supervisor import read_state
from kubelet_py.paths import NodePaths

BARE_PODS = 22
VICTIMS = {"container": 45, "shim": 18, "agent": 14, "controlplane": 12, "proxy": 6}


@dataclass
class Deeds:
    """What the monkey did. Containers are known by their log file: pod, name and attempt in one."""

    killed: set[str] = field(default_factory=set)  # log files of containers that got SIGKILL
    lost: set[str] = field(default_factory=set)  # log files of containers that ran when their shim was killed
    shims: Counter[str] = field(default_factory=Counter)  # pod UID → shims killed
    counts: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)

    def tell(self, text: str) -> None:
        self.story.append(f"{time.strftime('%H:%M:%S')} {text}")


class Monkey:
    def __init__(self, node: Node, client: RestClient, truth: Path, seed: int) -> None:
        self._paths = NodePaths(node.root)
        self._client = client
        self._truth = truth
        self._rng = random.Random(seed)
        self._number = 0
        self.deeds = Deeds()
        self.wanted: dict[str, Object] = {}
        self.made: set[str] = set()  # the API said so
        self._doomed: set[str] = set()
        self._edits: list[tuple[str, Object]] = []
        self.content = "0"
        self.replicas = 6

    def turn(self) -> float:
        """One kill or one change; seconds until the next."""
        self._wish()
        if self._rng.random() < 0.55:
            (victim,) = self._rng.choices([*VICTIMS], [*VICTIMS.values()])
            self._kill(victim)
        self.grant(most=4)
        return self._rng.uniform(0.05, 0.7)

    # wishes

    def _wish(self) -> None:
        roll = self._rng.random()
        if len(self.wanted) < BARE_PODS:
            body = random_pod(self._rng, self._truth, self._number)
            self._number += 1
            self.wanted[body["metadata"]["name"]] = body
        elif roll < 0.5:
            name = self._rng.choice(sorted(self.wanted))
            del self.wanted[name]
            self._doomed.add(name)
        elif roll < 0.6:
            self.replicas = self._rng.randint(4, 9)
            self._edits.append(("deployment", {"spec": {"replicas": self.replicas}}))
        elif roll < 0.65:
            annotations = {"chaos/turn": str(self._rng.random())}
            self._edits.append(
                ("deployment", {"spec": {"template": {"metadata": {"annotations": annotations}}}})
            )
        elif roll < 0.75:
            self.content = str(self._rng.random())
            self._edits.append(("configmap", {"data": {"index.html": self.content}}))

    def grant(self, most: int = 1000) -> bool:
        """Bring wishes to the API; True when none is left."""
        try:
            for name in sorted(self._doomed)[:most]:
                self._delete(name)
            for name in sorted(self.wanted.keys() - self.made)[:most]:
                self._create(name)
            while self._edits:
                self._edit(*self._edits[0])
                self._edits.pop(0)
        except ApiError as error:
            if error.code < 500 and error.code != 429:
                raise
            self.deeds.counts["API not there"] += 1
            return False
        return not self._doomed and not self.wanted.keys() - self.made

    def _create(self, name: str) -> None:
        try:
            self._client.create(PODS, self.wanted[name])
        except AlreadyExists:
            pass  # the answer to an earlier try was lost with the server
        self.made.add(name)
        self.deeds.counts["pods created"] += 1
        self.deeds.tell(f"created {name}")

    def _delete(self, name: str) -> None:
        grace = self._rng.choice((None, None, 1, 0))
        try:
            self._client.delete(PODS, name, "default", grace_period_seconds=grace)
        except NotFound:
            pass
        self._doomed.discard(name)
        self.made.discard(name)
        self.deeds.counts["pods deleted"] += 1
        self.deeds.tell(f"deleted {name} grace={grace}")

    def _edit(self, kind: str, body: Object) -> None:
        resource, name = {
            "deployment": (DEPLOYMENTS, "chaos-web"),
            "configmap": (CONFIG_MAPS, "chaos-www"),
        }[kind]
        self._client.patch(resource, name, body, "default")
        self.deeds.counts[f"{kind} changed"] += 1
        self.deeds.tell(f"changed {kind} {json.dumps(body)}")

    # kills

    def _kill(self, victim: str) -> None:
        if victim == "container":
            self._kill_container()
        elif victim == "shim":
            self._kill_shim()
        else:
            state = read_state(self._paths.run)
            process = state.children.get(victim) if state is not None else None
            if process is not None and process.send(signal.SIGKILL):
                self.deeds.counts[f"{victim} killed"] += 1
                self.deeds.tell(f"killed {victim} pid={process.pid}")

    def _kill_container(self) -> None:
        running = self.running_containers()
        if not running:
            return
        log_path, process = self._rng.choice(running)
        self.deeds.killed.add(log_path)
        if process.send(signal.SIGKILL):
            self.deeds.counts["containers killed"] += 1
            self.deeds.tell(f"killed container pid={process.pid} {log_path}")
        else:
            self.deeds.killed.discard(log_path)

    def _kill_shim(self) -> None:
        shims = []
        for folder in sorted(self._paths.sandboxes.glob("[!.]*")):
            record, state = read(folder / "sandbox.json"), read(folder / "state.json")
            if record and state and state["shim"]:
                shims.append((folder.name, record["config"]["uid"], identity(state["shim"])))
        if not shims:
            return
        sandbox, uid, process = self._rng.choice(shims)
        # A container that is just starting is not in this list yet: `shims` counts for it.
        lost = {path for path, _ in self.running_containers(sandbox)}
        if process.send(signal.SIGKILL):
            self.deeds.lost |= lost
            self.deeds.shims[uid] += 1
            self.deeds.counts["shims killed"] += 1
            self.deeds.tell(f"killed shim pid={process.pid} sandbox={sandbox[:12]} pod={uid}")

    def running_containers(self, sandbox: str = "") -> list[tuple[str, ProcessIdentity]]:
        """(log file, process) of what runs, as the shims wrote it down."""
        found = []
        for folder in sorted(self._paths.containers.glob("[!.]*")):
            record, state = read(folder / "config.json"), read(folder / "state.json")
            if not record or not state or state["state"] != "RUNNING" or not state["process"]:
                continue
            if sandbox in ("", record["sandbox"]):
                found.append((record["config"]["log_path"], identity(state["process"])))
        return found


def read(file: Path) -> Object | None:
    """None where the folder has just gone."""
    try:
        body: Object = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    return body


def identity(body: Object) -> ProcessIdentity:
    return ProcessIdentity(body["pid"], body["start"])
