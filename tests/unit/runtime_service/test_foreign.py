"""Other OCI runtimes: the table they come from, the document they get, the words they fail with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime import runtimes
from runtime.errors import RuntimesError
from runtime.foreign import Reach, foreign_config, last_error, shared_sources, within_reach
from runtime.values import OciRuntime

OCI: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "process": {"args": ["x"], "oomScoreAdj": -997},
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [
        {"destination": "/a", "source": "/host/a", "options": ["rbind", "rshared", "rw"]},
        {"destination": "/b", "source": "/host/b", "options": ["rbind", "rslave"]},
        {"destination": "/proc", "type": "proc"},
    ],
    "linux": {
        "namespaces": [{"type": "mount"}, {"type": "pid", "path": "/proc/7/ns/pid"}],
        "resources": {"memory": {"limit": 1}},
    },
}


def config(**values: Any) -> dict[str, Any]:
    given = {"root": "/c/upper", "cgroup": "p/c", "join": {}, "tty": False} | values
    return foreign_config(OCI, **given)


def test_document_says_what_we_otherwise_say_beside_it() -> None:
    made = config(join={"network": "/proc/1/ns/net"}, tty=True)
    assert made["root"] == {"path": "/c/upper", "readonly": True}
    assert made["linux"]["cgroupsPath"] == "/p/c"
    assert made["linux"]["resources"] == OCI["linux"]["resources"]
    assert made["process"] == {"args": ["x"], "oomScoreAdj": -997, "terminal": True}
    assert made["linux"]["namespaces"] == [
        {"type": "mount"},
        {"type": "pid", "path": "/proc/7/ns/pid"},
        {"type": "network", "path": "/proc/1/ns/net"},
    ]


def test_namespace_of_the_pod_wins_over_a_new_one() -> None:
    made = config(join={"pid": "/proc/1/ns/pid"})
    assert made["linux"]["namespaces"][1] == {"type": "pid", "path": "/proc/1/ns/pid"}


CHOWN, KILL = 1 << 0, 1 << 5
PROCESS = {"oomScoreAdj": -997, "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"], "ambient": []}}


def test_process_is_taken_as_it_is_where_all_of_it_can_be_had() -> None:
    assert within_reach(PROCESS, Reach(CHOWN | KILL, -1000)) == (PROCESS, ())
    assert within_reach({"args": ["x"]}, Reach(0, 0)) == ({"args": ["x"]}, ())


def test_what_cannot_be_had_is_left_out_and_said() -> None:
    made, warnings = within_reach(PROCESS, Reach(CHOWN, 0))
    assert made == {"oomScoreAdj": 0, "capabilities": {"bounding": ["CAP_CHOWN"], "ambient": []}}
    assert warnings == (
        "Could not set oom_score_adj to -997: EPERM (it is 0)",
        "Could not give CAP_KILL: EPERM (we have none ourselves)",
    )


def test_capability_that_nobody_knows_is_left_out() -> None:
    made, _ = within_reach({"capabilities": {"bounding": ["CAP_OF_TOMORROW"]}}, Reach((1 << 41) - 1, -1000))
    assert made == {"capabilities": {"bounding": []}}


def test_only_bidirectional_mounts_are_shared() -> None:
    assert shared_sources(OCI) == ["/host/a"]


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ('{"level":"warning","msg":"w"}\n{"level":"error","msg":"e1"}\n{"msg":"e2","level":"error"}\n', "e2"),
        ('{"level":"error","msg":"e"}\n{"level":"info","msg":"i"}\n', "e"),
        ("plain words\n\n", "plain words"),
        ('["no object"]\n', '["no object"]'),
        ("", ""),
    ],
)
def test_last_error_of_a_log(tmp_path: Path, log: str, told: str) -> None:
    file = tmp_path / "log"
    file.write_text('{"level":"error","msg":"of an earlier command"}\n')
    offset = file.stat().st_size
    with file.open("a") as more:
        more.write(log)
    assert last_error(str(file), offset) == told


def test_table_of_runtimes(tmp_path: Path) -> None:
    file = tmp_path / "runtimes.toml"
    assert runtimes.load(file) == {}
    file.write_text(
        '[runtimes.crun]\nruntime_path = "/bin/sh"\n'
        '[runtimes.own]\nruntime_path = "/bin/sh"\nruntime_root = "/run/x"\n'
        'runtime_args = ["--debug"]\nhybrid_cgroups = true\n'
    )
    assert runtimes.load(file) == {
        "crun": OciRuntime("crun", "/bin/sh"),
        "own": OciRuntime("own", "/bin/sh", "/run/x", ("--debug",), True),
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("runtimes = 3", "holds tables"),
        ("[runtimes.a]\nruntime_path = '/bin/sh'\n[other]\n", "holds tables"),
        ("[runtimes.a", "Could not parse"),
        ("[runtimes.a]\n", "runtimes.a: runtime_path is missing"),
        ("[runtimes.A]\nruntime_path = '/bin/sh'", "a handler is lower case"),
        ("[runtimes.a]\nruntime_path = 'runc'", "runtime_path is an absolute path"),
        ("[runtimes.a]\nruntime_path = '/nonexistent'", "is no executable file"),
        ("[runtimes.a]\nruntime_path = '/tmp'", "is no executable file"),
        ("[runtimes.a]\nruntime_path = '/bin/sh'\nruntime_args = 'x'", "runtime_args is a list"),
        ("[runtimes.a]\nruntime_path = '/bin/sh'\nhybrid_cgroups = 1", "hybrid_cgroups is true or false"),
        ("[runtimes.a]\nruntime_path = '/bin/sh'\ntype = 'oci'", "unknown keys type"),
        ("[runtimes]\na = 1", "runtimes.a is not a table"),
    ],
)
def test_table_that_makes_no_sense_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "runtimes.toml"
    file.write_text(text)
    with pytest.raises(RuntimesError, match=problem):
        runtimes.load(file)
