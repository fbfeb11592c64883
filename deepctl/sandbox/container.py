"""The Docker containers of a profile, one for its private workspace and one for each project: created, held for the
life of this process, removed.

The container's main process only reads its stdin, and this process holds the other end. When the end is closed, by
`RunningContainer.close` or because the process died for any reason, the main process ends, and with it the kernel ends
every process in the container's pid namespace. The container itself stays, stopped.

The caller holds the profile's lock. So a running container belongs to a process that has ended, and is stopped. Needs
the extra `docker`, which is imported only when a function here is called.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, NamedTuple

from deepctl import distribution
from deepctl.sandbox.policy import MOUNT, VARIABLES, Unavailable
from deepctl.sandbox.read_only import Bind

_LABEL_PROFILE = "deepctl.profile"
_LABEL_SPEC = "deepctl.spec"

_KEEPER = 65534
"""The user of the main process: nobody."""


class Spec(NamedTuple):
    """The properties of a profile's container."""

    name: str
    """The container's name, from `container_name`."""
    image: str
    """An image on this machine; images are never pulled. It needs `sh`, `timeout`, `head` and `cat`."""
    workspace: str
    """The host directory that the container sees, read-write, as `/workspace`. It must exist. With `binds`, these are
    all that it sees.
    """
    network: bool
    """Whether it is on Docker's default network, instead of none."""
    memory: int
    """Bytes of memory, swap included."""
    processes: int
    """Maximum number of processes and threads."""
    disk: int
    """Bytes of the largest file."""
    tmp: int
    """Bytes of `/tmp`, and the same number for `/dev/shm`; both count as memory."""
    profile: str
    """The profile's name, or the directory of an application, for a label."""
    binds: tuple[Bind, ...] = ()
    """The directories and files of the host that the container sees, if they are not just the workspace."""
    start: str = MOUNT
    """The directory in the container in which commands start."""


def container_name(profile_directory: str) -> str:
    """The name of the container for the workspace of the profile in `profile_directory`; symlinks make no difference.

    It is the beginning of the names of all its containers.
    """
    return f"deepctl-{_hash(profile_directory, 16)}"


def project_name(name: str, root: str) -> str:
    """The name of the container for a project, from that for the workspace of the profile."""
    return f"{name}-{_hash(root, 8)}"


def _hash(path: str, digits: int) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:digits]


def open_container(spec: Spec) -> RunningContainer:
    """The container of `spec`, running and empty, until the result is closed or this process ends.

    An existing container is started again if it has the same properties; otherwise it is removed and created again.
    """
    with translated():
        api = connect()
        try:
            return RunningContainer(spec, _prepare(api, spec), api)
        except BaseException:
            api.close()
            raise


def remove(name: str) -> bool:
    """Remove the container called `name`, ending what runs in it; its workspace is not touched.

    False if there is none. Raises `Unavailable` if the daemon is, or if the container is not one of deepctl's.
    """
    with translated():
        api = connect()
        try:
            container = _find(api, name)
            if container is None:
                return False
            _remove(api, container["Id"])
            return True
        finally:
            api.close()


def remove_all(name: str) -> list[str]:
    """Remove the container called `name` and those for projects of the same profile. Returns their names.

    Raises `Unavailable` like `remove`.
    """
    with translated():
        api = connect()
        try:
            own = re.compile(rf"/({re.escape(name)}(?:-[0-9a-f]{{8}})?)")
            found = api.containers(all=True, filters={"name": name, "label": _LABEL_PROFILE})
            matches = [match for entry in found for match in map(own.fullmatch, entry["Names"]) if match is not None]
            names = sorted({name, *(match[1] for match in matches)})
            containers = {name: container for name in names if (container := _find(api, name)) is not None}
            for container in containers.values():
                _remove(api, container["Id"])
            return list(containers)
        finally:
            api.close()


