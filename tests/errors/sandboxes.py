"""Errors of sandboxes. The daemon of Docker is a small one of the tests', which says what a real one would."""

from __future__ import annotations

import json
import os
import re
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.errors.situation import Situation, case
from tests.support.command import Result

IN_BUBBLEWRAP = ["chat", "hello", "--user", "alice", "--sandbox", "bubblewrap"]
IN_DOCKER = ["chat", "hello", "--user", "alice", "--sandbox", "docker"]
REMOVE = ["sandbox", "remove", "--user", "alice"]
CONTAINER = {"Id": "1" * 64, "Config": {"Labels": {}}}


@contextmanager
def daemon(path: Path, answers: dict[str, tuple[int, Any]]) -> Iterator[None]:
    """A daemon at a socket: what it says is by the end of the request's path, without the version of the API."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = re.sub(r"^/(v[0-9.]+/)?", "", self.path.partition("?")[0])
            code, body = answers.get(place, (404, {"message": "no such thing"}))
            raw = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_DELETE = do_GET

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_: object) -> None:
            pass

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _docker(s: Situation, **answers: tuple[int, Any]) -> None:
    version = (200, {"ApiVersion": "1.44", "Version": "27.0"})
    known = {"version": version, "info": (200, {"SecurityOptions": []}), "containers/json": (200, [])}
    path = s.place / "docker.sock"
    s.until_the_end(daemon(path, {**known, **{place.replace("__", "/"): said for place, said in answers.items()}}))
    s.patch.setenv("DOCKER_HOST", f"unix://{path}")


def _bwrap(s: Situation, script: str) -> list[str]:
    program = s.place / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    s.patch.setenv("DEEPCTL_BWRAP", str(program))
    return IN_BUBBLEWRAP


@case("chat", "bubblewrap is not installed")
def _(s: Situation) -> Result:
    hidden = [f"{directory}/bwrap" for directory in ("/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin", "/sbin")]
    there = {os.path.realpath(path) for path in hidden if os.path.exists(path)}
    around = [word for path in sorted(there) for word in ("--ro-bind", "/dev/null", path)]
    return s.confined(*IN_BUBBLEWRAP, around=around)


@case("chat", "`$DEEPCTL_BWRAP` is not a program")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_BWRAP", "/nonexistent/bwrap")
    return IN_BUBBLEWRAP


@case("chat", "`$DEEPCTL_BWRAP` is in a directory that agents can write")
def _(s: Situation) -> list[str]:
    s.alice()
    (s.workspace / "bwrap").write_text("#!/bin/sh\n")
    (s.workspace / "bwrap").chmod(0o755)
    s.patch.setenv("DEEPCTL_BWRAP", str(s.workspace / "bwrap"))
    return IN_BUBBLEWRAP


@case("chat", "bubblewrap is too old")
def _(s: Situation) -> list[str]:
    return _bwrap(s, "echo 'bwrap: Unknown option --size' >&2; exit 1")


@case("chat", "the kernel does not allow bubblewrap to create namespaces")
def _(s: Situation) -> list[str]:
    return _bwrap(s, "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1")


@case("chat", "bubblewrap does not work for another reason")
def _(s: Situation) -> list[str]:
    return _bwrap(s, "exit 3")


@case("chat", "the Python package `docker` is not installed")
def _(s: Situation) -> list[str]:
    s.patch.setitem(sys.modules, "docker", None)
    return IN_DOCKER


@case("chat", "the Docker daemon does not answer")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DOCKER_HOST", f"unix://{s.place}/docker.sock")
    return IN_DOCKER


@case("sandbox remove", "there is no permission to use the Docker daemon")
def _(s: Situation) -> Result:
    s.alice()
    _docker(s)
    (s.place / "docker.sock").chmod(0)
    return s.confined(*REMOVE, unprivileged=True)


@case("chat", "the Docker daemon is on another machine")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    return IN_DOCKER


@case("chat", "`$DOCKER_HOST` is not an address")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DOCKER_HOST", "http://::1:80/")
    return IN_DOCKER


@case("chat", "the settings file of Docker is invalid")
def _(s: Situation) -> list[str]:
    _docker(s)
    (s.place / "config.json").write_text("[]")
    s.patch.setenv("DOCKER_CONFIG", str(s.place))
    return IN_DOCKER


@case("chat", "the Docker daemon maps user ids")
def _(s: Situation) -> list[str]:
    _docker(s, info=(200, {"SecurityOptions": ["name=rootless"]}))
    return IN_DOCKER


@case("chat", "the Docker daemon refuses a request")
def _(s: Situation) -> list[str]:
    _docker(s, info=(500, {"message": "something is wrong"}))
    return IN_DOCKER


@case("chat", "the image is not on this machine")
def _(s: Situation) -> list[str]:
    _docker(s)
    return IN_DOCKER


@case("sandbox remove", "the Docker daemon does not answer")
def _(s: Situation) -> list[str]:
    s.alice()
    s.patch.setenv("DOCKER_HOST", f"unix://{s.place}/docker.sock")
    return REMOVE


@case("sandbox remove", "the container is not deepctl's")
def _(s: Situation) -> list[str]:
    from deepctl.sandbox.container import container_name

    s.alice()
    name = container_name(str(s.profile))
    _docker(s, **{f"containers__{name}__json": (200, CONTAINER)})
    return REMOVE
