"""A small hub: the part of the Hugging Face hub's HTTP interface that an upload needs, over what it was sent."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_of_the_tests"


@dataclass
class Hub:
    """What it holds."""

    url: str = ""
    repos: dict[str, bool] = field(default_factory=dict)  # name -> private
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # repository -> path -> content
    objects: dict[str, bytes] = field(default_factory=dict)  # of git LFS, by SHA-256


@contextmanager
def serving(refuses_commits: bool = False) -> Iterator[Hub]:
    """A hub that takes one token, for as long as the block lasts.

    Large files (`.safetensors`) go by git LFS, all others stand in the commit, as the hub does it.
    """
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *values: object) -> None:
            return

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _say(self, values: Any, code: int = 200) -> None:
            content = json.dumps(values).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_PUT(self) -> None:
            content, oid = self._body(), self.path.rpartition("/")[2]
            if hashlib.sha256(content).hexdigest() != oid:
                return self._say({"error": "other content"}, 400)
            hub.objects[oid] = content
            self._say({})

        def do_GET(self) -> None:
            self._say({"error": "Entry not found"}, 404)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self._body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._say({"error": "Invalid username or password."}, 401)
            if self.path == "/api/validate-yaml":
                return self._say({"errors": [], "warnings": []})
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
                is_new = name not in hub.repos
                hub.repos.setdefault(name, bool(asked.get("private") or asked.get("visibility") == "private"))
                return self._say({"url": f"{hub.url}/{name}", "name": name}, 200 if is_new else 409)
            if found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
                return self._say({"files": [self._mode(file["path"]) for file in json.loads(body)["files"]]})
            if self.path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    asked | {"actions": {"upload": {"href": f"{hub.url}/objects/{asked['oid']}"}}}
                    for asked in json.loads(body)["objects"]
                ]
                return self._say({"transfer": "basic", "objects": objects})
            if found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
                if refuses_commits:
                    return self._say({"error": "You have no right to write here"}, 403)
                self._commit(found[1], body)
                address = f"{hub.url}/{found[1]}/commit/{'0' * 40}"
                return self._say({"commitUrl": address, "commitOid": "0" * 40, "hookOutput": ""})
            self._say({"error": f"no such page: {self.path}"}, 404)

        @staticmethod
        def _mode(path: str) -> dict[str, Any]:
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}

        @staticmethod
        def _commit(repo: str, body: bytes) -> None:
            held = hub.files.setdefault(repo, {})
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    held[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    held[value["path"]] = hub.objects[value["oid"]]

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
