"""A server on 127.0.0.1 that gives files, and can do to them what servers do: break off, corrupt, fall silent, send elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BLOCK = 16384


class FileServer:
    """Serves the files of ``root`` below /WAY/, where WAY is how: one of the methods of ``_Handler`` without its "way_".

    Attributes:
        asked: (way, file, Range header) of every request.
        slowly: seconds between two blocks of the way "slow".
    """

    def __init__(self, root: Path, slowly: float = 0.01) -> None:
        self.root = root
        self.slowly = slowly
        self.asked: list[tuple[str, str, str | None]] = []
        self.over = threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def url(self, way: str = "whole") -> str:
        """The folder that gives its files in this way."""
        return f"http://127.0.0.1:{self._server.server_port}/{way}"

    def ways(self) -> list[str]:
        """The ways of the requests so far."""
        return [way for way, _, _ in self.asked]


class _Handler(BaseHTTPRequestHandler):
    owner: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        _, way, name = self.path.split("/", 2)
        self.owner.asked.append((way, name, self.headers.get("Range")))
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, f"way_{way}")(name)

    def log_message(self, *_: Any) -> None:
        pass

    # ---- how to answer ----

    def way_whole(self, name: str) -> None:
        content, start = self._asked_for(name)
        self._head(len(content), start)
        self.wfile.write(content[start:])

    def way_slow(self, name: str) -> None:
        self._blocks(name, lambda: time.sleep(self.owner.slowly))

    def way_half(self, name: str) -> None:
        """Breaks off in the middle of what was asked for."""
        content, start = self._asked_for(name)
        self._head(len(content), start)
        self.wfile.write(content[start : (start + len(content)) // 2])

    def way_corrupt(self, name: str) -> None:
        content, start = self._asked_for(name)
        self._head(len(content), start)
        self.wfile.write(content[start:-10] + bytes(byte ^ 255 for byte in content[-10:]))

    def way_hang(self, name: str) -> None:
        """Falls silent in the middle."""
        content, start = self._asked_for(name)
        self._head(len(content), start)
        self.wfile.write(content[start : (start + len(content)) // 2])
        self.owner.over.wait(30)

    def way_silent(self, name: str) -> None:
        self.owner.over.wait(30)

    def way_drip(self, name: str) -> None:
        content, start = self._asked_for(name)
        self._head(len(content), start)
        for byte in content[start:]:
            self.wfile.write(bytes([byte]))
            if self.owner.over.wait(0.03):
                return

    def way_redirect(self, name: str) -> None:
        self._send_to(f"/whole/{name}")

    def way_circle(self, name: str) -> None:
        self._send_to(f"/circle/{name}")

    def way_missing(self, name: str) -> None:
        self.send_error(404)

    def way_busy(self, name: str) -> None:
        """Has no time at first."""
        if self.owner.ways().count("busy") < 3:
            self.send_error(503)
        else:
            self.way_whole(name)

    def way_from_the_start(self, name: str) -> None:
        """Cannot resume."""
        content = (self.owner.root / name).read_bytes()
        self._head(len(content), 0)
        self.wfile.write(content)

    def way_labelled(self, name: str) -> None:
        """Says, as some do of a .gz file, that it is packed for the way; whoever unpacks it has another file than the published."""
        content = (self.owner.root / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def way_elsewhere(self, name: str) -> None:
        """Resumes at another place than it was asked to."""
        content, start = self._asked_for(name)
        self._head(len(content), start, stated=start + 1)
        self.wfile.write(content[start:])

    def way_other(self, name: str) -> None:
        """A page that says that one must log in."""
        self._head(500, 0)
        self.wfile.write(b"<html>".ljust(500))

    def way_endless(self, name: str) -> None:
        self._head(None, 0)
        while not self.owner.over.is_set():
            self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    def way_unsized(self, name: str) -> None:
        content = (self.owner.root / name).read_bytes()
        self._head(None, 0)
        self.wfile.write(b"%x\r\n" % len(content) + content + b"\r\n0\r\n\r\n")

    # ---- the parts of an answer ----

    def _send_to(self, path: str) -> None:
        self.send_response(302)
        for header, value in (("Location", path), ("Content-Length", "0"), ("Connection", "close")):
            self.send_header(header, value)
        self.end_headers()

    def _asked_for(self, name: str) -> tuple[bytes, int]:
        content = (self.owner.root / name).read_bytes()
        asked = self.headers.get("Range", "bytes=0-")
        return content, int(asked.removeprefix("bytes=").split("-")[0])

    def _head(self, size: int | None, start: int, stated: int | None = None) -> None:
        resumed = self.headers.get("Range") is not None and size is not None and start > 0
        self.send_response(206 if resumed else 200)
        if size is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(size - start))
        if resumed:
            self.send_header("Content-Range", f"bytes {start if stated is None else stated}-{(size or 0) - 1}/{size}")
        self.end_headers()

    def _blocks(self, name: str, between: Callable[[], object]) -> None:
        content, start = self._asked_for(name)
        self._head(len(content), start)
        for position in range(start, len(content), BLOCK):
            self.wfile.write(content[position : position + BLOCK])
            between()
