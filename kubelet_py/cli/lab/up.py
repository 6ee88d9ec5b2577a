"""`kubelet-py lab up`: from nothing to a cluster whose nodes are Ready, told step by step.

The lab's description is written first, so that `lab down` finds whatever was made. All processes are forked
before this one opens its first watch; it has one thread until the end.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from controlplane import bootstrap_tokens
from controlplane.bootstrap_tokens import BootstrapToken
from kubelet_py.cli.lab import services, state, warm, wires
from kubelet_py.cli.lab.branch import Branch
from kubelet_py.cli.lab.down import remove
from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.layout import CONTROL, NODE_CONFIG, SWITCH, LabPaths
from kubelet_py.cli.lab.machines import Machines
from kubelet_py.cli.lab.state import MOST_NODES, Lab, Machine
from kubelet_py.cli.up import require_overlay, require_root, require_wireguard

if TYPE_CHECKING:
    from kubeclient.rest import RestClient

T = TypeVar("T")
TOKEN_SECONDS = 600.0  # that a token is good for beyond --timeout
LOOK_SECONDS = 0.1
AT_ONCE = 8
JOIN_OPTIONS = ("proxy_mode", "pod_routes", "wireguard_port")
CONTROL_OPTIONS = ("node_cidr_mask_size", "load_balancer_addresses", "cluster_domain")


def run(args: argparse.Namespace, paths: LabPaths) -> int:
    require_root("lab up")
    require_overlay()
    if args.pod_routes == "wireguard":
        require_wireguard()
    started = time.monotonic()
    state.check_folder(paths)
    with state.locked(paths):
        before = state.load(paths)
        try:
            machines = Machines(paths, Branch.of_host(paths.cgroup))
            if before is not None and machines.identity(SWITCH) is None:
                raise LabError(f"the lab in {paths.root} was killed (take it away: {paths.command} down)")
            lab = _wanted(args, before, paths)
            if before is None and args.kubelet_config:
                _keep_kubelet_config(paths, args.kubelet_config)
            client, programs = _start_cluster(paths, lab, machines, before is None, started, args.timeout)
        except BaseException:
            if before is None:
                remove(paths)  # there is nothing in it yet that anybody would miss
            raise
        new = [machine for machine in lab.nodes if not _joined(paths, machine)]
        token = _make_token(client, args.timeout)
        invitation = _invite(token, paths, lab)

        def boot(machine: Machine) -> None:
            if paths.kubelet_config.exists():
                file = Path(f"{paths.disk(machine.name)}{NODE_CONFIG}")
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(paths.kubelet_config, file)
            if machines.state(machine.name) != "off":  # an earlier `lab up` could not make it a node
                machines.cut_power(machine.name)
            service = services.node(machine.name, invitation, programs)
            machines.finish([machines.boot(lab, machine, service)])

        _bring_up(client, machines, new, boot, started, args.timeout)
        _end_token(client, token)
        client.close()
    print(f"Use it:  {paths.command} kubectl get nodes -o wide")
    print(f"    or:  export KUBECONFIG={paths.kubeconfig}", flush=True)
    return 0


def _start_cluster(
    paths: LabPaths, lab: Lab, machines: Machines, fresh: bool, started: float, timeout: float
) -> tuple[RestClient, services.Programs]:
    """The switch and the control machine, where they are not there; meanwhile import what nodes run."""
    if fresh:
        services.control_settings(lab)  # says what is wrong with the options before anything is made
        wires.check_free(lab, paths)
        state.save(paths, lab)
        machines.boot_switch(lab)
        wires.connect_host(lab, paths.link)
        machines.finish([machines.boot(lab, lab.machine(CONTROL), services.control(lab))])
        address = lab.address(state.CONTROL_NUMBER)
        _say(started, f"Made the switch and the control machine ({address})")
    programs = warm.import_programs(*warm.PROGRAMS)
    client = _client_of_running(paths, machines, started, timeout)
    _say(started, f"API server answers at {lab.server}")
    state.save(paths, lab)
    return client, programs


def _joined(paths: LabPaths, machine: Machine) -> bool:
    """Whether the machine became a node once: it has a kubelet's kubeconfig on its disk."""
    return paths.node(machine.name).kubeconfig("kubelet").exists()


