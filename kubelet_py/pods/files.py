"""Files that the kubelet writes for a pod: hosts, hostname, resolv.conf, the termination log.

They lie in the pod's own folder and are bound into its containers one by one; an image's own files of these
names are never read nor changed. Texts follow upstream's kubelet_pods.go and network/dns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kubelet_py.errors import SandboxError
from kubelet_py.pods.container_spec import Mount
from kubelet_py.pods.model import Object, full_name

MOST_SERVERS = 3  # of resolv.conf: glibc reads no more
MOST_SEARCHES = 32
SEARCHES_BYTES = 2048
MOST_NODENAME = 64  # uts.nodename has room for these and a zero
SHM = "shm"  # the pod's shared memory, a tmpfs in its folder


@dataclass(frozen=True, slots=True)
class DnsDefaults:
    """What the node knows of names: its own resolv.conf, and the cluster's DNS where there is one."""

    node_text: str
    cluster_dns: Sequence[str] = ()
    cluster_domain: str = ""


def hostname_of(pod: Object, node_name: str) -> str:
    """The pod's host name: spec.hostname or its name, at most 63 bytes; the node's on the host's network."""
    if pod["spec"].get("hostNetwork"):
        return node_name
    name = str(pod["spec"].get("hostname") or pod["metadata"]["name"])
    return name if len(name) <= 63 else name[:63].rstrip("-.")


def nodename_of(pod: Object, node_name: str, domain: str) -> str:
    """What `hostname` says inside: with setHostnameAsFQDN the name that the pod has in the cluster's DNS.
    SandboxError where the kernel has no room for that."""
    hostname, subdomain = hostname_of(pod, node_name), pod["spec"].get("subdomain")
    whole = pod["spec"].get("setHostnameAsFQDN") and subdomain and domain
    if not whole or pod["spec"].get("hostNetwork"):
        return hostname
    name = f"{hostname}.{host_domain(pod, domain)}"
    if len(name) > MOST_NODENAME:
        raise SandboxError(
            f"failed to construct FQDN from pod hostname and cluster domain, FQDN {name} is too long "
            f"({MOST_NODENAME} characters is the max, {len(name)} characters requested)"
        )
    return name


def host_domain(pod: Object, domain: str) -> str:
    """The domain of a pod with a subdomain."""
    return f"{pod['spec']['subdomain']}.{pod['metadata']['namespace']}.svc.{domain}"


def hosts_text(pod: Object, ips: Sequence[str], hostname: str, host_text: str | None, domain: str) -> str:
    """/etc/hosts; `host_text` is the node's own file for a pod on the host's network."""
    if host_text is not None:
        lines = ["# Kubernetes-managed hosts file (host network).", host_text.rstrip("\n")]
    else:
        lines = [
            "# Kubernetes-managed hosts file.",
            "127.0.0.1\tlocalhost",
            "::1\tlocalhost ip6-localhost ip6-loopback",
            "fe00::0\tip6-localnet",
            "fe00::0\tip6-mcastprefix",
            "fe00::1\tip6-allnodes",
            "fe00::2\tip6-allrouters",
        ]
        names = [hostname]
        if pod["spec"].get("subdomain") and domain:
            names.insert(0, f"{hostname}.{host_domain(pod, domain)}")
        lines += [f"{ip}\t" + "\t".join(names) for ip in ips]
    aliases = pod["spec"].get("hostAliases") or []
    if aliases:
        lines += ["", "# Entries added by HostAliases."]
        lines += [f"{alias['ip']}\t" + "\t".join(alias.get("hostnames") or []) for alias in aliases]
    return "\n".join(lines) + "\n"


def dns_policy(pod: Object) -> str:
    """What dnsPolicy comes to: ClusterFirst does not hold on the host's network."""
    policy = str(pod["spec"].get("dnsPolicy", "ClusterFirst"))
    return "Default" if policy == "ClusterFirst" and pod["spec"].get("hostNetwork") else policy


