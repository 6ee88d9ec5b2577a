"""What a registry wants to see before it answers: the challenges of its 401 (RFC 9110, section 11.6.1).

One field may hold several, each a scheme with its parameters, all separated by commas: only what has an
equals sign belongs to the scheme before it. A scheme may have one word of base64 instead (Negotiate, NTLM).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))')
_SCHEME = re.compile(_TOKEN)
_TOKEN68 = re.compile(r"[ \t]+[0-9A-Za-z._~+/-]+=*[ \t]*(?=,|$)")
_BETWEEN = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True)
class Challenge:
    """`scheme` and the parameters' names are in lower case."""

    scheme: str
    fields: Mapping[str, str]


def parse(header: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate field, up to what cannot be read."""
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while True:
        between = _BETWEEN.match(header, at)
        at = between.end() if between else at
        if found and (parameter := _PARAMETER.match(header, at)):
            key, quoted, plain = parameter.groups()
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1][1].setdefault(key.lower(), value)
            at = parameter.end()
        elif scheme := _SCHEME.match(header, at):
            found.append((scheme[0].lower(), {}))
            token = _TOKEN68.match(header, scheme.end())
            at = token.end() if token else scheme.end()
        else:
            return [Challenge(name, fields) for name, fields in found]


def choose(challenges: list[Challenge]) -> Challenge | None:
    """The one to answer, as containerd chooses: a token before the password itself."""
    for challenge in challenges:
        if challenge.scheme == "bearer" and "realm" in challenge.fields:
            return challenge
    return next((challenge for challenge in challenges if challenge.scheme == "basic"), None)