def _say(started: float, text: str) -> None:
    print(f"{text} after {time.monotonic() - started:.2f} s", flush=True)


def _wanted(args: argparse.Namespace, before: Lab | None, paths: LabPaths) -> Lab:
    if not 1 <= args.nodes <= MOST_NODES:
        raise LabError(f"--nodes {args.nodes}: a lab has between 1 and {MOST_NODES} nodes")
    if before is not None:
        there = len(before.nodes)
        if args.nodes <= there and all(_joined(paths, machine) for machine in before.nodes):
            raise LabError(
                f"a lab of {there} node{'s' * (there != 1)} runs already (see it: {paths.command} status; "
                f"end it: {paths.command} down; more nodes: {paths.command} up --nodes {there + 1})"
            )
        return before.grown(max(args.nodes, there))
    lab = Lab(
        network=args.network,
        cluster_cidr=args.cluster_cidr,
        service_cidr=args.service_cidr,
        control_options=_options(args, CONTROL_OPTIONS),
        options=(
            *_options(args, JOIN_OPTIONS),
            *(("--kubelet-config", NODE_CONFIG) if args.kubelet_config else ()),
        ),
    )
    state.check(lab, args.nodes)
    return lab.grown(args.nodes)


def _keep_kubelet_config(paths: LabPaths, source: str) -> None:
    """A copy for the nodes, whose folders are not the host's. Raises LabError for what no kubelet takes."""
    from kubelet_py import config
    from kubelet_py.errors import ConfigError

    try:
        config.load(Path(source))
        shutil.copy(source, paths.kubelet_config)
    except (ConfigError, OSError) as error:
        raise LabError(f"--kubelet-config: {error}") from error


def _options(args: argparse.Namespace, names: tuple[str, ...]) -> tuple[str, ...]:
    given = [(name, getattr(args, name)) for name in names if getattr(args, name) is not None]
    return tuple(part for name, value in given for part in (f"--{name.replace('_', '-')}", str(value)))


def _client_of_running(
    paths: LabPaths, machines: Machines, started: float, timeout: float, hint: str = ""
) -> RestClient:
    """The administrator's client, once the API server answers. Raises LabError.

    `hint` is for a lab that stays; what a first `lab up` cannot finish is taken away, its logs too.
    """
    from kubeclient import kubeconfig
    from kubeclient.errors import KubeClientError
    from kubeclient.rest import RestClient

    problem = "it has not made its certificates"
    while True:
        try:
            if paths.kubeconfig.exists():
                client = RestClient(
                    kubeconfig.load(paths.kubeconfig), user_agent="kubelet-py-lab", timeout=5.0
                )
                if client.raw("GET", "/readyz")[0] == 200:
                    return client
        except KubeClientError as error:
            problem = str(error)
        if time.monotonic() - started > timeout or machines.identity(CONTROL) is None:
            words = machines.last_words(CONTROL)
            raise LabError(f"the control plane does not answer: {problem} ({words}{hint})")
        time.sleep(0.02)


def _make_token(client: RestClient, timeout: float) -> BootstrapToken:
    """A bootstrap token for these nodes; waits until cluster-info is signed with it."""
    from kubeclient.errors import AlreadyExists
    from kubeclient.resources import CONFIG_MAPS, SECRETS

    name, secret = bootstrap_tokens.split(bootstrap_tokens.generate())
    token = BootstrapToken(
        name, secret, time.time() + timeout + TOKEN_SECONDS, bootstrap_tokens.USAGES,
        (bootstrap_tokens.DEFAULT_GROUP,), "kubelet-py lab",
    )  # fmt: skip
    deadline = time.monotonic() + timeout
    key = bootstrap_tokens.JWS_PREFIX + name

    def create() -> None:
        try:
            client.create(SECRETS, bootstrap_tokens.to_secret(token))
        except AlreadyExists:
            pass  # the answer to an earlier try did not come through

    def signed() -> bool:
        info = client.get(CONFIG_MAPS, "cluster-info", "kube-public")
        return key in (info.get("data") or {})

    _patiently(create, deadline)
    while not _patiently(signed, deadline):
        if time.monotonic() > deadline:
            raise LabError(f"cluster-info was not signed in {timeout:g} s (kubelet-py lab logs control)")
        time.sleep(0.02)
    return token


