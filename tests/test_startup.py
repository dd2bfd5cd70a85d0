"""The command line answers before torch is imported: importing it takes seconds, and help needs none of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sepnet.cli._registry import commands

# What is slow to import and not needed to parse a command.
HEAVY = ("torch", "numpy", "scipy", "sklearn", "matplotlib", "lightning_fabric", "PIL")

CODE = f"""
import sys
sys.argv = ["sepnet", *sys.argv[1:]]
from sepnet.cli import main
status = 0
try:
    status = main()
except SystemExit as stop:
    status = stop.code
print("imported:", [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in commands)], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr.splitlines()[-1] == "imported: []"
