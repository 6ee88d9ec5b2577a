"""The event loop that the API server runs on: uvloop's.

asyncio's own TLS is Python, which took a quarter of a request's time, and it fills a buffer of 256 KiB for
every connection: 12 MB with those that one node keeps open. An installation that is older than this choice
may have no uvloop yet; it goes on with asyncio's, slower and larger.
"""

from __future__ import annotations

import asyncio


def new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
