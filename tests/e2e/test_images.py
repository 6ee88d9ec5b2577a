"""Where a pod's image comes from: a registry or an archive; by whose leave, when again, and what if not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_node import Node
from e2e_registry import MISSING, Registry, make_image, skopeo

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def versions(folder: Path) -> dict[str, Path]:
    """Two images that differ in what they print."""
    return {name: make_image(folder / f"{name}.tar", name) for name in ("one", "two")}


@pytest.fixture(scope="module")
def registry(folder: Path) -> Iterator[Registry]:
    server = Registry(folder / "registry").start()
    yield server
    server.stop()


def image_pod(name: str, image: str, policy: str | None = None, **spec: Any) -> dict[str, Any]:
    """A pod that runs the image's own command."""
    container = {"name": "main", "image": image} | ({"imagePullPolicy": policy} if policy else {})
    body = {"terminationGracePeriodSeconds": 1, "containers": [container], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body}


def says(node: Node, name: str) -> str:
    node.wait_running(name)
    return str(node.until(f"output of {name}", lambda: node.kubectl("logs", name).out)).strip()


def events(node: Node, name: str) -> str:
    return node.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}").out


def waiting(node: Node, name: str) -> dict[str, str]:
    statuses = node.get("pod", name)["status"].get("containerStatuses") or [{}]
    found: dict[str, str] = statuses[0].get("state", {}).get("waiting", {})
    return found


def wait_for_reason(node: Node, name: str, reason: str) -> str:
    """Wait until the container waits for `reason`; the message."""
    answer = node.until(
        f"{reason} of {name}",
        lambda: waiting(node, name) if waiting(node, name).get("reason") == reason else None,
    )
    return str(answer.get("message", ""))


def status_of(node: Node, name: str) -> Any:
    return node.get("pod", name)["status"]["containerStatuses"][0]


def test_a_pod_pulls_its_image_and_runs_the_images_own_command(
    node: Node, registry: Registry, versions: dict[str, Path]
) -> None:
    image = registry.push(versions["one"], "team/app:v1")
    node.apply(image_pod("pulls", image))
    assert says(node, "pulls") == "hello one"
    for said in (f'Pulling image "{image}"', f'Successfully pulled image "{image}" in '):
        node.until(said, lambda said=said: said in events(node, "pulls"))
    status = status_of(node, "pulls")
    assert status["image"] == image
    assert status["imageID"].startswith(f"{registry.where}/team/app@sha256:")
    assert node.get("pod", "pulls")["spec"]["containers"][0]["imagePullPolicy"] == "IfNotPresent"
    node.kubectl("delete", "pod", "pulls")
    name = node.kubectl("get", "nodes", "-o", "name").out.strip()
    series = (
        r'kubelet_runtime_operations_total\{operation_type="pull_image"\} [1-9]',
        r'kubelet_image_pull_duration_seconds_count\{image_size_in_bytes="[^"]+"\} [1-9]',
        r'storage_operation_duration_seconds_count\{[^}]*projected"[^}]*"volume_unmount"[^}]*\} [1-9]',
    )

    def counted() -> bool:
        text = node.kubectl("get", "--raw", f"/api/v1/{name.replace('node/', 'nodes/')}/proxy/metrics").out
        return all(re.search(each, text) for each in series)

    node.until("the pull and the end of its volume are counted", counted)


def test_a_moved_tag_is_pulled_again_only_by_policy_always(
    node: Node, registry: Registry, versions: dict[str, Path]
) -> None:
    image = registry.push(versions["one"], "team/moving")
    node.apply(image_pod("first", image))
    assert says(node, "first") == "hello one"
    # No tag means latest, and that means Always.
    assert node.get("pod", "first")["spec"]["containers"][0]["imagePullPolicy"] == "Always"
    registry.push(versions["two"], "team/moving")
    by_digest = status_of(node, "first")["imageID"]
    node.apply(image_pod("present", image, "IfNotPresent"), image_pod("never", image, "Never"))
    assert (says(node, "present"), says(node, "never")) == ("hello one", "hello one")
    said = f'Container image "{image}" already present on machine'
    node.until("the event", lambda: said in events(node, "present"))
    node.apply(image_pod("always", image, "Always"))
    assert says(node, "always") == "hello two"
    assert status_of(node, "always")["imageID"] != by_digest
    node.apply(image_pod("digest", by_digest), image_pod("never-two", image, "Never"))
    assert (says(node, "digest"), says(node, "never-two")) == ("hello one", "hello two")
    node.kubectl("delete", "pod", "first", "present", "never", "always", "digest", "never-two")


