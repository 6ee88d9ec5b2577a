"""Calls of the runtime are counted once each, failures among them."""

from __future__ import annotations

from typing import Any

import pytest

from kubelet_py.pods.timed_runtime import TimedRuntime


def test_a_call_within_a_call_is_part_of_it(tmp_path: Any) -> None:
    runtime = TimedRuntime(run_dir=tmp_path / "run", state_dir=tmp_path / "state", cgroups=None)
    runtime.remove_pod_sandbox("unknown")  # which stops it first
    runtime.stop_container("unknown", 0)
    with pytest.raises(Exception, match="unknown"):
        runtime.exec_sync("unknown", ["true"], 1.0)
    counted = {name: (d.count, d.failures) for name, d in runtime.operations().items() if d.count}
    assert counted == {"remove_podsandbox": (1, 0), "stop_container": (1, 0), "exec_sync": (1, 1)}