def remove_ended(prefix: str) -> list[str]:
    """Remove the containers that processes left which were killed, for directories that begin with `prefix`.

    The label of an application's container is its directory. One that runs belongs to a living process, and so may one
    that was created, or has ended, a moment ago. Returns their names. Raises `Unavailable`.
    """
    with translated():
        api = connect()
        try:
            names = []
            filters = {"label": _LABEL_PROFILE, "status": ["created", "exited", "dead"]}
            for entry in api.containers(all=True, filters=filters):
                if f"{entry['Labels'].get(_LABEL_PROFILE)}/".startswith(prefix) and _has_ended(api, entry["Id"]):
                    _remove(api, entry["Id"])
                    names.append(entry["Names"][0].lstrip("/"))
            return names
        finally:
            api.close()


_JUST_NOW = 10.0
"""Seconds in which a living process may start a stopped container."""


def _has_ended(api: Any, identity: str) -> bool:
    try:
        container = api.inspect_container(identity)
    except sdk().errors.NotFound:
        return False
    state = container["State"]
    at = container["Created"] if state["Status"] == "created" else state["FinishedAt"]
    # The daemon's times have nanoseconds.
    time_of = datetime.fromisoformat(at[:19]).replace(tzinfo=timezone.utc)
    is_old = (datetime.now(timezone.utc) - time_of).total_seconds() > _JUST_NOW
    return is_old and state["Status"] in ("created", "exited", "dead")


def check(image: str) -> str:
    """The version of the Docker daemon. Raises `Unavailable` if containers of `image` cannot be had."""
    with translated():
        api = connect()
        try:
            _refuse_other_uids(api)
            _image(api, image)
            return str(api.version()["Version"])
        finally:
            api.close()


def _find(api: Any, name: str) -> Any:
    """The daemon's facts about deepctl's container `name`, or `None`. Raises `Unavailable` if it is not deepctl's."""
    try:
        container = api.inspect_container(name)
    except sdk().errors.NotFound:
        return None
    if _LABEL_PROFILE not in (container["Config"].get("Labels") or {}):
        raise Unavailable(
            f"There is a container called {name} that deepctl did not create.",
            f"Rename it, or remove it if it is not needed: docker rm {name}",
        )
    return container


def _image(api: Any, image: str) -> Any:
    """What the daemon knows of an image."""
    try:
        return api.inspect_image(image)
    except sdk().errors.NotFound:
        raise Unavailable(f"The image {image} is not on this machine.", f"Download it: docker pull {image}") from None


def _refuse_other_uids(api: Any) -> None:
    """Raise `Unavailable` if the container's uids are not the host's: the workspace would not be its user's own."""
    options = api.info().get("SecurityOptions") or []
    for kind in ("rootless", "userns"):
        if any(option.split(",")[0] == f"name={kind}" for option in options):
            raise Unavailable(
                f"The Docker daemon maps user ids ({kind}), so commands could not write to the workspace.",
                "Set DOCKER_HOST to a daemon that does not map them.",
            )


def _prepare(api: Any, spec: Spec) -> str:
    """The id of a stopped container of `spec`: the one there is, or a new one."""
    image = _image(api, spec.image)
    options = _options(api, spec, sorted(image["Config"].get("Volumes") or {}))
    # With the image's id: a tag that has moved on is another image.
    made_of = json.dumps([image["Id"], options], sort_keys=True)
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    container = _find(api, spec.name)
    if container is not None:
        identity = str(container["Id"])
        state = container["State"]["Status"]
        if container["Config"]["Labels"].get(_LABEL_SPEC) == digest and state in ("created", "exited", "running"):
            if state == "running":
                end(api, identity)
            return identity
        _remove(api, identity)
    _refuse_other_uids(api)
    options["Labels"][_LABEL_SPEC] = digest
    return str(api.create_container_from_config(options, spec.name)["Id"])


