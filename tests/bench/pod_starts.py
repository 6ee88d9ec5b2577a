"""`sudo ./hack/isolate .venv/bin/python -m tests.bench.pod_starts`: how fast pods become Running and Ready.

What issue 4 asks of pods' starts, as a watch sees it. Every pod has the service-account token volume. When a
server answers is seen by connecting to it again and again from the node.

The goals speak of an idle node, so between the rows the bench waits until the node's processes have settled:
events come up to three seconds after what they tell of, and taking away what is left of a removed pod goes on
behind its deletion. How long a burst takes right behind a removal of 30 is the last row.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "e2e")]

from e2e_node import Node, make_uplink, pod, sh  # noqa: E402

from kubeclient import kubeconfig  # noqa: E402
from kubeclient.resources import PODS  # noqa: E402
from kubeclient.rest import RestClient  # noqa: E402
from tests.bench.__main__ import (  # noqa: E402
    OBEDIENT,
    PodWatch,
    Row,
    gone,
    one_by_one,
    percentile,
    ready,
    running,
    settle,
    table,
)

PORT = 8080
PROBE = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
GOALS = {30: "≤ 0.8 s", 100: "≤ 3 s"}
UPSTREAM = {30: "2.9 s", 100: "10.7 s"}
ANSWERS_WITHIN = 30.0
LOOK_EVERY = 0.002


def remove(client: RestClient, watch: PodWatch, names: set[str]) -> None:
    for name in names:
        client.delete(PODS, name, "default", grace_period_seconds=0)
    watch.until(names, gone)


def all_ready(client: RestClient, watch: PodWatch, count: int, behind: str = "") -> Row:
    names = {f"all-{number}" for number in range(count)}
    begun = time.perf_counter()
    for name in sorted(names):
        client.create(PODS, pod(name, OBEDIENT), "default")
    span = max(watch.until(names, ready).values()) - begun
    remove(client, watch, names)
    what = f"{count} pods at once{behind}, all Ready"
    return Row(what, f"{span:.2f} s", "–" if behind else GOALS[count], UPSTREAM[count])


def first_answer(address: str) -> float:
    """The moment at which somebody listens. Raises TimeoutError."""
    deadline = time.perf_counter() + ANSWERS_WITHIN
    while time.perf_counter() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((address, PORT), timeout=1):
            return time.perf_counter()
        time.sleep(LOOK_EVERY)
    raise TimeoutError(f"{address}:{PORT} did not answer")


def readiness(client: RestClient, watch: PodWatch, count: int, delay: float) -> Row:
    """From the server's first answer, or Running where that is later, to Ready; the server listens `delay`
    seconds after its container's start."""
    spans = []
    for number in range(count):
        name = f"probed-{number}"
        server = f"trap 'exit 0' TERM; sleep {delay}; httpd -f -p {PORT} -h /bin & wait"
        client.create(PODS, pod(name, server, container={"readinessProbe": PROBE}), "default")
        at_once: list[bool] = []  # one event may show both

        def runs_or_more(kind: str, obj: dict[str, Any], at_once: list[bool] = at_once) -> bool:
            at_once += [True] if running(kind, obj) and ready(kind, obj) else []
            return running(kind, obj)

        runs = watch.until({name}, runs_or_more)[name]
        address = client.get(PODS, name, "default")["status"]["podIP"]
        answers = first_answer(address)
        is_ready = runs if at_once else watch.until({name}, ready)[name]
        spans.append(max(0.0, is_ready - max(runs, answers)) * 1e3)
        remove(client, watch, {name})
    return Row(
        f"server answers {delay:g} s after its start → Ready, probe of 1 s ({count}), p50 / worst",
        f"{statistics.median(spans):.0f} / {percentile(spans, 1):.0f} ms",
        "≤ 150 ms",
        "up to a period",
    )


@contextlib.contextmanager
def node_of_its_own() -> Iterator[Node]:
    outside = f"kpybench{os.getpid()}"
    make_uplink(outside)
    root = Path(tempfile.mkdtemp(prefix="kpy-", dir="/tmp"))
    node = Node(root, outside)
    try:
        node.import_busybox()
        node.cli("up", "--detach")
        yield node
    finally:
        node.cli("reset", "--yes", check=False)
        sh("ip", "link", "del", "up0")
        sh("ip", "netns", "del", outside)
        shutil.rmtree(root)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pod_starts", description=__doc__)
    parser.add_argument("--pods", type=int, default=50, help="pods made one by one (default 50)")
    parser.add_argument("--probed", type=int, default=10, help="pods with a probe, of each kind (default 10)")
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("this needs root: sudo ./hack/isolate .venv/bin/python -m tests.bench.pod_starts")
    with node_of_its_own() as node:
        settle(node)
        client = RestClient(kubeconfig.load(node.kubeconfig), user_agent="bench")
        watch = PodWatch(client)
        first, _ = one_by_one(client, watch, args.pods)
        rows = [Row(first.what, first.measured, "≤ 40 / ≤ 120 ms", first.upstream)]
        for delay in (0.0, 0.7):
            settle(node)
            rows.append(readiness(client, watch, args.probed, delay))
        for count in (100, 30):
            settle(node)
            rows.append(all_ready(client, watch, count))
        rows.append(all_ready(client, watch, 100, " right behind the removal of 30"))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
