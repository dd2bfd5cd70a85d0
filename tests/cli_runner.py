"""Runs ``sepnet`` in this process, for the tests of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import sepnet
from sepnet.cli import app


def invoke(*words: object, exit_code: int = 0) -> Any:
    """The result of ``sepnet WORDS``; it must end with ``exit_code`` and never show a traceback."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == exit_code, f"exit code {result.exit_code}: {result.output}"
    assert "Traceback" not in result.output
    return result


def error_of(*words: object) -> str:
    """The one line on stderr with which ``sepnet WORDS`` refuses: exit code 2, nothing on stdout."""
    result = invoke(*words, exit_code=2)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return str(lines[0])


def start(*words: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """``python -m sepnet WORDS`` as a process of its own, wherever the test stands."""
    source = str(Path(sepnet.__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "sepnet", *words], stdout=stdout, stderr=subprocess.PIPE, env=environment)