def _options(api: Any, spec: Spec, volumes: list[str]) -> Any:
    package = sdk()
    host = api.create_host_config(
        network_mode="bridge" if spec.network else "none",
        mem_limit=spec.memory,
        memswap_limit=spec.memory,
        pids_limit=spec.processes,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        read_only=True,
        # Volumes of the image would be disk without a limit that no checkpoint keeps.
        tmpfs=dict.fromkeys(("/tmp", *volumes), f"size={spec.tmp},mode=1777,exec"),
        ulimits=[
            package.types.Ulimit(name="fsize", soft=spec.disk, hard=spec.disk),
            package.types.Ulimit(name="core", soft=0, hard=0),
        ],
        shm_size=spec.tmp,
        ipc_mode="private",
        init=True,
        log_config=package.types.LogConfig(type="none"),
        # Not a volume in `-v` style: that splits the path at colons, and makes a directory that is missing.
        mounts=[
            package.types.Mount(bind.target, bind.source, type="bind", read_only=not bind.writable)
            for bind in spec.binds or (Bind(os.path.abspath(spec.workspace), MOUNT),)
        ],
    )
    # Not by `create_container`, which adds the proxies of the user's Docker configuration to the environment, and
    # a proxy's address may hold a password. `detach=False` with `stdin_open` is how the SDK spells StdinOnce.
    return api.create_container_config(
        spec.image,
        entrypoint=["sh", "-c", MAIN],
        command=[],
        hostname="workspace",
        # Not the user of the commands, who could stop it: it would not see then that we are gone.
        user=f"{_KEEPER}:{_KEEPER}" if os.getuid() != _KEEPER else f"{_KEEPER - 1}:{_KEEPER - 1}",
        working_dir="/",
        environment=[f"{key}={value}" for key, value in VARIABLES.items()],
        stdin_open=True,
        detach=False,
        labels={_LABEL_PROFILE: spec.profile},
        # What the image would have the daemon run now and then.
        healthcheck={"test": ["NONE"]},
        host_config=host,
    )


def _remove(api: Any, identity: str) -> None:
    try:
        # `v`: the unnamed volumes that some images ask for.
        api.remove_container(identity, v=True, force=True)
    except sdk().errors.NotFound:
        pass


# What `docker start` by anyone but us starts ends by itself, because it gets no greeting. The answer proves, before any
# command runs, that our end of stdin is the one that keeps the container up.
MAIN = "timeout 5 head -n 1 >/dev/null && echo held && exec cat >/dev/null"
"""What the main process is told, as a script of `sh`."""

_GREETING = b"\n"
_ANSWER = b"held"
_STDERR = 2
_SECONDS_TO_END = 10
_HEAD = struct.Struct(">BxxxL")
"""What is before each piece of what a command prints: where it was written to, and how many bytes there are."""
_PIECE = 1 << 16


class RunningContainer:
    """A running container that lives no longer than this object, or this process. Safe to use from any thread."""

    def __init__(self, spec: Spec, identity: str, api: Any) -> None:
        """Of `open_container` only: starts the container `identity`, and keeps `api` until `close`."""
        self.name = spec.name
        self._start_directory = spec.start
        self._identity = identity
        self._api = api
        self._lock = threading.Lock()
        self._closed = False
        self._line = _start(api, spec.name, identity)

    def close(self) -> None:
        """End every process in the container, and wait until they are gone. The container stays, stopped.

        Closing it again does nothing. Raises `Unavailable` if the daemon does not confirm the end; stdin is closed
        even then, so that the container ends all the same if the daemon still works.
        """
        with self._lock:
            if self._closed:
                return
            try:
                with translated():
                    self._line.close()
                    end(self._api, self._identity)
                self._closed = True
            finally:
                self._api.close()

    def kill_all(self) -> None:
        """End every process in the container, and start it again: empty, under the same name and id.

        `/tmp` is empty afterwards. Does nothing once closed. Raises `Unavailable` if that fails; nothing runs
        in the container then, as far as the daemon can be told anything, and `close` is still to be called.
        """
        with self._lock:
            if self._closed:
                return
            with translated():
                self._line.close()
                end(self._api, self._identity)
                self._line = _start(self._api, self.name, self._identity)

    def execute(self, argv: list[str], variables: Mapping[str, str], sink: Sink) -> int | None:
        """Run a command as the user this process belongs to, what it prints going to `sink`. Returns its exit code.

        `None` if it was broken off: because `sink` had enough, or because the container ended, by `kill_all` for
        instance. Raises `Unavailable` if it could not be started.
        """
        with translated():
            api = connect()
            try:
                execution = api.exec_create(
                    self._identity,
                    argv,
                    environment=dict(variables),
                    workdir=self._start_directory,
                    user=f"{os.getuid()}:{os.getgid()}",
                )
                stream = api.exec_start(execution["Id"], socket=True)
                try:
                    for number, data in _frames(stream):
                        if not sink(*((b"", data) if number == _STDERR else (data, b""))):
                            return None
                finally:
                    _close(stream)
                code = api.exec_inspect(execution["Id"])["ExitCode"]
                return None if code is None else int(code)
            finally:
                api.close()


