"""``sepnet`` with the small paper as a script that does not ask for its ``__name__``: no process of a run may run it again.

Its first word is the number of iterations of each run, the others are the command line.
"""

from __future__ import annotations

import sys

import sepnet.api._plan
from sepnet.cli import main
from sepnet.recipes import papers
from small_paper import lasting, small_paper

print("the script runs", flush=True)
paper = small_paper(configure=lasting(int(sys.argv.pop(1))))
papers.get = lambda _: paper  # type: ignore[method-assign]
sepnet.api._plan.seconds_per_run = lambda *_: 1.0
main()
