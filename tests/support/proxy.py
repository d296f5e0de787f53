"""A proxy before a server that does to one call what a network, or a server under load, does to it.

`late` means: later than the client waits.
"""

import http.client
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = (
    "lost before", "lost after", "502 before", "502 after", "late before", "late after", "twice",
)  # fmt: skip
"""`before` the server does what it is asked, or `after`, so that only the answer is amiss."""
_ID = re.compile(r"/(?:[0-9a-f]{32}|m-[0-9a-f]{32})(?=/|$)")


class Proxy:
    """On loopback. `arm` names the calls that something happens to; `calls` are those since then.

    late_s: must be more than the client's patience.
    """

    def __init__(self, target: str, late_s: float) -> None:
        self._target, self.late_s = urlsplit(target).netloc, late_s
        self._lock = threading.Condition()
        self.calls: Counter[str] = Counter()
        self.due: dict[tuple[str, int], str] = {}  # of what was armed, what has not happened yet
        self._under_way = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                proxy.handle(self, self._body())

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline().partition(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A client that gave up waiting is no news."""

        self._http = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._http.server_port}"

    def arm(self, due: Mapping[tuple[str, int], str] | None = None) -> None:
        """From now on: calls suffer a fault each, once, by their kind and number (from 1)."""
        with self._lock:
            self.calls.clear()
            self.due = dict(due or {})

    def handle(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """One request."""
        kind = f"{handler.command} {_ID.sub('/*', urlsplit(handler.path).path)}"
        kind = re.sub(r"(mlflow-artifacts/artifacts)/.*", r"\1/*", kind)
        with self._lock:
            self.calls[kind] += 1
            fault = self.due.pop((kind, self.calls[kind]), "")
            self._under_way += 1
        try:
            self._serve(handler, body, fault)
        finally:
            with self._lock:
                self._under_way -= 1
                self._lock.notify_all()

    def _serve(self, handler: BaseHTTPRequestHandler, body: bytes, fault: str) -> None:
        what, _, when = fault.partition(" ")
        if when == "before":
            if what == "late":
                time.sleep(self.late_s)
                self._ask(handler, body)
            self._spoil(handler, what)
            return
        answer = self._ask(handler, body)
        if what == "twice":
            answer = self._ask(handler, body)
        if when == "after":
            if what == "late":
                time.sleep(self.late_s)
            self._spoil(handler, what)
            return
        self._answer(handler, *answer)

    def _spoil(self, handler: BaseHTTPRequestHandler, what: str) -> None:
        handler.close_connection = True
        if what == "502":
            self._answer(handler, 502, "text/plain", b"Bad Gateway")

    def _ask(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(self._target, timeout=60)
        try:
            own = {"host", "transfer-encoding", "content-length"}
            headers = {k: v for k, v in handler.headers.items() if k.lower() not in own}
            headers |= {"Host": self._target, "Connection": "close"}
            connection.request(handler.command, handler.path, body, headers)
            got = connection.getresponse()
            return got.status, got.getheader("Content-Type") or "text/plain", got.read()
        finally:
            connection.close()

    def _answer(self, handler: BaseHTTPRequestHandler, status: int, kind: str, body: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()

    def settle(self) -> None:
        """Until no request is under way."""
        with self._lock:
            assert self._lock.wait_for(lambda: not self._under_way, timeout=120)

    def close(self) -> None:
        """End it."""
        self._http.shutdown()
        self._http.server_close()
