"""A small stand-in of the HTTP APIs of the Hugging Face Hub and of ModelScope on loopback, which can misbehave."""

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
PARTS = {"cut10": 0.1, "cut": 0.5, "cut99": 0.99, "stall": 0.3}  # of the bytes, that come
STALL = 12  # seconds without a byte
LARGE = (".safetensors", ".parquet")  # what these hubs keep outside of git


@dataclass
class Hub:
    """One repository, `org/tiny`, as a model and as a data set, and the faults to show.

    faults: file name → cut (half of the bytes, then the connection closes), cut10 and cut99 (so many
    percent), flip (one byte is wrong), short and long (a Content-Length that is none), whole (200 with
    all bytes to a request for the rest), stall (a part, and then nothing), html (a page in the place of
    the file), loop (a redirect to itself), an HTTP status. `times` limits how often a fault shows.
    `gated` turns everybody away; `commit` is what the branch names now.
    """

    files: dict[str, bytes]
    faults: dict[str, str] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    gated: bool = False
    commit: str = COMMIT
    pages: bool = False  # answer the API's requests with a page for humans
    url: str = ""
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def info(self) -> dict[str, object]:
        siblings = []
        for name, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {
            "id": "org/tiny",
            "modelId": "org/tiny",
            "sha": self.commit,
            "private": False,
            "siblings": siblings,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }

    def tree(self) -> list[dict[str, object]]:
        found = []
        for sibling in self.info()["siblings"]:  # type: ignore[attr-defined]
            entry = {"type": "file", "path": sibling["rfilename"], "size": sibling["size"], "oid": sibling["blobId"]}
            if "lfs" in sibling:
                entry["lfs"] = {"oid": sibling["lfs"]["sha256"], "size": sibling["size"], "pointerSize": 130}
            found.append(entry)
        return found

    def modelscope(self) -> list[dict[str, object]]:
        """ModelScope's listing of the same files, and of their folders."""
        folders = {parent.as_posix() for name in self.files for parent in Path(name).parents} - {".", "..", "/"}
        return [
            {"Path": name, "Name": Path(name).name, "Type": "tree", "Size": 0, "Revision": COMMIT, "CommittedDate": 2,
             "Sha256": ""}
            for name in sorted(folders)
        ] + [
            {"Path": name, "Name": Path(name).name, "Type": "blob", "Size": len(data), "Revision": self.commit,
             "CommittedDate": 1, "Sha256": hashlib.sha256(data).hexdigest()}
            for name, data in self.files.items()
        ]  # fmt: skip

    def page(self, query: dict[str, list[str]]) -> list[dict[str, object]]:
        """One page of ModelScope's listing of a data set, which may start at a folder."""
        root, number, size = query.get("Root", [""])[0], int(query["PageNumber"][0]), int(query["PageSize"][0])
        below = [entry for entry in self.modelscope() if not root or str(entry["Path"]).startswith(f"{root}/")]
        return below[(number - 1) * size : number * size]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, (path, _, asked) = self.hub, self.path.partition("?")
        query = parse_qs(asked)
        hub.requests.append(f"{self.command} {path}")
        hub.headers.append({k.lower(): v for k, v in self.headers.items()})
        if hub.gated:
            return self.answer(b'{"error":"Access is restricted"}', 403, {"X-Error-Code": "GatedRepo"})
        if hub.pages:
            return self.answer(PAGE, 200, {"Content-Type": "text/html"})
        if re.fullmatch(rf"/api/(models|datasets)/org/tiny(/revision/(main|{hub.commit}))?", path):
            return self.answer(json.dumps(hub.info()).encode())
        if re.match(r"/api/(models|datasets)/org/tiny/revision/", path):
            return self.answer(b'{"error":"Invalid rev id"}', 404, {"X-Error-Code": "RevisionNotFound"})
        if re.match(r"/api/(models|datasets)/org/tiny/tree/", path):
            return self.answer(json.dumps(hub.tree()).encode())
        if path == "/api/v1/models/org/tiny/repo/files":
            return self.files(hub.modelscope())
        if path == "/api/v1/datasets/org/tiny/repo/tree":
            return self.files(hub.page(query))
        if path in ("/api/v1/models/org/tiny/repo", "/api/v1/datasets/org/tiny/repo"):
            return self.file(query["FilePath"][0])
        match = re.fullmatch(rf"(/datasets)?/org/tiny/resolve/{hub.commit}/(.+)", path)
        if not match:
            return self.answer(b'{"error":"Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})
        return self.file(unquote(match[2]))

    def files(self, found: list[dict[str, object]]) -> None:
        self.answer(json.dumps({"Code": 200, "Success": True, "Data": {"Files": found}}).encode())

    def file(self, name: str) -> None:
        data, fault = self.hub.files[name], self.hub.faults.get(name)
        if fault and self.command == "GET" and name in self.hub.times:
            self.hub.times[name] -= 1
            fault = fault if self.hub.times[name] >= 0 else None
        if fault and fault.isdigit() and self.command == "GET":
            return self.answer(b"no", int(fault))
        if fault == "loop":
            return self.answer(b"", 302, {"Location": self.path})
        if fault == "html" and self.command == "GET":
            return self.answer(PAGE, 200, {"Content-Type": "text/html"})
        headers = {"X-Repo-Commit": self.hub.commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}  # fmt: skip
        if name.endswith(LARGE):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": headers["ETag"]}
        start, status = 0, 200
        if (asked := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) and fault != "whole":
            start, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if fault == "flip":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.command == "GET" and fault in ("short", "long"):
            headers["Content-Length"] = str(len(data) - start + (-7 if fault == "short" else 7))
        return self.answer(data[start:], status, headers, part=PARTS.get(fault or "", 1), stall=fault == "stall")

    def answer(
        self,
        data: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        part: float = 1,
        stall: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # the client had enough
                self.wfile.write(data[: int(len(data) * part)])
                self.wfile.flush()
                if stall:
                    time.sleep(STALL)
        if part < 1 or "Content-Length" in (headers or {}):
            self.close_connection = True


@contextlib.contextmanager
def serve(folder: Path, port: int = 0) -> Iterator[Hub]:
    """The files of a folder as `org/tiny`, at a port of loopback; 0 takes any that is free."""
    hub = Hub(
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    )
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
