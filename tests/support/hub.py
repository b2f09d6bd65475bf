"""A hub of Hugging Face on this machine: the part of its HTTP interface that huggingface_hub and transformers use.

The main branch of owner/name is the folder root/owner/name, which a test may also write itself; each content that was
requested is a commit and stays available.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_local"
"""Writing needs it; reading does not."""


class LocalHub:
    """The repositories of a folder.

    Args:
        root: the folder.

    Attributes:
        url: of the server, while `serving` is active.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = ""

    def branch(self, repository: str, name: str = "main") -> Path:
        return self.root / repository if name == "main" else self.root / ".branches" / name / repository

    def commit(self, repository: str, revision: str) -> Path | None:
        """The files of a branch or commit, in a folder called as the commit; None if there is no such revision."""
        known = self.root / ".commits" / repository / revision
        if known.is_dir():
            return known
        folder = self.branch(repository, revision)
        if not folder.is_dir():
            return None
        digest = hashlib.sha1()
        for path in files_of(folder):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
        commit = known.with_name(digest.hexdigest())
        if not commit.is_dir():
            shutil.copytree(folder, commit)
        return commit

    @contextlib.contextmanager
    def serving(self) -> Iterator[LocalHub]:
        hub = self

        class Handler(_Handler):
            local_hub = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    local_hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]:
            case ["api", "models", owner, name]:
                self._info(f"{owner}/{name}", "main")
            case ["api", "models", owner, name, "revision", revision]:
                self._info(f"{owner}/{name}", revision)
            case ["api", "models", owner, name, "tree", revision, *_]:
                if folder := self._commit(f"{owner}/{name}", revision):
                    entries = [{"type": "file", "path": path, **about} for path, about in _listing(folder).items()]
                    self._json(200, entries)
            case [owner, name, "resolve", revision, *path]:
                self._file(f"{owner}/{name}", revision, "/".join(path))
            case _:
                self._json(501, {"error": f"not in this hub: GET {self.path}"})

    def do_POST(self) -> None:
        body = self._body()
        path = urlsplit(self.path).path.strip("/")
        if path == "api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json(401, {"error": "Invalid username or password."})
        else:
            self._write([unquote(part) for part in path.split("/")], body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _write(self, path: list[str], body: bytes) -> None:
        hub = self.local_hub
        match path:
            case ["api", "repos", "create"]:
                fields = json.loads(body)
                repository = f"{fields['organization']}/{fields['name']}"
                status = 409 if hub.branch(repository).exists() else 200
                hub.branch(repository).mkdir(parents=True, exist_ok=True)
                self._json(status, {"url": f"{hub.url}/{repository}", "name": repository})
            case ["api", "models", owner, name, "branch", branch]:
                folder = hub.branch(f"{owner}/{name}", branch)
                status = 409 if folder.exists() else 200
                if not folder.exists():
                    shutil.copytree(hub.branch(f"{owner}/{name}"), folder)
                self._json(status, {})
            case ["api", "models", owner, name, "preupload", revision]:
                if self._commit(f"{owner}/{name}", revision):
                    names = [file["path"] for file in json.loads(body)["files"]]
                    modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                    self._json(200, {"files": modes})
            case ["api", "models", owner, name, "commit", revision]:
                folder = hub.branch(f"{owner}/{name}", revision)
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        file = folder / line["value"]["path"]
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_bytes(base64.b64decode(line["value"]["content"]))
                commit = hub.commit(f"{owner}/{name}", revision)
                assert commit is not None
                url = f"{hub.url}/{owner}/{name}/commit/{commit.name}"
                self._json(200, {"success": True, "commitUrl": url, "commitOid": commit.name})
            case _:
                self._json(501, {"error": f"not in this hub: POST {self.path}"})

    def _commit(self, repository: str, revision: str) -> Path | None:
        """As `LocalHub.commit`; sends the error if there is none."""
        commit = self.local_hub.commit(repository, revision)
        if commit is None:
            kind = "Revision" if self.local_hub.branch(repository).is_dir() else "Repo"
            self._json(404, {"error": f"{kind} not found"}, {"X-Error-Code": f"{kind}NotFound"})
        return commit

    def _info(self, repository: str, revision: str) -> None:
        if commit := self._commit(repository, revision):
            siblings = [{"rfilename": name} for name in _listing(commit)]
            self._json(200, {"id": repository, "sha": commit.name, "private": False, "siblings": siblings, "tags": []})

    def _file(self, repository: str, revision: str, name: str) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return
        about = {"X-Repo-Commit": commit.name}
        if not (commit / name).is_file():
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", **about})
            return
        content = (commit / name).read_bytes()
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self._send(200, content, {"ETag": etag, "Content-Type": "application/octet-stream", **about})

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        message = {"X-Error-Message": value["error"]} if status >= 400 and "error" in value else {}
        self._send(status, content, {"Content-Type": "application/json", **message, **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and id of each file by its path."""
    return {
        str(path.relative_to(folder)): {
            "size": path.stat().st_size,
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
        }
        for path in files_of(folder)
    }
