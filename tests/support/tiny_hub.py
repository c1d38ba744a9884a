"""A model hub on the loopback address: listings, files in parts, redirections, broken lines."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

LARGE = 2000
"""Bytes from which a file is kept apart, under its SHA-256."""


@dataclass
class Hub:
    """Repositories, and what the server does and did."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    address: str = ""
    cut: int | None = None
    """Close the connection after so many bytes of a large file, once."""
    token: str = ""
    """Asked of everybody."""
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    damage: bool = False
    """Send other bytes than the listing announced."""
    ranges: bool = True

    def revision(self, repository: str) -> str:
        content = sorted(self.files[repository].items())
        return hashlib.sha1(repr(content).encode()).hexdigest()

    def listing(self, repository: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.files[repository].items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git}
            if len(content) >= LARGE:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content)}
            siblings.append(entry)
        card = {"license": "cc-by-nc-4.0"}
        return {"sha": self.revision(repository), "siblings": siblings, "cardData": card}

    def paths(self, start: str) -> list[str]:
        return [path for path, _ in self.requests if path.startswith(start)]


class Answer(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

    def do_GET(self) -> None:
        path = unquote(self.path)
        self.hub.requests.append((path, dict(self.headers)))
        stored = path.startswith("/stored/")
        known = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if self.hub.token and not stored and not known:
            return self.send(401, b"no")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)\?blobs=true", path):
            if found[1] not in self.hub.files:
                return self.send(404, b"no such model")
            return self.send(200, json.dumps(self.hub.listing(found[1])).encode())
        found = re.fullmatch(r"(/stored)?/([^/]+/[^/]+)/resolve/[0-9a-f]{40}/(.+)", path)
        content = self.hub.files.get(found[2], {}).get(found[3]) if found else None
        if found is None or content is None:
            return self.send(404, b"no such file")
        if len(content) >= LARGE and not stored:
            # as the hub does: large files lie on another host
            self.send_response(302)
            host = self.hub.address.replace("127.0.0.1", "localhost")
            self.send_header("Location", f"{host}/stored{self.path}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self.send_file(content)

    def send_file(self, content: bytes) -> None:
        if self.hub.damage:
            content = bytes(len(content))
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and self.hub.ranges else 0
        cut, large = self.hub.cut, len(content) >= LARGE
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if cut is not None and large:
            self.hub.cut = None
            self.wfile.write(content[start:cut])
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def send(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Hub]:
    """Yield a hub that answers while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answer,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
