"""Imports matplotlib so that stderr stays clean.

Where its cache folder cannot be written (a container, a service's user) matplotlib warns, at its import and at that of its font
manager, and works all the same with a temporary folder. The user of a command has nothing to mend there.
"""

from __future__ import annotations

import logging

__all__: list[str] = []

_logger = logging.getLogger("matplotlib")
_level = _logger.level
_logger.setLevel(logging.ERROR)
try:
    import matplotlib.font_manager  # noqa: F401 - this writes the cache
finally:
    _logger.setLevel(_level)  # what is drawn later may warn again
