"""What can go wrong in a CNI plugin or in the invoker, with the codes of the CNI specification.

    CniError                      any failure that is told to the runtime as CNI error JSON
    ├─ IncompatibleVersion   1    cniVersion of the configuration is not one of ours
    ├─ UnsupportedField      2    a field of the configuration that we do not implement
    ├─ UnknownContainer      3    the container or its network namespace does not exist
    ├─ BadEnvironment        4    a CNI_* variable is missing or malformed
    ├─ IoFailure             5    a file could not be read or written
    ├─ DecodeFailure         6    JSON that could not be understood
    ├─ InvalidConfig         7    the configuration contradicts itself or the host
    ├─ TryAgainLater        11    something transient stood in the way
    ├─ NotAvailable         50    STATUS: no ADD can succeed now
    ├─ LimitedConnectivity  51    STATUS: as 50, and existing attachments suffer too
    └─ PluginFailure     ≥ 100    everything that is a plugin's own
       ├─ AddressesExhausted 101  no address is left in any range
       ├─ NetlinkError     102    the kernel refused a netlink message (has .errno)
       └─ FirewallError    103    iptables could not be run or refused the rules

Codes 1–99 belong to the specification (CNI SPEC, section 5 "Error"), the rest to the plugin.
"""

from __future__ import annotations

import errno as errno_names
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class CniError(Exception):
    """A failure with `code`, a one-line `msg` and optional `details`; str() shows both texts."""

    code = 100

    def __init__(self, msg: str, details: str = "", *, code: int | None = None) -> None:
        super().__init__(msg if not details else f"{msg}: {details}")
        self.msg = msg
        self.details = details
        if code is not None:
            self.code = code

    def to_json(self, cni_version: str) -> dict[str, Any]:
        """The error object a plugin prints on stdout."""
        body: dict[str, Any] = {"cniVersion": cni_version, "code": self.code, "msg": self.msg}
        if self.details:
            body["details"] = self.details
        return body

    @staticmethod
    def from_json(body: dict[str, Any]) -> CniError:
        """Turn what another plugin printed back into the matching class; unknown codes stay CniError."""
        code = body.get("code")
        number = code if isinstance(code, int) else 100
        kind = _BY_CODE.get(number, CniError)
        return kind(str(body.get("msg", "")), str(body.get("details", "") or ""), code=number)


class IncompatibleVersion(CniError):
    code = 1


class UnsupportedField(CniError):
    code = 2


class UnknownContainer(CniError):
    code = 3


class BadEnvironment(CniError):
    code = 4


class IoFailure(CniError):
    code = 5


class DecodeFailure(CniError):
    code = 6


class InvalidConfig(CniError):
    code = 7


class TryAgainLater(CniError):
    code = 11


class NotAvailable(CniError):
    code = 50


class LimitedConnectivity(CniError):
    code = 51


class PluginFailure(CniError):
    code = 100


class AddressesExhausted(PluginFailure):
    code = 101


class NetlinkError(PluginFailure):
    """The kernel answered a message with an errno; `details` carries its extended explanation."""

    code = 102

    def __init__(self, action: str, number: int, explanation: str = "") -> None:
        name = errno_names.errorcode.get(number, str(number))
        super().__init__(f"Could not {action}: {name} ({os.strerror(number)})", explanation)
        self.errno = number


class FirewallError(PluginFailure):
    code = 103


_BY_CODE: dict[int, type[CniError]] = {
    kind.code: kind
    for kind in (
        IncompatibleVersion,
        UnsupportedField,
        UnknownContainer,
        BadEnvironment,
        IoFailure,
        DecodeFailure,
        InvalidConfig,
        TryAgainLater,
        NotAvailable,
        LimitedConnectivity,
    )
}
