"""Short ways to write pods and what the runtime holds of them."""

from __future__ import annotations

from typing import Any

from kubelet_py.pods.model import ContainerView, PodView, SandboxView

NOW = 1_000_000.0
IP = "10.244.0.5"


def pod(*names: str, policy: str = "Always", init: list[Any] | None = None, **spec: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "spec": {
            "restartPolicy": policy,
            "containers": [{"name": name, "image": "i"} for name in names or ("c",)],
            **spec,
        },
    }
    if init:
        body["spec"]["initContainers"] = [
            {"name": entry, "image": "i"} if isinstance(entry, str) else {"image": "i", **entry}
            for entry in init
        ]
    return body


def up(name: str = "c", attempt: int = 0, sandbox: str = "s", **more: Any) -> ContainerView:
    return ContainerView(
        f"{name}-{attempt}", name, sandbox, attempt, "RUNNING", created_at=NOW - 50 + attempt,
        started_at=NOW - 50 + attempt, **more,
    )  # fmt: skip


def down(
    name: str = "c", code: int = 0, attempt: int = 0, *, ago: float = 1.0, sandbox: str = "s", **more: Any
) -> ContainerView:
    return ContainerView(
        f"{name}-{attempt}", name, sandbox, attempt, "EXITED",
        created_at=NOW - ago - 5, started_at=NOW - ago - 5, finished_at=NOW - ago, exit_code=code, **more,
    )  # fmt: skip


def view(*containers: ContainerView, ready: bool = True, sandbox: bool = True) -> PodView:
    """Newest first; a ready sandbox with an address unless told otherwise."""
    boxes = (SandboxView("s", 0, ready, ips=(IP,) if ready else ()),) if sandbox else ()
    return PodView("u", boxes, containers)
