"""A server on 127.0.0.1 that speaks as much of the hub's interface as fetching a checkpoint needs.

It answers the model card request with sizes, serves small files directly and weights through a
redirect with the ``X-Linked-*`` headers, as the hub does for large files, and honors ``Range``. It
records every request.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serve ``repositories``: name -> {file name: bytes}, for the length of a ``with`` block."""

    def __init__(self, repositories):
        self.repositories = repositories
        self.listed_sizes = {}  # file name -> size to list instead of the true one
        self.cut_after = None  # number of bytes after which one transfer of weights is cut off
        self.requests = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fetched(self, method="GET"):
        """Return the names of the files whose content was asked for."""
        return [
            path.rsplit("/", 1)[1]
            for verb, path, _ in self.requests
            if verb == method and "/resolve/" in path
        ]

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def _handler(hub):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                path = urlsplit(self.path).path
                hub.requests.append((self.command, path, self.headers.get("Range")))
                if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                    return self.describe(found[1], body)
                if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
                    return self.tree(found[1], body)
                if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                    return self.file(found[1], found[3], body)
                if found := re.fullmatch(r"/store/([^/]+/[^/]+)/(.+)", path):
                    return self.content(hub.repositories[found[1]][found[2]], body)
                return self.refuse(404, body)

            def describe(self, name, body):
                files = hub.repositories.get(name)
                if files is None:
                    return self.refuse(404, body)
                siblings = [
                    {
                        "rfilename": file,
                        "size": hub.listed_sizes.get(file, len(data)),
                        "blobId": etag(data),
                    }
                    for file, data in files.items()
                ]
                return self.json({"id": name, "sha": COMMIT, "siblings": siblings}, body)

            def tree(self, name, body):
                files = hub.repositories.get(name)
                if files is None:
                    return self.refuse(404, body)
                rows = [
                    {"type": "file", "path": file, "size": len(data), "oid": etag(data)}
                    for file, data in files.items()
                ]
                return self.json(rows, body)

            def file(self, name, file, body):
                data = hub.repositories.get(name, {}).get(file)
                if data is None:
                    return self.refuse(404, body)
                if not file.endswith(".safetensors"):
                    return self.content(data, body)
                self.send_response(302)
                self.send_header("Location", f"{hub.url}/store/{name}/{file}")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("X-Linked-Etag", f'"{etag(data)}"')
                self.send_header("X-Linked-Size", str(len(data)))
                self.send_header("Content-Length", "0")
                return self.end_headers()

            def content(self, data, body):
                start = 0
                asked = self.headers.get("Range")
                if asked and (found := re.fullmatch(r"bytes=(\d+)-(\d*)", asked)):
                    start = int(found[1])
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                else:
                    self.send_response(200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{etag(data)}"')
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                if not body:
                    return
                if hub.cut_after is not None and len(data) > hub.cut_after:
                    self.wfile.write(data[start : start + hub.cut_after])
                    self.wfile.flush()
                    hub.cut_after = None
                    self.close_connection = True
                    self.connection.close()
                    return
                self.wfile.write(data[start:])

            def json(self, value, body):
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def refuse(self, status, body):
                data = b'{"error": "Repository not found"}'
                self.send_response(status)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

        return Handler


def etag(data):
    return hashlib.sha256(data).hexdigest()
