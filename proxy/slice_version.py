"""Which version of EndpointSlices the API server has: v1 since 1.21, before that v1beta1 alone.

The two differ in one field that rules depend on, an endpoint's node (changes.py reads both).
"""

from __future__ import annotations

import logging
import threading

from kubeclient.errors import ApiError, NotFound, ServerUnavailable
from kubeclient.resources import ENDPOINT_SLICES, ENDPOINT_SLICES_BETA, Resource
from kubeclient.rest import RestClient

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.05  # the API server may be starting at the same moment
LONGEST_RETRY_SECONDS = 2.0


def endpoint_slices(client: RestClient, stop: threading.Event) -> Resource | None:
    """Ask until there is an answer; None when told to stop before."""
    delay, said = RETRY_SECONDS, ""
    while not stop.is_set():
        try:
            client.list(ENDPOINT_SLICES, limit=1)
        except NotFound:
            log.info("Chose endpoint slices version=v1beta1 (the API server has no v1)")
            return ENDPOINT_SLICES_BETA
        except ApiError as error:
            # Not to be reached is how a start begins; a refusal is somebody's to mend.
            known = isinstance(error, ServerUnavailable) or error.reason == said
            level = logging.DEBUG if known else logging.WARNING
            log.log(level, "Failed to ask for endpoint slices error=%s", error)
            said = error.reason
            stop.wait(delay)
            delay = min(LONGEST_RETRY_SECONDS, delay * 1.2)
            continue
        return ENDPOINT_SLICES
    return None
