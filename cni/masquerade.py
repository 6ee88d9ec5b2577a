"""Source NAT for pods that talk to the world: one chain per network, not one per pod.

Upstream's bridge plugin adds a chain and a rule for every address (two iptables calls, 10 ms and more
per pod on the nft variant). All those chains of one network say the same, so this module keeps a single
one, hung below POSTROUTING by the network's subnet:

    -A POSTROUTING -s <subnet> -j CNI-MASQ-<hash>
    -A CNI-MASQ-<hash> -d <what stays unmasqueraded> -j RETURN      (the subnet; the cluster's range)
    -A CNI-MASQ-<hash> -d 224.0.0.0/4 -j RETURN
    -A CNI-MASQ-<hash> -j MASQUERADE
"""

from __future__ import annotations

import _thread
import ipaddress

from cni.iptables import Iptables, line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Masquerade:
    """Keeps the chains; remembers what it has already verified in this process.

    The memory makes an ADD free of iptables calls; `ensure(verify=True)` looks at the kernel again, which
    the node does when it starts and from time to time.
    """

    def __init__(self) -> None:
        # The jump is looked for and then added; two threads must not both find it missing.
        self._lock = _thread.allocate_lock()
        self._verified: set[tuple[str, str, tuple[str, ...]]] = set()

    def ensure(
        self, network: str, subnet: str, excluded: Sequence[str] = (), *, verify: bool = False
    ) -> None:
        """Masquerade what leaves `subnet` for anywhere but `subnet` itself and the `excluded` prefixes."""
        key = (network, subnet, tuple(excluded))
        with self._lock:
            if verify or key not in self._verified:
                self._put(network, subnet, excluded)
                self._verified.add(key)

    def _put(self, network: str, subnet: str, excluded: Sequence[str]) -> None:
        version = ipaddress.ip_network(subnet).version
        iptables = Iptables(version)
        chain, jump = chain_name(network, subnet), _jump(network, subnet)
        lines = [f":{chain} - [0:0]", *_rules(chain, network, subnet, excluded)]
        if not iptables.has_rule("nat", "POSTROUTING", jump):
            lines.append("-A POSTROUTING " + line(jump))
        iptables.restore("\n".join(["*nat", *lines, "COMMIT", ""]))

    def remove(self, network: str, subnet: str) -> None:
        """Take the chain and its jump away; nothing happens when they are not there."""
        self._verified = {key for key in self._verified if key[:2] != (network, subnet)}
        iptables = Iptables(ipaddress.ip_network(subnet).version)
        chain, jump = chain_name(network, subnet), _jump(network, subnet)
        lines: list[str] = []
        if iptables.has_rule("nat", "POSTROUTING", jump):
            lines.append("-D POSTROUTING " + line(jump))
        if iptables.rules("nat", chain):
            lines += [f":{chain} - [0:0]", f"-X {chain}"]
        if lines:
            # Declarations come before rules in a restore script.
            lines.sort(key=lambda text: not text.startswith(":"))
            iptables.restore("\n".join(["*nat", *lines, "COMMIT", ""]))


def chain_name(network: str, subnet: str) -> str:
    """At most 28 characters, the longest chain name iptables takes."""
    import hashlib  # it loads OpenSSL: not for a plugin that masquerades nothing

    return "CNI-MASQ-" + hashlib.sha512(f"{network}{subnet}".encode()).hexdigest()[:19]


def _jump(network: str, subnet: str) -> list[str]:
    note = f"{network} leaves {subnet}"
    return ["-s", subnet, "-m", "comment", "--comment", note, "-j", chain_name(network, subnet)]


def _rules(chain: str, network: str, subnet: str, excluded: Sequence[str]) -> list[str]:
    version = ipaddress.ip_network(subnet).version
    multicast = "224.0.0.0/4" if version == 4 else "ff00::/8"
    same = [prefix for prefix in excluded if ipaddress.ip_network(prefix).version == version]
    stays = list(dict.fromkeys([subnet, *same, multicast]))
    rules = [f"-A {chain} -d {prefix} -j RETURN" for prefix in stays]
    return [*rules, f"-A {chain} -j MASQUERADE --random-fully"]