def test_failed_pulls_back_off_and_recover_once_the_cause_is_gone(
    node: Node, folder: Path, versions: dict[str, Path]
) -> None:
    late, private = Registry(folder / "late"), Registry(folder / "private", private=True).start()
    try:
        image = private.push(versions["one"], "app:v1")
        pull_secret(node, "wrong", private, "guessed")
        pull_secret(node, "right", private, "secret")
        node.apply(
            image_pod("late", f"{late.where}/app:v1"),
            image_pod("nobody", image),
            image_pod("wrong", image, imagePullSecrets=[{"name": "wrong"}]),
        )
        for name, why in (("late", "refused"), ("nobody", "no credentials"), ("wrong", "401 Unauthorized")):
            # ErrImagePull stands for an instant only: its event stays.
            assert why in wait_for_reason(node, name, "ImagePullBackOff")
            for said in ("Error: ErrImagePull", "Failed to pull image"):
                node.until(said, lambda name=name, said=said: said in events(node, name))
            assert "guessed" not in events(node, name) and node.phase(name) == "Pending"
        node.apply(image_pod("right", image, imagePullSecrets=[{"name": "missing"}, {"name": "right"}]))
        assert says(node, "right") == "hello one"
        late.start().push(versions["two"], "app:v1")
        pull_secret(node, "wrong", private, "secret")
        assert (says(node, "late"), says(node, "wrong")) == ("hello two", "hello one")
        assert status_of(node, "late")["restartCount"] == 0
        node.kubectl("delete", "pod", "late", "nobody", "wrong", "right")
    finally:
        late.stop()
        private.stop()


def pull_secret(node: Node, name: str, registry: Registry, password: str) -> None:
    made = node.kubectl(
        "create", "secret", "docker-registry", name, f"--docker-server={registry.where}",
        "--docker-username=ann", f"--docker-password={password}", "--dry-run=client", "-o", "json",
    )  # fmt: skip
    node.kubectl("apply", "-f", "-", stdin=made.out)


def test_pull_secrets_of_the_service_account_are_used(
    node: Node, folder: Path, versions: dict[str, Path]
) -> None:
    private = Registry(folder / "account", private=True).start()
    try:
        image = private.push(versions["two"], "app:v1")
        pull_secret(node, "by-account", private, "secret")
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "puller"},
                   "imagePullSecrets": [{"name": "by-account"}]}  # fmt: skip
        node.apply(account)
        node.apply(image_pod("by-account", image, serviceAccountName="puller"))
        assert says(node, "by-account") == "hello two"
        assert node.get("pod", "by-account")["spec"]["imagePullSecrets"] == [{"name": "by-account"}]
        node.kubectl("delete", "pod/by-account", "serviceaccount/puller", "secret/by-account")
    finally:
        private.stop()


def test_image_commands_on_a_live_node(node: Node, registry: Registry, versions: dict[str, Path]) -> None:
    image = registry.push(versions["one"], "team/by-hand:v1")
    pulled = node.cli("image", "pull", image).out.split()
    assert pulled[0] == image and pulled[1].startswith("sha256:")
    rows = [line.split() for line in node.cli("image", "ls").out.splitlines()]
    assert rows[0][:2] == ["IMAGE", "TAG"]
    assert [f"{registry.where}/team/by-hand", "v1"] in [row[:2] for row in rows]
    assert pulled[1] in node.cli("image", "ls", "-q").out.split()
    listed = node.cli("image", "ls", "-o", "json").json()["images"]
    assert image in [tag for entry in listed for tag in entry["repoTags"]]
    [found] = node.cli("image", "inspect", image).json()
    assert found["config"]["config"]["Env"] == ["PATH=/bin", "GREETING=hello"]
    assert len(found["layers"]) == 2 and found["id"] == pulled[1]
    node.apply(image_pod("by-hand", image, "Never"))
    assert says(node, "by-hand") == "hello one"
    in_use = node.cli("image", "rm", pulled[1], check=False)
    assert in_use.code == 1 and "use" in in_use.err
    node.kubectl("delete", "pod", "by-hand")
    node.cli("image", "rm", image)
    assert image not in node.cli("image", "ls", "-o", "json").out
    gone = node.cli("image", "inspect", image, check=False)
    assert gone.code == 1 and "no such image" in gone.err
    node.apply(image_pod("removed", image, "Never"))
    wait_for_reason(node, "removed", "ErrImageNeverPull")
    node.kubectl("delete", "pod", "removed")
    absent = node.cli("image", "pull", f"{registry.where}/team/none:v1", check=False)
    assert absent.code == 1 and "404" in absent.err and "check the name" in absent.err