Sink = Callable[[bytes, bytes], bool]
"""Takes what came on stdout and on stderr; whether it wants more."""


class _StdinConnection:
    """The connection that carries the container's stdin, and its first words back."""

    def __init__(self, api: Any, identity: str) -> None:
        stream = api.attach_socket(identity, params={"stdin": 1, "stdout": 1, "stream": 1})
        # The SDK hands out a reader of the socket, the socket itself (TLS) or an SSH channel; the last two send.
        self._sending = getattr(stream, "_sock", stream)
        self._stream = stream

    def greet(self, seconds: float) -> bool:
        """Say the word the main process waits for. True once it has answered, False if it ended instead.

        Raises `TimeoutError` if neither happens.
        """
        answer = b""
        deadline = time.monotonic() + seconds
        try:
            self._sending.sendall(_GREETING)
            while _ANSWER not in answer:
                self._sending.settimeout(max(deadline - time.monotonic(), 0.001))
                chunk = self._sending.recv(4096)
                if not chunk:
                    return False
                answer += chunk
        except (BrokenPipeError, ConnectionResetError):
            return False  # it ended before it could be told, or before the daemon had read it
        return True

    def close(self) -> None:
        """Close stdin, now: the daemon is told even if something else still refers to the connection."""
        try:
            self._sending.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # The other end was first.
        _close(self._stream)


def _frames(stream: Any) -> Iterator[tuple[int, bytes]]:
    """What comes from a command, in pieces, each with the number of what it was written to.

    Read where the SDK has read the head of the answer. Its own reader goes past that, to the socket, and never sees
    what came along with the head: all that a quick command prints, if this process was late.
    """
    # The SDK's timeout is for answers; a command may be silent for as long as it likes.
    getattr(stream, "_sock", stream).settimeout(None)
    reader = stream._response.raw._fp.fp
    read_some = getattr(reader, "read1", reader.read)
    while len(head := reader.read(_HEAD.size)) == _HEAD.size:
        number, size = _HEAD.unpack(head)
        while size:
            data = read_some(min(size, _PIECE))
            if not data:
                return
            size -= len(data)
            yield number, data


def _close(stream: Any) -> None:
    """Close a connection that the SDK has handed out."""
    # Each of these keeps it open on its own. The response goes first: it fails on a closed stream.
    for resource in (getattr(stream, "_response", None), getattr(stream, "_sock", None), stream):
        if resource is not None:
            resource.close()


def _start(api: Any, name: str, identity: str) -> _StdinConnection:
    """Start a stopped container. Attached first, so that it never runs without a process that holds it."""
    line = _StdinConnection(api, identity)
    try:
        api.start(identity)
        if line.greet(_SECONDS_TO_END):
            return line
    except BaseException:
        # Where the start did succeed, this ends it.
        line.close()
        raise
    line.close()
    raise Unavailable(
        f"The container {name} ended at once.",
        "Its image needs the commands sh, timeout, head and cat. Choose another image.",
    )


