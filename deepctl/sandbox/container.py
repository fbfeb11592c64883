"""A profile's Docker container: made, held for as long as this process lives (`holding`), removed.

The caller holds the profile's lock: a container that is found running belongs to a process that is gone, and is
ended. Needs the extra `docker`, which is imported only when a function here is called.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, NamedTuple

from deepctl.sandbox.container_process import MAIN, Held, end
from deepctl.sandbox.daemon import connect, sdk, translated
from deepctl.sandbox.policy import HOME_DIRECTORY, MOUNT, Unavailable, environment

_LABEL_PROFILE = "deepctl.profile"
_LABEL_SPEC = "deepctl.spec"

_KEEPER = 65534
"""The user of the main process: nobody."""


class Spec(NamedTuple):
    """What a profile's container is made of."""

    name: str
    """The container's name, from `container_name`."""
    image: str
    """An image that is on this machine; none is ever pulled. It needs `sh`, `timeout`, `head` and `cat`."""
    workspace: str
    """The host directory that the container sees, read-write, as `/workspace`. It must exist."""
    network: bool
    """Whether it is on Docker's default network, rather than on none."""
    memory: int
    """Bytes of memory, swap included."""
    processes: int
    """Processes and threads at once."""
    disk: int
    """Bytes of the largest file."""
    tmp: int
    """Bytes of `/tmp`, and as many of `/dev/shm`; both count as memory."""
    profile: str
    """The profile's name, for a label."""


def container_name(profile_directory: str) -> str:
    """The name of the one container of the profile in `profile_directory`; symlinks make no difference."""
    real = os.path.realpath(profile_directory)
    return f"deepctl-{hashlib.sha256(os.fsencode(real)).hexdigest()[:16]}"


def open_container(spec: Spec) -> Held:
    """The container of `spec`, running and empty, for as long as the result is not closed and this process lives.

    One that exists is started again if it was made of the same; otherwise it is removed and made anew. Nothing is
    pulled. Raises `Unavailable`, also if a container of that name is not one of deepctl's: that is never touched.
    """
    with translated():
        api = connect()
        try:
            return Held(spec.name, _prepare(api, spec), api)
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
            existing = _find(api, name)
            if existing is None:
                return False
            _remove(api, existing["Id"])
            return True
        finally:
            api.close()


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
    """What the daemon knows of deepctl's container `name`, or `None`. Raises `Unavailable` if it is somebody else's."""
    try:
        existing = api.inspect_container(name)
    except sdk().errors.NotFound:
        return None
    if _LABEL_PROFILE not in (existing["Config"].get("Labels") or {}):
        raise Unavailable(
            f"There is a container called {name}, and deepctl did not make it.",
            f"Rename it, or remove it if nobody needs it: docker rm {name}",
        )
    return existing


def _image(api: Any, image: str) -> Any:
    """What the daemon knows of an image."""
    try:
        return api.inspect_image(image)
    except sdk().errors.NotFound:
        raise Unavailable(f"The image {image} is not on this machine.", f"Get it with: docker pull {image}") from None


def _refuse_other_uids(api: Any) -> None:
    """Raise `Unavailable` if the container's uids are not the host's: the workspace would not be its user's own."""
    options = api.info().get("SecurityOptions") or []
    for kind in ("rootless", "userns"):
        if any(option.split(",")[0] == f"name={kind}" for option in options):
            raise Unavailable(
                f"The Docker daemon maps user ids ({kind}), so that commands could not write to the workspace.",
                "Let DOCKER_HOST name a daemon that does not.",
            )


def _prepare(api: Any, spec: Spec) -> str:
    """The id of a stopped container of `spec`: the one there is, or a new one."""
    image = _image(api, spec.image)
    options = _options(api, spec, sorted(image["Config"].get("Volumes") or {}))
    # With the image's id: a tag that has moved on is another image.
    made_of = json.dumps([image["Id"], options], sort_keys=True)
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    existing = _find(api, spec.name)
    if existing is not None:
        identity = str(existing["Id"])
        state = existing["State"]["Status"]
        if existing["Config"]["Labels"].get(_LABEL_SPEC) == digest and state in ("created", "exited", "running"):
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
        # Volumes of the image would be disk that nobody limits and no checkpoint keeps.
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
        mounts=[package.types.Mount(MOUNT, os.path.abspath(spec.workspace), type="bind")],
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
        environment=[f"{key}={value}" for key, value in environment(f"{MOUNT}/{HOME_DIRECTORY}").items()],
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
