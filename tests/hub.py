"""A hub on loopback, which speaks the endpoints that huggingface_hub uses."""

import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>[^?]+)")
TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/?]+)")
BLOBS = "/blobs/"


class Hub:
    """Repositories as mappings of commits to files; `branches` name commits, `requests` are noted.

    `broken` are names of files whose connection breaks once in the middle, `forged` those that are
    sent with other bytes than their hash says, `gated` are repositories that take a token.
    """

    def __init__(self):
        self.repos, self.branches = {}, {}
        self.broken, self.forged, self.gated, self.requests = set(), set(), set(), []
        self.status = None

    def commit(self, repo, files, branch="main"):
        """Add a commit with files as bytes; return its name."""
        content = b"".join(name.encode() + files[name] for name in sorted(files))
        commit = hashlib.sha1(content).hexdigest()
        self.repos.setdefault(repo, {})[commit] = files
        self.branches[repo, branch] = commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def log_message(self, *_):
        pass

    @property
    def hub(self):
        return self.server.hub

    def _answer(self, with_body):
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if self.hub.status:
            return self._send(self.hub.status, b"", with_body)
        if self.path.startswith(BLOBS):
            return self._send_blob(self.path.removeprefix(BLOBS), with_body)
        match = RESOLVE.match(self.path) or TREE.match(self.path)
        if not match:
            return self._send(404, b"", with_body)
        about = match.groupdict()
        repo = about["repo"]
        if repo in self.hub.gated and "Authorization" not in self.headers:
            return self._send(403, b"", with_body, {"X-Error-Code": "GatedRepo"})
        commits = self.hub.repos.get(repo)
        if commits is None:
            return self._send(401, b"", with_body, {"X-Error-Code": "RepoNotFound"})
        revision = about["revision"].replace("%2F", "/")
        commit = self.hub.branches.get((repo, revision), revision)
        if commit not in commits:
            return self._send(404, b"", with_body, {"X-Error-Code": "RevisionNotFound"})
        files = commits[commit]
        if "name" not in about:
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
            return self._send(200, json.dumps(listed).encode(), with_body)
        headers = {"X-Repo-Commit": commit}
        if about["name"] not in files:
            return self._send(404, b"", with_body, headers | {"X-Error-Code": "EntryNotFound"})
        data = files[about["name"]]
        headers |= {
            "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"http://localhost:{self.server.server_port}{BLOBS}{repo}/{commit}/"
            + about["name"],
        }
        return self._send(302, b"", with_body, headers)

    def _send_blob(self, path, with_body):
        owner, model, commit, name = path.split("/", 3)
        data = self.hub.repos[f"{owner}/{model}"][commit][name]
        if name in self.hub.forged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        span, status, headers = self.headers.get("Range"), 200, {"Accept-Ranges": "bytes"}
        if span:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", span).groups()
            start, stop = int(first), min(int(last or len(data)) + 1, len(data))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            data, status = data[start:stop], 206
        if name in self.hub.broken and with_body:
            self.hub.broken.discard(name)
            self._send(status, data, True, headers, n_sent=len(data) // 2)
            self.close_connection = True
            return
        self._send(status, data, with_body, headers)

    def _send(self, status, data, with_body, headers=None, n_sent=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data[:n_sent])


def set_endpoint(monkeypatch, address):
    """Set what huggingface_hub reads from HF_ENDPOINT when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def serve():
    """Serve an empty hub; yield it and its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.hub = Hub()
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.hub, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
