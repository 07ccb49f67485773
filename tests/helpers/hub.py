"""A hub on loopback that speaks what huggingface_hub and datasets ask for."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from rdrop_jax.data import hub as data_hub
from rdrop_jax.pretrained import hub as weights_hub

_RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([a-z-]+)/([^/]+))?(/.*)?")
_UPLOAD = re.compile(
    r"/api/(?:repos/create|validate-yaml|models/([^/]+/[^/]+)/(?:preupload|commit)/main)"
)
# Endings of files that are stored in git-lfs, whose etag is a sha256.
_LARGE = (".safetensors", ".bin", ".parquet", ".zip")


def etag(name, content):
    if name.endswith(_LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """Repositories in memory, and the faults that their server has.

    Attributes:
      url: address of the server, for HF_ENDPOINT.
      requests: (method, path, range) of every request so far.
      gated: names of repositories whose files need ``token``.
      status: code that answers every request with an error; None: none.
      cut: bytes after which the next download breaks off; None: it does not.
      wrong: content that is sent instead of a file, by its name.
    """

    def __init__(self):
        self.repos, self.requests = {}, []
        self.gated, self.token, self.wrong = set(), "hf_right", {}
        self.status = self.cut = None

    def add(self, repo, files, kind="models", refs=("main",)):
        """Adds a commit, which refs then name; returns its id."""
        found = self.repos.setdefault((kind, repo), {"refs": {}, "commits": {}})
        files = {k: v.encode() if isinstance(v, str) else v for k, v in files.items()}
        text = json.dumps([len(found["commits"]), *sorted(files)])
        commit = hashlib.sha1((repo + text).encode()).hexdigest()
        found["commits"][commit] = files
        found["refs"] |= dict.fromkeys(refs, commit)
        return commit

    def files_of(self, repo, kind="models"):
        """The files of the main branch."""
        found = self.repos[kind, repo]
        return found["commits"][found["refs"]["main"]]

    def downloads(self, ending):
        return [r for r in self.requests if r[0] == "GET" and r[1].endswith(ending)]

    @contextmanager
    def serve(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _entry(path, content):
    found = {"type": "file", "path": path, "size": len(content)}
    found["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if path.endswith(_LARGE):
        oid = etag(path, content)
        found["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
    return found


def _tree(files, folder, recursive):
    prefix = f"{folder}/" if folder else ""
    inside = {p: c for p, c in files.items() if p.startswith(prefix)}
    folders = {
        prefix + "/".join(parts[:i])
        for p in inside
        for parts in [p.removeprefix(prefix).split("/")]
        for i in range(1, len(parts))
        if recursive or i == 1
    }
    rows = [{"type": "directory", "path": p, "size": 0, "oid": "0"} for p in folders]
    return rows + [
        _entry(p, c)
        for p, c in inside.items()
        if recursive or "/" not in p.removeprefix(prefix)
    ]


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self, code, body=b"", **headers):
            self.send_response(code)
            headers = {"Content-Length": len(body)} | headers
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def json(self, content):
            self.answer(200, json.dumps(content).encode(), Content_Type="text/json")

        def error(self, code, name="", message="no"):
            named = {"X-Error-Code": name} if name else {}
            body = json.dumps({"error": message}).encode()
            self.answer(code, body, **named, **{"X-Error-Message": message})

        def files(self, kind, repo, revision):
            """The commit and files of a revision, or an answer with an error."""
            found = hub.repos.get((kind, repo))
            if found is None:
                return self.error(404, "RepoNotFound")
            commit = found["refs"].get(revision, revision)
            if commit not in found["commits"]:
                return self.error(404, "RevisionNotFound")
            return commit, found["commits"][commit]

        def do_HEAD(self):
            self.do_GET()

        def do_POST(self):
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length).decode()
            if match := _UPLOAD.fullmatch(urlsplit(self.path).path):
                return self.upload(match[1], body)
            try:
                given = json.loads(body)
                wanted, expand = given["paths"], given.get("expand")
            except ValueError:
                form = parse_qs(body)
                wanted, expand = form.get("paths", []), None
            del expand
            url = urlsplit(self.path)
            hub.requests.append(("POST", unquote(url.path), None))
            match = _API.fullmatch(url.path)
            if not match or match[3] != "paths-info":
                return self.error(404)
            found = self.files(match[1], match[2], unquote(match[4]))
            if found is None:
                return None
            rows = []
            for path in [wanted] if isinstance(wanted, str) else wanted:
                if path in found[1]:
                    rows.append(_entry(path, found[1][path]))
                elif any(p.startswith(f"{path}/") for p in found[1]):
                    rows.append({"type": "directory", "path": path, "oid": "0"})
            return self.json(rows)

        def upload(self, repo, body):
            """Answers the requests of HfApi.create_repo and HfApi.upload_folder."""
            url = urlsplit(self.path).path
            hub.requests.append(("POST", url, None))
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.error(hub.status or 401)
            if hub.status:
                return self.error(hub.status)
            if url.endswith("validate-yaml"):
                return self.json({"warnings": [], "errors": []})
            lines = [json.loads(line) for line in body.splitlines()]
            if url.endswith("create"):
                repo = f"{lines[0]['organization']}/{lines[0]['name']}"
                known = ("models", repo) in hub.repos
                if not known:
                    hub.add(repo, {})
                link = json.dumps({"url": f"{hub.url}/{repo}"}).encode()
                return self.answer(409 if known else 200, link)
            if "/preupload/" in url:
                names = [file["path"] for file in lines[0]["files"]]
                mode = {"uploadMode": "regular", "shouldIgnore": False}
                return self.json({"files": [{"path": n, **mode} for n in names]})
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            commit = hub.add(repo, files)
            link = f"{hub.url}/{repo}/commit/{commit}"
            return self.json({"success": True, "commitOid": commit, "commitUrl": link})

        def do_GET(self):
            url = urlsplit(self.path)
            ranged = self.headers.get("Range")
            hub.requests.append((self.command, unquote(url.path), ranged))
            if hub.status:
                return self.error(hub.status)
            if match := _RESOLVE.fullmatch(url.path):
                return self.resolve(*match.groups())
            match = _API.fullmatch(url.path)
            if not match:
                return self.error(404)
            kind, repo, verb, revision, rest = match.groups()
            found = self.files(kind, repo, unquote(revision or "main"))
            if found is None:
                return None
            commit, files = found
            if verb == "tree":
                asked = parse_qs(url.query).get("recursive", [""])[0].lower()
                folder = unquote(rest or "").strip("/")
                return self.json(_tree(files, folder, asked in ("true", "1")))
            return self.json(
                {
                    "_id": "0",
                    "id": repo,
                    "sha": commit,
                    "private": False,
                    "gated": "manual" if repo in hub.gated else False,
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "siblings": [{"rfilename": name} for name in files],
                }
            )

        def resolve(self, kind, repo, revision, name):
            found = self.files(kind or "models", repo, unquote(revision))
            if found is None:
                return None
            commit, files = found
            name = unquote(name)
            if repo in hub.gated:
                if "Authorization" not in self.headers:
                    return self.error(401, "GatedRepo")
                if self.headers["Authorization"] != f"Bearer {hub.token}":
                    return self.error(403, "GatedRepo")
            if name not in files:
                return self.error(404, "EntryNotFound")
            content = hub.wrong.get(name, files[name])
            headers = {
                "ETag": f'"{etag(name, files[name])}"',
                "X-Repo-Commit": commit,
                "Accept-Ranges": "bytes",
            }
            if not (asked := self.headers.get("Range")):
                return self.send(200, content, headers)
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return self.send(206, content[start : end + 1], headers)

        def send(self, code, content, headers):
            cut = hub.cut
            if cut is None or self.command == "HEAD" or len(content) <= cut:
                return self.answer(code, content, **headers)
            hub.cut = None
            self.send_response(code)
            for key, value in ({"Content-Length": len(content)} | headers).items():
                self.send_header(key, str(value))
            self.end_headers()
            self.wfile.write(content[:cut])
            self.wfile.flush()
            self.close_connection = True
            return None

    return Handler


def environment(hub, home):
    """Variables of a process that uses the hub, with its cache in a folder."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def use(monkeypatch, hub, home):
    """Let this process use the hub: the same as `environment` before a start."""
    from huggingface_hub import constants

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def use_datasets(monkeypatch, hub, home):
    """The same for the library datasets."""
    from datasets import config

    use(monkeypatch, hub, home)
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HUB_DATASETS_URL": hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_DATASETS_CACHE": home / "datasets",
        "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(config, name, value)
    forget()


def go_offline(monkeypatch):
    """Take the network away, as HF_HUB_OFFLINE=1 of a new process does."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    forget()


def forget():
    """Ask the Hub again, as a new process does."""
    data_hub.load.cache_clear()
    weights_hub.snapshot.cache_clear()
