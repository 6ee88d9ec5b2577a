"""Random SIGKILLs of everything under a churn of thirty pods; at the end API, kernel and disk agree.

KUBELET_PY_CHAOS_SECONDS is the length of the storm (60 by default; issue 4 asks for 600),
KUBELET_PY_CHAOS_SEED repeats its choices. The seed is printed in every failure.
"""

from __future__ import annotations

import os
import random
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import host_state
import pytest
from chaos_logs import attempts, log_paths, wrong_codes, wrong_counts, wrong_logs, wrong_phases
from chaos_monkey import Monkey
from chaos_pods import FIRST_HOST_PORT, Object, config_map, deployment, service
from chaos_truth import disagreements
from e2e_node import NODE_IP, PATIENCE, Node, pod
from test_churn import disk

from kubeclient import kubeconfig
from kubeclient.errors import ServerUnavailable
from kubeclient.resources import CONFIG_MAPS, DEPLOYMENTS, PODS, SERVICES
from kubeclient.rest import RestClient
from kubelet_py.paths import NodePaths

SECONDS = float(os.environ.get("KUBELET_PY_CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("KUBELET_PY_CHAOS_SEED", str(random.SystemRandom().randrange(1_000_000))))

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(SECONDS + 900)]


@pytest.fixture(scope="module")
def host_before(unstarted_node: Node) -> Iterator[host_state.HostState]:
    """The host before the node was started; after `down` it must be the same."""
    before = host_state.read()
    unstarted_node.cli("up", "--detach")
    yield before


@pytest.fixture(scope="module")
def client(host_before: host_state.HostState, unstarted_node: Node) -> Iterator[RestClient]:
    connected = RestClient(kubeconfig.load(unstarted_node.kubeconfig), timeout=10.0)
    yield connected
    connected.close()


def test_nothing_is_lost_or_left_when_everything_is_killed_again_and_again(
    host_before: host_state.HostState, unstarted_node: Node, client: RestClient
) -> None:
    node = unstarted_node
    # With a host port, so that the chains that all of them share are there before.
    node.apply(pod("first", container={"ports": [{"containerPort": 80, "hostPort": FIRST_HOST_PORT - 1}]}))
    node.wait_running("first")
    node.kubectl("delete", "pod", "first")
    before, files = steady_network(), disk(node)
    truth = node.root / "truth"
    shutil.rmtree(truth, ignore_errors=True)  # of a first try
    truth.mkdir()
    monkey = Monkey(node, client, truth, SEED)
    print(f"KUBELET_PY_CHAOS_SEED={SEED} KUBELET_PY_CHAOS_SECONDS={SECONDS:g}")
    try:
        _storm(monkey, client, truth)
        _settle(node, client, monkey)
        _check_the_record(node, client, monkey, truth)
        _check_that_it_works(node, client, monkey)
        _remove_all(node, client)
    except BaseException:
        print("\n".join(monkey.deeds.story[-400:]))
        raise
    finally:
        print(dict(monkey.deeds.counts))
    node.until("files gone", lambda: not disk(node) - files, seconds=60)
    # The node's own processes are others than before.
    assert [line for line in left_since(node, before, 60) if not line.startswith("processes: ")] == []
    node.cli("down")
    assert left_since(node, host_before, 15) == []


def steady_network(seconds: float = 2.0) -> host_state.HostState:
    """The host once its links and routes stayed for `seconds`: a new bridge's own IPv6 routes come late."""
    state, since = host_state.read(), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.2)
        now = host_state.read()
        if (now.links, now.routes) != (state.links, state.routes):
            since = time.monotonic()
        state = now
    return state


def left_since(node: Node, before: host_state.HostState, seconds: float) -> list[str]:
    """What differs from `before` and is this node's: the machine may have other nodes' cgroups, too."""
    own = NodePaths(node.root).cgroup_root

    def mine(line: str) -> bool:
        kind, _, fact = line.partition(": ")
        if kind in ("cgroups", "processes"):
            return own in fact or str(node.root) in fact
        return kind != "namespaces"  # the node makes none with a name

    deadline = time.monotonic() + seconds
    while True:
        lines = [line for line in before.difference(host_state.read()) if mine(line)]
        if not lines or time.monotonic() > deadline:
            return lines
        time.sleep(0.2)


def _storm(monkey: Monkey, client: RestClient, truth: Path) -> None:
    client.create(CONFIG_MAPS, config_map(monkey.content))
    client.create(SERVICES, service())
    client.create(DEPLOYMENTS, deployment(truth, monkey.replicas))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(monkey.turn())


