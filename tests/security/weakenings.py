"""Ways to weaken the product, and the tests that must notice: read by mutate.py.

Each is a few replacements of text that occurs exactly once in its file. When the source moves on and a text
is not found any more, the run fails and says so: the weakening must be written anew, not forgotten.
"""

from __future__ import annotations

from tests.security import weakenings_of_defaults, weakenings_of_escapes, weakenings_of_pods

WEAKENINGS = (
    *weakenings_of_defaults.WEAKENINGS,
    *weakenings_of_escapes.WEAKENINGS,
    *weakenings_of_pods.WEAKENINGS,
)
