"""Which version of EndpointSlices the API server has: v1 since 1.21, before that v1beta1 alone.

The two differ in one field that rules depend on, an endpoint's node (changes.py reads both).
"""

from __future__ import annotations

import logging
import threading

from kubeclient.errors import ApiError, NotFound
from kubeclient.resources import ENDPOINT_SLICES, ENDPOINT_SLICES_BETA, Resource
from kubeclient.rest import RestClient

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.05  # the API server may be starting at the same moment


def endpoint_slices(client: RestClient, stop: threading.Event) -> Resource | None:
    """Ask until there is an answer; None when told to stop before."""
    while not stop.is_set():
        try:
            client.list(ENDPOINT_SLICES, limit=1)
        except NotFound:
            log.info("Chose endpoint slices version=v1beta1 (the API server has no v1)")
            return ENDPOINT_SLICES_BETA
        except ApiError as error:
            log.debug("Failed to ask for endpoint slices error=%s", error)
            stop.wait(RETRY_SECONDS)
            continue
        return ENDPOINT_SLICES
    return None
