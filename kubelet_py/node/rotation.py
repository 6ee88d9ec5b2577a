"""When a certificate has to be asked for: a pure decision over what there is, what is wanted, and the clock.

A certificate is renewed when 70 to 90 % of its life is over. The share between is chosen at random for each
certificate, so that nodes that were made together do not all come back in the same minute.
Source: upstream's client-go/util/certificate, nextRotationDeadline and certSatisfiesTemplate.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubelet_py.node.key_maker import Subject
from kubelet_py.node.x509 import Certificate

FIRST_SHARE, SPREAD = 0.7, 0.2
FIRST_DELAY, LONGEST_DELAY = 2.0, 120.0
LOOK_SECONDS = 600.0  # the clock may jump, as a VM's does that was suspended


@dataclass(frozen=True, slots=True)
class Decision:
    """`ask` now, because of `reason`; or look again after `seconds`."""

    ask: bool
    reason: str
    seconds: float = 0.0


def rotation_time(certificate: Certificate, share: float) -> float:
    """Seconds since 1970; `share` from 0 to 1 says where between 70 and 90 % of its life."""
    life = certificate.not_after - certificate.not_before
    return certificate.not_before + life * (FIRST_SHARE + SPREAD * share)


def decide(
    present: Certificate | None, wanted: Subject, *, share: float, now: float, rotate: bool
) -> Decision:
    """`rotate` false: what is there is kept until it ends."""
    if present is None:
        return Decision(True, "there is none")
    if now >= present.not_after:
        return Decision(True, "it has expired")
    if not fits(present, wanted):
        return Decision(True, "it was made for another subject")
    due = rotation_time(present, share) if rotate else present.not_after
    if now >= due:
        over = (now - present.not_before) / (present.not_after - present.not_before)
        return Decision(True, f"{over:.0%} of its life is over")
    return Decision(False, "it is good", min(due - now, LOOK_SECONDS))


def fits(present: Certificate, wanted: Subject) -> bool:
    """Is it for this very subject, with all the names that are wanted?"""
    return (
        present.common_name == wanted.common_name
        and set(present.organizations) == set(wanted.organizations)
        and set(wanted.names) <= set(present.names)
        and set(wanted.addresses) <= set(present.addresses)
    )


def retry_delay(failures: int, share: float) -> float:
    """Seconds to wait after so many failures in a row; `share` from 0 to 1 spreads them by a tenth."""
    return float(min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(failures - 1, 16)) * (1 + 0.1 * share))