def _settle(node: Node, client: RestClient, monkey: Monkey) -> None:
    """The storm is over: every wish is granted, and the three witnesses agree."""
    node.until("the API takes every wish", monkey.grant, seconds=60)

    def lines() -> list[str]:
        try:
            found = disagreements(node, client)
            found += lost_or_left(client, monkey)
        except ServerUnavailable:
            return ["the API server does not answer"]
        return found

    deadline = time.monotonic() + 240
    while (found := lines()) and time.monotonic() < deadline:
        time.sleep(1)
    assert found == [], "\n".join(found) + "\n" + node.last_words()


def lost_or_left(client: RestClient, monkey: Monkey) -> list[str]:
    """What the API acknowledged is there, and only that."""
    bare = {
        item["metadata"]["name"]
        for item in client.list(PODS, "default")["items"]
        if not item["metadata"].get("ownerReferences")
    }
    lines = [f"pod {name} is lost" for name in monkey.wanted.keys() - bare]
    lines += [f"pod {name} is left" for name in bare - monkey.wanted.keys()]
    web = client.get(DEPLOYMENTS, "chaos-web", "default")
    for key in ("replicas", "updatedReplicas"):
        if web["status"].get(key, 0) != monkey.replicas:
            lines.append(f"deployment {key} {web['status'].get(key)}, wanted {monkey.replicas}")
    return lines


def _check_the_record(node: Node, client: RestClient, monkey: Monkey, truth: Path) -> None:
    paths, deeds = NodePaths(node.root), monkey.deeds
    # The containers go on meanwhile: their logs may only have more than what they had said of them before.
    before, files = attempts(truth), log_paths(paths)
    pods = client.list(PODS, "default")["items"]
    after, files = attempts(truth), files | log_paths(paths)
    wrong = wrong_codes(files, pods, after, deeds) + wrong_phases(pods)
    # A shim takes lines out of its container's pipe when it comes to it, and the API hears of a start later:
    # on a busy machine both are late.
    deadline = time.monotonic() + PATIENCE
    while (missing := wrong_logs(paths, pods, before, deeds)) and time.monotonic() < deadline:
        time.sleep(0.1)
    while (counts := wrong_counts(paths, pods, before, after, deeds)) and time.monotonic() < deadline:
        time.sleep(0.1)
        before, pods, after = attempts(truth), client.list(PODS, "default")["items"], attempts(truth)
    wrong += missing + counts
    assert not wrong, "\n".join(wrong)


def _check_that_it_works(node: Node, client: RestClient, monkey: Monkey) -> None:
    """Through the Service, through a host port, by exec, and with the newest ConfigMap in every volume."""
    paths = NodePaths(node.root)

    def stale() -> list[str]:
        volumes = "volumes/kubernetes.io~configmap/www/index.html"
        alive = [p for p in client.list(PODS, "default")["items"] if p["status"]["phase"] == "Running"]
        files = [paths.pods / item["metadata"]["uid"] / volumes for item in alive]
        return [str(file) for file in files if content(file) != monkey.content]

    node.until("ConfigMaps up to date", lambda: not stale(), seconds=60)
    address = client.get(SERVICES, "chaos-web", "default")["spec"]["clusterIP"]
    assert fetch(f"http://{address}/") == monkey.content
    for item in client.list(PODS, "default")["items"]:
        if ready(item) and "-port" in item["metadata"]["name"]:
            port = item["spec"]["containers"][0]["ports"][0]["hostPort"]
            assert fetch(f"http://{NODE_IP}:{port}/") == monkey.content
    node.apply(pod("after"))
    node.wait_running("after")
    assert node.kubectl("exec", "after", "--", "echo", "hi").out == "hi\n"


def content(file: Path) -> str | None:
    """None where the volume has gone: a pod may end of itself at any moment."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


def ready(item: Object) -> bool:
    conditions = {c["type"]: c["status"] for c in item["status"].get("conditions") or ()}
    return conditions.get("Ready") == "True"


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def _remove_all(node: Node, client: RestClient) -> None:
    node.kubectl("delete", "deployment,service", "chaos-web", "--timeout=60s")
    node.kubectl("delete", "pods", "--all", "--timeout=90s", timeout=100)
    node.until("all pods gone", lambda: not client.list(PODS)["items"], seconds=60)
    node.kubectl("delete", "configmap", "chaos-www")
