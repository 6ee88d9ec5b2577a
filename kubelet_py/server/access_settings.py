"""`authentication` and `authorization` of a KubeletConfiguration, with upstream's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubelet_py.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """`webhook`: bearer tokens are asked about. `client_ca_file` "" means the cluster's own CA."""

    client_ca_file: str = ""
    webhook: bool = True
    anonymous: bool = False
    always_allow: bool = False
    token_seconds: float = 120.0
    allowed_seconds: float = 300.0
    denied_seconds: float = 30.0


def read(authentication: Mapping[str, Any], authorization: Mapping[str, Any]) -> AccessSettings:
    """PURE. Raises ConfigError, which names the key that is unknown or has no meaning."""
    parts = _section(authentication, "authentication", ("x509", "webhook", "anonymous"))
    x509 = _section(parts["x509"], "authentication.x509", ("clientCAFile",))
    webhook = _section(parts["webhook"], "authentication.webhook", ("enabled", "cacheTTL"))
    anonymous = _section(parts["anonymous"], "authentication.anonymous", ("enabled",))
    rules = _section(authorization, "authorization", ("mode", "webhook"))
    times = ("cacheAuthorizedTTL", "cacheUnauthorizedTTL")
    answers = _section(rules["webhook"], "authorization.webhook", times)
    mode = rules["mode"] or "Webhook"
    if mode not in ("Webhook", "AlwaysAllow"):
        raise _wrong(f"authorization.mode {mode!r}: it must be Webhook or AlwaysAllow")
    plain = AccessSettings()
    return AccessSettings(
        client_ca_file=_text(x509["clientCAFile"], "authentication.x509.clientCAFile"),
        webhook=_flag(webhook["enabled"], "authentication.webhook.enabled", plain.webhook),
        anonymous=_flag(anonymous["enabled"], "authentication.anonymous.enabled", plain.anonymous),
        always_allow=mode == "AlwaysAllow",
        token_seconds=_seconds(webhook["cacheTTL"], "authentication.webhook.cacheTTL", plain.token_seconds),
        allowed_seconds=_seconds(
            answers[times[0]], f"authorization.webhook.{times[0]}", plain.allowed_seconds
        ),
        denied_seconds=_seconds(answers[times[1]], f"authorization.webhook.{times[1]}", plain.denied_seconds),
    )


def _section(value: Any, name: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value or {}, Mapping):
        raise _wrong(f"{name} must be of type dict")
    unknown = sorted(set(value or {}) - set(known))
    if unknown:
        raise _wrong(f"unknown keys {', '.join(f'{name}.{key}' for key in unknown)}")
    return {key: (value or {}).get(key) for key in known}


def _flag(value: Any, name: str, default: bool) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _wrong(f"{name} must be of type bool")
    return default if value is None else value


def _text(value: Any, name: str) -> str:
    if value is not None and not isinstance(value, str):
        raise _wrong(f"{name} must be of type str")
    return value or ""


def _seconds(value: Any, name: str, default: float) -> float:
    from kubelet_py.config import parse_duration

    if value is None:
        return default
    if not isinstance(value, str):
        raise _wrong(f"{name} must be of type str")
    return parse_duration(value) or default  # 0s is not set, as upstream has it


def _wrong(text: str) -> ConfigError:
    return ConfigError(f"Could not use configuration: {text}")