def missing_cluster_dns(pod: Object, defaults: DnsDefaults) -> str | None:
    """The warning that a pod's names are not the cluster's, because the node knows no cluster DNS."""
    if defaults.cluster_dns or not dns_policy(pod).startswith("ClusterFirst"):
        return None
    return (
        f'pod: "{full_name(pod)}". kubelet does not have ClusterDNS IP configured and cannot create Pod '
        'using "ClusterFirst" policy. Falling back to "Default" policy.'
    )


def resolv_text(pod: Object, defaults: DnsDefaults) -> str:
    """/etc/resolv.conf by dnsPolicy; without a cluster DNS, ClusterFirst is the node's own, as upstream."""
    servers, searches, options = _resolver(pod, defaults)
    servers, searches = servers[:MOST_SERVERS], _fitting(searches)
    lines = [f"search {' '.join(searches)}"] if searches else []
    lines += [f"nameserver {server}" for server in servers]
    lines += [f"options {' '.join(options)}"] if options else []
    return "".join(line + "\n" for line in lines)


def omitted_dns(pod: Object, defaults: DnsDefaults) -> list[str]:
    """What to tell of a resolv.conf that has no room for all that was asked for."""
    servers, searches, _ = _resolver(pod, defaults)
    fitting, texts = _fitting(searches), []
    if len(servers) > MOST_SERVERS:
        texts.append(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver "
            f"line is: {' '.join(servers[:MOST_SERVERS])}"
        )
    if fitting != searches:
        texts.append(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search "
            f"line is: {' '.join(fitting)}"
        )
    return texts


def _fitting(searches: Sequence[str]) -> list[str]:
    fitting = list(searches[:MOST_SEARCHES])
    while len(" ".join(fitting)) > SEARCHES_BYTES:
        fitting.pop()
    return fitting


def _resolver(pod: Object, defaults: DnsDefaults) -> tuple[list[str], list[str], list[str]]:
    """(name servers, search domains, options) that the pod asks for, without the limits."""
    policy = dns_policy(pod)
    clustered = policy in ("ClusterFirst", "ClusterFirstWithHostNet") and defaults.cluster_dns
    servers, searches, options = parse_resolv("" if policy == "None" else defaults.node_text)
    if clustered:
        domain, namespace = defaults.cluster_domain, pod["metadata"]["namespace"]
        servers = list(defaults.cluster_dns)
        searches = [f"{namespace}.svc.{domain}", f"svc.{domain}", domain, *searches]
        options = ["ndots:5"]
    config = pod["spec"].get("dnsConfig") or {}
    servers = _once([*servers, *(config.get("nameservers") or [])])
    searches = _once([*searches, *(config.get("searches") or [])])
    for option in config.get("options") or []:
        options = [o for o in options if o.partition(":")[0] != option["name"]]
        options.append(option["name"] + (f":{option['value']}" if option.get("value") else ""))
    return servers, searches, options


def parse_resolv(text: str) -> tuple[list[str], list[str], list[str]]:
    """(name servers, search domains, options) of a resolv.conf."""
    servers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith(("#", ";")):
            continue
        if words[0] == "nameserver" and len(words) > 1:
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            searches = words[1:]
        elif words[0] == "options":
            options += words[1:]
    return servers, searches, options


def _once(items: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(items))


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file of ours in place: containers that have it bound must see the new text. Its folder is
    the pod's, which is there."""
    path.write_text(text)
    path.chmod(mode)


def managed_mounts(container: Object, folder: Path, hosts: bool) -> list[Mount]:
    """Binds of our files, but for those that the container mounts something over."""
    taken = {mount["mountPath"].rstrip("/") for mount in container.get("volumeMounts") or ()}
    wanted = [("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
    if hosts:
        wanted.append(("etc-hosts", "/etc/hosts"))
    return [
        Mount(str(folder / name), path) for name, path in wanted if path not in taken and "/etc" not in taken
    ]
