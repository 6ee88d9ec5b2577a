"""A pod that ends is asked for its readiness only."""

from __future__ import annotations

import threading
from typing import Any

from pods_in_words import pod, up, view

from kubelet_py.pods.prober import Prober

LONG = 5.0


class Runtime:
    """Every exec fails; which commands were run is remembered."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.more = threading.Condition()

    def exec_sync(self, identifier: str, argv: list[str], timeout: float) -> Any:
        with self.more:
            self.ran.append(argv[0])
            self.more.notify_all()
        raise TimeoutError

    def wait_for(self, command: str, count: int) -> bool:
        with self.more:
            return self.more.wait_for(lambda: self.ran.count(command) >= count, LONG)


def test_liveness_rests_while_readiness_goes_on() -> None:
    body = pod()
    for kind in ("liveness", "readiness"):
        probe = {"exec": {"command": [kind]}, "periodSeconds": 0.01, "failureThreshold": 1000}
        body["spec"]["containers"][0][f"{kind}Probe"] = probe
    runtime = Runtime()
    prober = Prober(runtime, changed=lambda uid: None, tell=lambda *words: None)  # type: ignore[arg-type]
    prober.start()
    holds = view(up())
    prober.update(body, holds)
    assert runtime.wait_for("liveness", 2) and runtime.wait_for("readiness", 1)
    prober.terminate(body, holds)
    before = runtime.ran.count("liveness")
    assert runtime.wait_for("readiness", runtime.ran.count("readiness") + 3)
    assert runtime.ran.count("liveness") <= before + 1, "at most the one that was under way"
    assert prober.health(holds)["c"].ready is False, "it does not look ready because it ends"
    prober.terminate(body, view())
    assert prober.health(holds) == {}
    prober.stop()