def end(api: Any, identity: str) -> None:
    """Kill the container, if there is one and it runs, and wait until it has ended."""
    errors = sdk().errors
    try:
        try:
            api.kill(identity)
        except errors.APIError as error:
            if error.status_code != 409:  # 409: it does not run.
                raise
        api.wait(identity, timeout=_SECONDS_TO_END, condition="not-running")
    except errors.NotFound:
        pass


SECONDS = 30
"""How long the daemon may take for an answer."""


def sdk() -> Any:
    try:
        return importlib.import_module("docker")
    except ImportError:
        raise Unavailable(
            "The Python package `docker` is not installed.", f"Install it with: {distribution.to_install('docker')}"
        ) from None


def connect() -> Any:
    """A client of the daemon that the environment names, which has answered.

    Raises `Unavailable` for one on another machine: what is mounted there would be that machine's directories.
    """
    package = sdk()
    try:
        address = package.utils.parse_host(os.environ.get("DOCKER_HOST"))
    except (package.errors.DockerException, ValueError) as error:
        raise Unavailable(
            f"$DOCKER_HOST is {os.environ.get('DOCKER_HOST')}, which is not an address of a Docker daemon.",
            "Set it to a socket of this machine.",
        ) from error
    options = package.utils.kwargs_from_env()
    if not address.startswith("http+unix://"):
        raise Unavailable(
            f"$DOCKER_HOST is {options.get('base_url')}, a daemon that may be on another machine.",
            "Set it to a socket of this machine.",
        )
    # The SDK leaves a socket open if it cannot connect, and wraps the reason three times.
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(SECONDS)
        probe.connect(address.removeprefix("http+unix://"))
    try:
        return package.APIClient(version="auto", timeout=SECONDS, **options)
    except (AttributeError, TypeError, ValueError) as error:
        # The SDK takes for granted what is in that file. Some errors of `requests` are of these kinds as well.
        if isinstance(error, OSError):
            raise
        raise Unavailable(
            "The settings of Docker are invalid.", "Check ~/.docker/config.json, or $DOCKER_CONFIG."
        ) from error


@contextmanager
def translated() -> Iterator[None]:
    """Whatever goes wrong between here and the daemon, as `Unavailable`."""
    errors = sdk().errors
    # Those of `requests`, which come through bare, are `OSError`s.
    try:
        yield
    except errors.APIError as error:
        message = " ".join(str(error.explanation or error).split())
        raise Unavailable(f"The Docker daemon refused: {message[:300]}", "`docker info` may show more.") from error
    except (errors.DockerException, OSError) as error:
        raise _unreachable(error) from error


def _unreachable(error: BaseException) -> Unavailable:
    where = os.environ.get("DOCKER_HOST") or "the default socket"
    beneath = _beneath(error)
    numbers = {cause.errno for cause in beneath if isinstance(cause, OSError)}
    if numbers & {errno.EACCES, errno.EPERM}:
        return Unavailable(
            f"You may not use the Docker daemon at {where}.",
            'Add yourself to the docker group (sudo usermod -aG docker "$USER"), and log in again.',
        )
    if numbers & {errno.ENOENT, errno.ECONNREFUSED}:
        return Unavailable(
            f"No Docker daemon answers at {where}.",
            "Start the Docker daemon, or set DOCKER_HOST to the running one.",
        )
    if any(isinstance(cause, TimeoutError) for cause in beneath):
        return Unavailable(
            f"The Docker daemon at {where} did not answer in time.", "Check whether `docker info` works."
        )
    return Unavailable(f"The Docker daemon at {where} cannot be reached.", "Check whether `docker info` works.")


def _beneath(error: BaseException) -> list[BaseException]:
    """`error` and all that it wraps, by cause or as an argument: the SDK buries the system's error deep."""
    causes = [error]
    for current in causes:
        inner = (*current.args, current.__cause__, current.__context__)
        causes.extend(
            cause
            for cause in inner
            if isinstance(cause, BaseException) and not any(cause is known_cause for known_cause in causes)
        )
    return causes
