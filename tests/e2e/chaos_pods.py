"""What lives on the node while things are killed: pods that write down what they did, for the checks.

Every container prints a line "start <name of this attempt>", then numbers, and writes the same to a file of
its attempt's name in a folder of the host, always *after* it was printed. Whatever stands in that file must
stand in the container's log. The last word there is "end <exit code>", if the container came to it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

Object = dict[str, Any]

WEB = {"app": "chaos-web"}
FIRST_HOST_PORT = 23000

SCRIPT = """
u=$(cat /proc/sys/kernel/random/uuid); t=/truth/$u; i=0
end() { echo "end $1"; echo "end $1" >>$t; exit $1; }
trap 'end 143' TERM
echo "start $u"; echo "start $POD_UID $CONTAINER" >>$t
[ -z "$SERVE" ] || busybox httpd -p 8080 -h /www
while [ $i -lt $LINES_TO_PRINT ]; do
    echo $i; echo $i >>$t; i=$((i+1)); sleep 0.2
done
end $EXIT_CODE
"""


def chaos_container(
    name: str, *, lines: int = 1_000_000, code: int = 0, serve: bool = False, **more: Any
) -> Object:
    return {
        "name": name,
        "image": "busybox",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", SCRIPT],
        "env": [
            {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            {"name": "CONTAINER", "value": name},
            {"name": "LINES_TO_PRINT", "value": str(lines)},
            {"name": "EXIT_CODE", "value": str(code)},
            {"name": "SERVE", "value": "yes" if serve else ""},
        ],
        "volumeMounts": [
            {"name": "truth", "mountPath": "/truth"},
            *([{"name": "www", "mountPath": "/www"}] if serve else []),
        ],
        **more,
    }


def chaos_spec(truth: Path, *containers: Object, policy: str = "Always", **more: Any) -> Object:
    volumes = [
        {"name": "truth", "hostPath": {"path": str(truth), "type": "Directory"}},
        {"name": "www", "configMap": {"name": "chaos-www"}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
    ]
    return {
        "restartPolicy": policy,
        "terminationGracePeriodSeconds": 2,
        "containers": list(containers),
        "volumes": volumes,
        **more,
    }


def probes() -> Object:
    """Patient ones: on a busy machine none may fail of itself, or an end could not be explained."""
    patience = {"periodSeconds": 3, "timeoutSeconds": 20, "failureThreshold": 20}
    return {
        "readinessProbe": {"httpGet": {"path": "/index.html", "port": 8080}, **patience, "periodSeconds": 1},
        "livenessProbe": {"exec": {"command": ["true"]}, **patience},
    }


def deployment(truth: Path, replicas: int) -> Object:
    web = chaos_container("web", serve=True, **probes())
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chaos-web", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": WEB},
            "template": {"metadata": {"labels": WEB}, "spec": chaos_spec(truth, web)},
        },
    }


def service() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chaos-web", "namespace": "default"},
        "spec": {"selector": WEB, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def config_map(content: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "chaos-www", "namespace": "default"},
        "data": {"index.html": content},
    }


def random_pod(rng: random.Random, truth: Path, number: int) -> Object:
    """One of seven kinds; `number` makes its name and its host port its own."""
    kind = rng.choice(("always", "pair", "port", "failing", "onfailure", "once", "prepared"))
    if kind == "always":
        spec = chaos_spec(truth, chaos_container("main"))
    elif kind == "pair":
        spec = chaos_spec(
            truth, chaos_container("main"), chaos_container("second", lines=rng.randint(20, 80))
        )
    elif kind == "port":
        port = {"containerPort": 8080, "hostPort": FIRST_HOST_PORT + number}
        spec = chaos_spec(truth, chaos_container("main", serve=True, ports=[port], **probes()))
    elif kind == "failing":
        lines, code = rng.randint(5, 60), rng.randint(1, 99)
        spec = chaos_spec(truth, chaos_container("main", lines=lines, code=code), policy="OnFailure")
    elif kind == "onfailure":
        spec = chaos_spec(truth, chaos_container("main", lines=rng.randint(5, 60)), policy="OnFailure")
    elif kind == "once":
        code = rng.choice((0, 0, rng.randint(1, 99)))
        main = chaos_container("main", lines=rng.randint(5, 100), code=code)
        spec = chaos_spec(truth, main, policy="Never")
    else:
        first = chaos_container("prepare", lines=3)
        spec = chaos_spec(truth, chaos_container("main"), initContainers=[first])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"chaos-{number}-{kind}", "namespace": "default"},
        "spec": spec,
    }