def test_the_images_own_stop_signal_ends_its_container(node: Node, folder: Path) -> None:
    """It does not listen to SIGTERM, and has an hour."""
    wait = "trap '' TERM; trap 'exit 0' USR1; echo hello; while :; do sleep 0.1; done"
    archive = make_image(folder / "signal.tar", "signal", command=(wait,), stop_signal="SIGUSR1")
    name = "example.test/team/signal:v1"
    node.cli("image", "import", str(archive), "--name", name)
    node.apply(image_pod("signal", name, "Never", terminationGracePeriodSeconds=3600))
    assert says(node, "signal") == "hello"
    node.kubectl("delete", "pod", "signal")


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_an_archive_made_by_skopeo_is_imported_and_run(
    node: Node, registry: Registry, versions: dict[str, Path], folder: Path, form: str
) -> None:
    source = registry.push(versions["two"], f"source-{form}:v1")
    archive, name = folder / f"{form}.tar", f"example.test/team/{form}:v2"
    tag = name if form == "docker-archive" else "v2"
    skopeo("--src-tls-verify=false", f"docker://{source}", f"{form}:{archive}:{tag}")
    imported = node.cli("image", "import", str(archive), "--name", name).out.split()
    assert imported[0] == name
    node.apply(image_pod(form, name, "Never"))
    assert says(node, form) == "hello two"
    node.kubectl("delete", "pod", form)
    node.cli("image", "rm", name)
    with archive.open("rb") as stdin:
        argv = [sys.executable, "-m", "kubelet_py", "image", "import", "-", "--name", name]
        done = subprocess.run(
            [*argv, "--root", str(node.root)], stdin=stdin, capture_output=True, env=node.environment()
        )
    assert done.returncode == 0 and done.stdout.decode().split()[0] == name
    # The same image under its other names, from the other tests, is one image still.
    assert name in json.loads(node.cli("image", "inspect", name).out)[0]["repoTags"]


CONTAINERS = "[sig-node] Containers should"
OVERRIDES = [
    ("use the image defaults if command and args are blank", {}, "entrypoint cmd"),
    (
        "be able to override the image's default arguments (container cmd)",
        {"args": ["own"]},
        "entrypoint own",
    ),
    (
        "be able to override the image's default command (container entrypoint)",
        {"command": ["busybox", "echo", "own"]},
        "own",
    ),
    (
        "be able to override the image's default command and arguments",
        {"command": ["busybox", "echo", "own"], "args": ["both"]},
        "own both",
    ),
]


@pytest.mark.parametrize(
    ("container", "said"),
    [
        pytest.param(*row[1:], marks=pytest.mark.conformance(f"{CONTAINERS} {row[0]}"), id=row[2])
        for row in OVERRIDES
    ],
)
def test_command_and_args_over_the_images_own(
    node: Node, folder: Path, container: dict[str, Any], said: str
) -> None:
    image, name = "example.test/team/echo:v1", said.replace(" ", "-")
    if image not in node.cli("image", "ls").out:
        archive = make_image(folder / "echo.tar", "one", ("busybox", "echo", "entrypoint"), ("cmd",))
        node.cli("image", "import", str(archive), "--name", image)
    body = image_pod(name, image, "Never", restartPolicy="Never")
    body["spec"]["containers"][0] |= container
    node.apply(body)
    node.until("Succeeded", lambda: node.phase(name) == "Succeeded")
    assert node.kubectl("logs", name).out.strip() == said
    node.kubectl("delete", "pod", name)


def test_what_is_no_archive_says_so(node: Node, folder: Path) -> None:
    (folder / "text").write_text("no tar\n" * 1000)
    done = node.cli("image", "import", str(folder / "text"), check=False)
    assert done.code == 1 and done.err.count("\n") == 1 and "Traceback" not in done.err
    missing = node.cli("image", "import", str(folder / "nothing"), check=False)
    assert missing.code == 1 and "ENOENT" in missing.err
