"""A server that speaks as much of the hub's protocol as huggingface_hub asks for in a download."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

GREFCOCO = "81eede59b3ac070049f597d023c0ff08d1fb80e9"
OTHERS = ("2a8fb52111949aeb1166a7a5dda4af83273ed375", "a155a94abcdb31a08b451351eb0aae5359806ded")


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        files: {"models/owner/repo" or "datasets/owner/repo": {path: bytes}}. Every file lies on a
            second host, to which the hub redirects.
        gated: repositories that need a token.
        break_after: bytes after which a transfer is cut off, once; None for never.
        requests: (method, path, authorization, range) of every request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.gated, self.break_after, self.requests = {}, set(), None, []

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def storage(self):
        """Another name of the same machine, so that tokens must not go there."""
        return f"http://localhost:{self.server_port}/storage"

    def asked(self, method, part):
        """Requests with a part in their path."""
        return [found for found in self.requests if found[0] == method and part in found[1]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        headers = self.headers
        self.server.requests.append(
            (self.command, path, headers.get("Authorization"), headers.get("Range"))
        )
        if path.startswith("storage/"):
            return self.send_file(path.partition("/")[2])
        kind = "datasets" if "datasets" in path.split("/")[:2] else "models"
        parts = [part for part in path.split("/") if part not in ("api", "models", "datasets")]
        if len(parts) < 4:
            return self.refuse(404, "")
        repo = f"{kind}/{'/'.join(parts[:2])}"
        what, revision, name = parts[2], parts[3], "/".join(parts[4:])
        files = self.server.files.get(repo)
        if files is None:
            return self.refuse(401, "RepoNotFound")
        if repo in self.server.gated and headers.get("Authorization") != "Bearer right":
            return self.refuse(403, "GatedRepo")
        if revision not in ("main", "v1", COMMIT, GREFCOCO, *OTHERS):
            return self.refuse(404, "RevisionNotFound")
        if what == "tree":
            entries = [{"type": "file", "path": p, "size": 1, "oid": "0" * 40} for p in files]
            return self.send(
                200, json.dumps(entries).encode(), {"Content-Type": "application/json"}
            )
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            facts = {"id": repo.partition("/")[2], "sha": COMMIT, "siblings": siblings}
            return self.send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})
        if name not in files:
            return self.refuse(404, "EntryNotFound")
        content = files[name]
        self.send(
            302,
            b"",
            {
                "Location": f"{self.server.storage}/{repo}/{name}",
                "X-Repo-Commit": COMMIT if revision in ("main", "v1") else revision,
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
            },
        )

    def send_file(self, path):
        repo, name = "/".join(path.split("/")[:3]), "/".join(path.split("/")[3:])
        content = self.server.files[repo][name]
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        cut, self.server.break_after = self.server.break_after, None
        self.send(206 if start else 200, content[start:], headers if start else {}, cut)

    def refuse(self, status, code):
        self.send(status, b"{}", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    def send(self, status, body, headers, cut=None):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


@contextlib.contextmanager
def running_hub():
    """Context with a server in a thread of its own."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join(10)
        hub.server_close()
