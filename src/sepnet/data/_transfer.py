"""One file over HTTP, resumed where an earlier attempt ended. What arrives is not trusted: whoever calls checks its hash."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

from sepnet._version import __version__
from sepnet.data._disk import Sink, writing
from sepnet.errors import one_line

__all__ = ["Progress", "TransferError", "transfer"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done ("cifar-10-python.tar.gz"), bytes done and bytes in all."""

BLOCK = 2**18
SLOWEST = 1024  # bytes a second: a server that stays below this for as long as it may be silent is given up as well
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP states that pass
RANGE_NOT_SATISFIABLE = 416


class TransferError(Exception):
    """An address did not give the file; ``again`` tells whether it is worth another attempt."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def transfer(url: str, part: Path, size: int, timeout: float, progress: Progress | None = None) -> None:
    """Fetch the rest of a file.

    Args:
        part: what is there of it, if anything; the whole file at the end. A failure leaves what has arrived.
        size: of the whole file in bytes; a server that speaks of another size has another file.
        timeout: seconds without a byte after which the server is given up.
        progress: see ``Progress``.

    Raises:
        TransferError: it did not arrive whole; the message says what the server did.
        OutputError: it cannot be written.
    """
    import requests  # pooch's own way to the network; a tenth of a second to import
    import urllib3

    begun = _begun(part, size)
    if begun == size:
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": f"sepnet/{__version__}"}
    if begun:
        headers["Range"] = f"bytes={begun}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            if response.status_code == RANGE_NOT_SATISFIABLE:
                with writing(part):
                    part.unlink(missing_ok=True)
            begun = _first_byte(response.status_code, response.reason, response.headers, begun, size)
            _receive(response.raw, part, begun, size, timeout, progress)
    except requests.TooManyRedirects:
        raise TransferError("it redirects without end", again=False) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise TransferError(*_broken(error, timeout, f"{_begun(part, size):,} of {size:,} bytes")) from error


def _begun(part: Path, size: int) -> int:
    """How many bytes are there; too many, and they are of something else."""
    with writing(part):
        have = part.stat().st_size if part.exists() else 0
        if have > size:
            part.unlink()
            return 0
        return have


def _first_byte(status: int, reason: str, headers: Any, begun: int, size: int) -> int:
    """Where in the file the answer begins: at ``begun`` or, from a server that cannot resume, at 0."""
    if status not in (200, 206):
        again = status in TEMPORARY or status == RANGE_NOT_SATISFIABLE
        raise TransferError(f"it answers {status} {one_line(reason, 40)}".rstrip(), again=again)
    if status == 206:
        unit, _, rest = headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        start = span.partition("-")[0]
        if unit != "bytes" or start != str(begun):
            raise TransferError("it resumes at another place than it was asked to", again=False)
    else:
        begun, total = 0, headers.get("Content-Length", "*")
    if total not in ("*", str(size)):
        raise TransferError(f"it has another file, of {one_line(total, 20)} bytes instead of {size:,}", again=False)
    return begun


def _receive(raw: Any, part: Path, done: int, size: int, timeout: float, progress: Progress | None) -> None:
    """Add what arrives to the first ``done`` bytes of ``part``."""
    # read1 gives what has arrived; read, in urllib3 before 2.1, waits for a whole block, and a trickle looks alive to it for hours
    read = getattr(raw, "read1", raw.read)
    what = part.name.removesuffix(".part")
    since, arrived = time.monotonic(), 0
    with Sink(part, "a" if done else "w") as file:
        while block := read(BLOCK):
            if done + len(block) > size:
                raise TransferError(f"it sends more than the {size:,} bytes of the file", again=False)
            file.write(block)
            done += len(block)
            arrived += len(block)
            if progress is not None:
                progress(what, done, size)
            now = time.monotonic()
            if now - since >= timeout:
                if arrived < SLOWEST * (now - since):
                    raise TransferError(f"it sent only {arrived:,} bytes in {now - since:.2g} s", again=True)
                since, arrived = now, 0
    if done < size:
        raise TransferError(f"it broke off after {done:,} of {size:,} bytes", again=True)


def _broken(error: BaseException, timeout: float, arrived: str) -> tuple[str, bool]:
    """In words, from the innermost cause, what broke the connection, and whether that may pass."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if met(socket.gaierror):
        return "its name cannot be resolved", False
    if met(ssl.SSLError):
        return f"no safe connection: {one_line(causes[-1], 100)}", False
    if met(ConnectionRefusedError):
        return "it refuses connections", False
    if met(TimeoutError) or any("timed out" in str(cause).lower() for cause in causes):
        return f"no byte came for {timeout:g} s, after {arrived}", True
    if met(ConnectionError, HTTPException) or "broken" in str(error).lower():
        return f"it broke off after {arrived}", True
    return f"the connection failed ({type(error).__name__}: {one_line(error, 100)})", True
