"""What can go wrong on an upgraded connection.

StreamError
├── ProtocolError    the peer broke the rules of SPDY, WebSocket or the channel protocols
└── StreamTimeout    the peer did not do in time what the protocol wants of it
"""

from __future__ import annotations


class StreamError(Exception):
    """Base of everything this package raises on purpose."""


class ProtocolError(StreamError):
    """Bytes that are not what the agreed protocol allows; the connection is of no use any more."""


class StreamTimeout(StreamError):
    """Nothing came in time."""