def _patiently(ask: Callable[[], T], deadline: float) -> T:
    """Ask again while the API server is too busy to answer. Raises LabError for any other refusal."""
    from kubeclient.errors import KubeClientError, ServerUnavailable

    while True:
        try:
            return ask()
        except KubeClientError as error:
            if not isinstance(error, ServerUnavailable) or time.monotonic() > deadline:
                raise LabError(str(error)) from error
        time.sleep(LOOK_SECONDS)


def _end_token(client: RestClient, token: BootstrapToken) -> None:
    """Nobody else shall join with it. It would end by itself, too."""
    from kubeclient.errors import NotFound
    from kubeclient.resources import SECRETS

    def delete() -> None:
        try:
            client.delete(SECRETS, bootstrap_tokens.SECRET_PREFIX + token.id, bootstrap_tokens.NAMESPACE)
        except NotFound:
            pass

    _patiently(delete, time.monotonic() + TOKEN_SECONDS)


def _invite(token: BootstrapToken, paths: LabPaths, lab: Lab) -> services.Invitation:
    """What a person would type in the new machines."""
    from kubelet_py.cli.token import ca_hash

    ca = (paths.node(CONTROL).pki / "ca.crt").read_bytes()
    arguments = ("--server", lab.server, "--token", token.text, "--discovery-token-ca-cert-hash", ca_hash(ca))
    return services.Invitation((*arguments, *lab.options))


def _logs(paths: LabPaths) -> str:
    return f"; logs: {paths.command} logs {CONTROL}"


def wait_answering(paths: LabPaths, machines: Machines, timeout: float) -> None:
    """Wait for the API server. Raises LabError."""
    _client_of_running(paths, machines, time.monotonic(), timeout, _logs(paths)).close()


def wait_ready_anew(paths: LabPaths, machines: Machines, name: str, since: float, timeout: float) -> None:
    """Wait for a report of Ready that is newer than `since` (epoch seconds). Raises LabError."""
    from kubelet_py.cli.readiness import node_is_ready, why_not_ready

    deadline = time.monotonic() + timeout
    client = _client_of_running(paths, machines, time.monotonic(), timeout, _logs(paths))
    while not node_is_ready(client, name, since):
        if time.monotonic() > deadline:
            raise LabError(
                f"{why_not_ready(client, name)} after {timeout:g} s (logs: {paths.command} logs {name})"
            )
        time.sleep(LOOK_SECONDS)
    client.close()


def _bring_up(
    client: RestClient,
    machines: Machines,
    new: Sequence[Machine],
    boot: Callable[[Machine], None],
    started: float,
    timeout: float,
) -> None:
    """Boot the nodes, some at a time: of fifty that join at once each would run into its time limits.

    Prints each as it becomes Ready. Raises LabError with what a missing one says of itself.
    """
    from kubelet_py.cli.readiness import why_not_ready

    waiting, joining = [*new], list[str]()
    while waiting or joining:
        while waiting and len(joining) < AT_ONCE:
            boot(waiting[0])
            joining.append(waiting.pop(0).name)
        for name in _ready(client).intersection(joining):
            joining.remove(name)
            _say(started, f"{name} is Ready")
        if joining and time.monotonic() - started > timeout:
            name, left = joining[0], len(joining) + len(waiting)
            problem = f"{why_not_ready(client, name)} ({machines.last_words(name)})"
            raise LabError(
                f"{left} nodes are not Ready after {timeout:g} s; {problem}; "
                f"look at it: {machines.command} logs {name}; or type this again; or take the lab away: "
                f"{machines.command} down"
            )
        time.sleep(LOOK_SECONDS if joining else 0)


def _ready(client: RestClient) -> set[str]:
    """Names of the nodes that are Ready; none while the API server does not answer."""
    from kubeclient.errors import KubeClientError
    from kubeclient.resources import NODES
    from kubelet_py.cli.readiness import condition

    try:
        nodes = client.list(NODES)["items"]
    except KubeClientError:
        return set()
    return {node["metadata"]["name"] for node in nodes if condition(node, "Ready") == "True"}
