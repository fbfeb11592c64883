"""The machine and the settings: versions, the root, the disk, settings files, sandboxes and MCP servers.

MCP servers are not started. Bubblewrap and Docker are tried once, for any number of profiles.
"""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from deepctl import distribution, layout
from deepctl.domain import mcp_servers, profiles, settings
from deepctl.domain.doctor.check import Check, Status, error_in_words, first_few
from deepctl.domain.doctor.stored_state import KNOWN
from deepctl.domain.mcp_servers import McpServer
from deepctl.domain.permissions import CommandPolicy, Permissions
from deepctl.domain.settings import Settings, SettingsFile
from deepctl.errors import BadSetting, DeepctlError
from deepctl.files import ownership
from deepctl.layout import UNTRUSTED, ProfilePaths, Root
from deepctl.quantities import counted, size
from deepctl.sandbox import bubblewrap, cgroups, container, read_only
from deepctl.sandbox.policy import Limits, Unavailable

PACKAGES = (
    "pydantic-ai-slim",
    "pydantic-ai-backend",
    "pydantic-ai-harness",
    "pydantic",
    "openai",
    "anthropic",
    "typer",
    "rich",
    "prompt-toolkit",
    "tomlkit",
    "pathspec",
    "platformdirs",
)
"""The packages of the agent, then those of the command line."""

_LITTLE = 512 << 20
_FEW = 1000


def versions(version: str) -> Iterator[Check]:
    """Versions of deepctl, Python, the system and packages. No package is imported for that."""
    yield Check(
        "versions",
        "ok",
        f"deepctl {version} ({distribution.NAME}), Python {platform.python_version()}, {platform.platform()}",
    )
    from importlib import metadata

    package_versions, missing = [], []
    for package in PACKAGES:
        try:
            package_versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        yield Check("packages", "problem", f"not installed: {', '.join(missing)}", "Install deepctl again.")
    else:
        yield Check("packages", "ok", ", ".join(package_versions))


def namesakes(environment: Mapping[str, str]) -> Iterator[Check]:
    """Other installations called deepctl: distributions beside this one, and programs in the search path."""
    for package in distribution.namesakes():
        instruction = f"{distribution.to_uninstall(package.name)}, then install {distribution.NAME} again."
        if distribution.is_predecessor(package):
            summary = f"{package.name} {package.version} is this program under its old name, and shares its files"
        else:
            summary = f"{package.name} {package.version} is another product, and its command has the same name"
        yield Check("namesakes", "problem", summary, f"Uninstall it first: {instruction}")
    for path in distribution.foreign_commands(environment.get("PATH", "")):
        yield Check(
            "namesakes",
            "warning",
            f"{path} is another program called {distribution.COMMAND}",
            "The order of the directories in $PATH decides which of the two a shell starts.",
        )


def root(place: Root) -> Iterator[Check]:
    """The root and its directories: they exist, belong to the user, and other users cannot read them."""
    try:
        status = os.stat(place.path)
    except FileNotFoundError:
        yield Check("root", "ok", f"{place.path}, not created yet")
        return
    except OSError as error:
        yield Check("root", "problem", error_in_words(error), "Set $DEEPCTL_HOME to another directory.")
        return
    unsafe = ownership.examine(place.path, *profiles.ROOT_PARTS)
    if unsafe is not None:
        yield Check("root", "problem", unsafe.problem, unsafe.help)
        yield from _inside(place)
        return
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & 0o777 != 0o700:
        yield Check(
            "root",
            "problem",
            f"{place.path} has mode {mode:04o}, owner {status.st_uid}",
            f"Only you should have access: chmod 700 {place.path}",
        )
    elif not os.access(place.path, os.R_OK | os.W_OK | os.X_OK):
        yield Check("root", "problem", f"{place.path} cannot be read and written", "The disk may be read-only.")
    else:
        yield Check("root", "ok", place.path)
    yield from _inside(place)


def _inside(place: Root) -> Iterator[Check]:
    for name, path in (("profiles", place.profiles), ("locks", place.locks), ("keys", place.keys)):
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield Check(name, "problem", f"{path} is not a regular directory", "Find out what created it.")
            continue
        with os.scandir(path) as entries:
            present = sorted(entries, key=lambda entry: entry.name)
        is_accessible = stat.S_IMODE(status.st_mode) & 0o077 != 0
        if name == "locks":
            foreign_names = [entry.name for entry in present if not entry.is_file(follow_symlinks=False)]
            is_accessible = is_accessible or any(entry.stat(follow_symlinks=False).st_mode & 0o077 for entry in present)
        elif name == "keys":
            names = {layout.folded_name(profile) for profile in profiles.all_names(place)}
            foreign_names = [entry.name for entry in present if entry.name not in names]
            is_accessible = is_accessible or any(entry.stat(follow_symlinks=False).st_mode & 0o077 for entry in present)
        else:
            foreign_names = [
                entry.name for entry in present if not (entry.name[:1].isalnum() or entry.name.startswith(KNOWN))
            ]
        if is_accessible:
            yield Check(name, "warning", f"other users may read {path}", "Remove their access: chmod -R go-rwx on it.")
        if foreign_names:
            is_of_keys = name == "keys"
            reason = "of no profile" if is_of_keys else "not created by deepctl"
            help = "Remove it." if is_of_keys else "Find out what created it."
            yield Check(name, "warning", f"in {path}, {reason}: {first_few(foreign_names)}", help)


def config(file: SettingsFile) -> Iterator[Check]:
    """config.toml: whether it exists and is valid."""
    yield from settings_file("config", file, "config unset KEY")


def disk(place: Root) -> Iterator[Check]:
    """The free space on the disk of the root."""
    path = place.path
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    status = os.statvfs(path)
    free, all_of_it = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    if not all_of_it:
        yield Check("disk", "ok", f"the file system of {path} does not report free space")
        return
    room = f"{size(free)} of {size(all_of_it)} free"
    if status.f_flag & os.ST_RDONLY:
        yield Check("disk", "problem", f"{room}, read-only", "Nothing can be stored there.")
    elif free < _LITTLE:
        yield Check("disk", "warning", room, "deepctl ends a turn that it cannot store. Free some space.")
    elif status.f_files and status.f_favail < _FEW:
        yield Check(
            "disk", "warning", f"{room}, but room for only {counted(status.f_favail, 'file')}", "Remove some files."
        )
    else:
        yield Check("disk", "ok", room)


def settings_file(name: str, file: SettingsFile, unset: str) -> Iterator[Check]:
    """The problem of a settings file; `unset` is the command that removes a key from it."""
    path = file.path
    try:
        if not path:
            file.checked()
        if not os.path.lexists(path):
            yield Check(name, "ok", f"{path} does not exist: the defaults are in force")
            return
        if stat.S_IMODE(os.stat(path).st_mode) & 0o400 == 0:
            yield Check(name, "warning", f"its owner may not read {path}", f"chmod u+rw {path}")
        values = file.checked()
        problems = list(settings.problems(values, path, in_profile=file.source == "profile"))
    except DeepctlError as error:
        yield Check(name, "problem", error.message, error.hint)
        return
    except OSError as error:
        yield Check(name, "problem", error_in_words(error), "It cannot be read, so its settings are not in force.")
        return
    for problem in problems:
        yield Check(name, "problem", problem.message, problem.hint)
    unknown = settings.unknown_keys(values)
    if unknown:
        yield Check(
            name,
            "warning",
            f"{path} has unknown settings: {', '.join(unknown)}",
            f"They may be misspelled. `deepctl config show` lists the settings; `deepctl {unset}` removes one.",
        )
    if not problems and not unknown:
        yield Check(name, "ok", f"{path}, {_amount(values)}")


def _amount(values: Mapping[str, Any]) -> str:
    """The number of settings, with the entries of the tables that have names of their own."""
    amounts = [counted(sum(key in settings.SETTINGS for key in values), "setting")]
    for table, noun in ((mcp_servers.TABLE, "MCP server"), ("permissions", "permission")):
        if values.get(table):
            amounts.append(counted(len(values[table]), noun))
    return ", ".join(amounts)


def untrusted(paths: ProfilePaths, file: SettingsFile) -> Iterator[Check]:
    """Imported settings that are not trusted yet, and settings in force that an import would not trust. `file` is the
    profile.toml.
    """
    from deepctl.domain import trust

    try:
        items = trust.waiting(paths, file).items
    except DeepctlError as error:
        yield Check("trust", "warning", error.message, f"Correct the file with an editor, or remove it: {UNTRUSTED}")
        return
    if items:
        listing = ", ".join(f"{item.key}{' (cannot be used)' if item.problem is not None else ''}" for item in items)
        yield Check(
            "trust",
            "warning",
            f"imported, and not in force: {listing}",
            f"`deepctl profiles trust {paths.name}` shows them and puts them into force."
            if any(item.problem is None for item in items)
            else f"Correct {paths.untrusted} with an editor, or remove it.",
        )
    try:
        values = settings.parse_tables(file.content or b"", paths.settings)
    except DeepctlError:
        return  # the check of the file reports the error
    # A profile that 0.1 imported, with all its settings in force, cannot be distinguished from one that was created
    # here.
    risky = [item for item in trust.risky(values) if item.problem is None]
    if risky:
        listing = "; ".join(f"{item.key} ({item.reason})" for item in risky)
        yield Check("trust", "ok", f"in force here, and not imported: {listing}")


class CommandSettings(NamedTuple):
    """The settings for commands."""

    sandbox_name: str
    image: str
    limits: Limits


def choice(settings: Settings) -> CommandSettings:
    """The settings for commands. Raises `DeepctlError`."""
    return CommandSettings(settings.get("sandbox") or "auto", settings.get("docker.image") or "", settings.limits())


class Sandboxes:
    """The state of bubblewrap and Docker, tested once for any number of profiles."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._bubblewrap: list[Unavailable | None] = []
        self._docker: dict[str, str | Unavailable] = {}

    def bubblewrap(self, limits: Limits) -> Unavailable | None:
        """Run a command in bubblewrap. Returns the problem, if there is one."""
        if not self._bubblewrap:
            try:
                program = bubblewrap.find(
                    self._environment, excluded_directories=(layout.root(self._environment).path,)
                )
                bubblewrap.check(bubblewrap.Policy(program, None, limits, network=False))
            except Unavailable as problem:
                self._bubblewrap.append(problem)
            else:
                self._bubblewrap.append(None)
        return self._bubblewrap[0]

    def docker(self, image: str) -> str | Unavailable:
        """The version of Docker that has `image`, or the problem."""
        if image not in self._docker:
            try:
                self._docker[image] = container.check(image)
            except Unavailable as problem:
                self._docker[image] = problem
        return self._docker[image]

    def machine(self, settings: Settings) -> Iterator[Check]:
        """The sandboxes of this machine, tested with the limits and the image of the settings."""
        try:
            selection = choice(settings)
        except DeepctlError:
            # The check of that file reports the error.
            yield Check("sandbox", "warning", "not tested: the settings cannot be used", "Correct them first.")
            return
        problem = self.bubblewrap(selection.limits)
        if problem is None:
            yield Check("bubblewrap", "ok", "commands run in it")
            yield _limits(selection.limits)
        else:
            status: Status = "problem" if selection.sandbox_name == "bubblewrap" else "warning"
            yield Check("bubblewrap", status, problem.reason, problem.fix)
        docker = self.docker(selection.image)
        if isinstance(docker, str):
            yield Check("docker", "ok", f"Docker {docker} has the image {selection.image}")
        else:
            # It is needed only if the settings select it.
            is_wanted = selection.sandbox_name == "docker"
            yield Check("docker", "problem" if is_wanted else "ok", f"not used: {docker.reason}", docker.fix)

    def hooks(self, settings: Settings) -> Iterator[Check]:
        """The hooks of a profile that cannot run; nothing without hooks."""
        try:
            profile_hooks = settings.hooks()
        except DeepctlError:
            return  # the checks of the files report the error
        if not profile_hooks:
            return
        from deepctl.domain.hooks import problem  # most profiles have none

        unusable_hooks = [
            f"{hook.event} {hook.command!r}: {reason}"
            for hook in profile_hooks
            if (reason := problem(hook, self._environment)) is not None
        ]
        sandbox, _, limits = choice(settings)
        missing = self.bubblewrap(limits) if sandbox in ("auto", "bubblewrap") else None
        if missing is not None and (count := sum(hook.is_sandboxed for hook in profile_hooks)):
            unusable_hooks.append(f"{counted(count, 'hook')} in the sandbox: {missing.reason}")
        if unusable_hooks:
            yield Check(
                "hooks", "problem", f"cannot run: {'; '.join(unusable_hooks)}", "docs/extend.md describes [hooks]."
            )
            return
        free = sum(not hook.is_sandboxed for hook in profile_hooks)
        detail = (
            f"{counted(len(profile_hooks), 'hook')}, {free} unsandboxed"
            if free
            else counted(len(profile_hooks), "hook")
        )
        yield Check("hooks", "ok", detail)

    def in_force(self, settings: Settings) -> Iterator[Check]:
        """Where the commands of a profile run. Raises `DeepctlError` if its settings cannot be used."""
        sandbox, image, limits = choice(settings)
        try:
            read_only.resolve(settings.paths("read_only_paths"), self._environment, layout.root(self._environment))
        except BadSetting as refusal:
            yield Check("sandbox", "problem", refusal.message, refusal.hint)
            return
        approve, permissions, network = "ask", Permissions(), False
        allowed_commands: list[str] = []
        with suppress(DeepctlError):  # the check of that file reports the error
            approve = settings.get("approve") or "ask"
            network = settings.get("network") == "on"
            permissions = settings.permissions()
            allowed_commands = settings.patterns("allowed_commands")
        policy = CommandPolicy(
            sandbox, approve, network=network, permissions=permissions, allowed_commands=allowed_commands
        )
        problem = None
        if sandbox == "docker":
            docker = self.docker(image)
            problem = docker if isinstance(docker, Unavailable) else None
            policy = policy._replace(image=image)
        elif sandbox != "none":
            problem = self.bubblewrap(limits)
            policy = policy._replace(sandbox="bubblewrap")
        if problem is not None and sandbox != "auto":
            yield Check("sandbox", "problem", f"{sandbox}: {problem.reason}", problem.fix)
            return
        if problem is not None:
            policy = policy._replace(sandbox="none", problem=problem)
        status: Status = "warning" if policy.unsandboxed else "ok"
        yield Check("sandbox", status, f"{sandbox}: {policy.statement()}")


def _limits(limits: Limits) -> Check:
    summary = f"{limits.processes} processes, {limits.memory >> 20} MiB, {limits.seconds:g} s a command"
    if cgroups.available():
        return Check("limits", "ok", summary)
    if os.geteuid() == 0:
        return Check(
            "limits",
            "warning",
            f"{summary}; the number of processes and their total memory are not limited, because no control "
            "group can be created",
            "Run deepctl as an ordinary user, or on a machine where /sys/fs/cgroup is writable.",
        )
    return Check("limits", "ok", f"{summary}; the memory limit applies to each process, not to their total")


_PACKAGE = "fastmcp-slim"


def servers(environment: Mapping[str, str], in_force: Settings) -> Iterator[Check]:
    """The problems of a profile's MCP servers; nothing without servers."""
    try:
        enabled = [server for server in in_force.mcp_servers() if server.enabled]
        references = in_force.keys(environment).references
    except DeepctlError:
        return  # the checks of the files report the error, and most profiles have no servers
    if not enabled:
        return
    if not _is_installed():
        command = distribution.to_install("mcp")
        yield Check("mcp", "problem", "MCP servers need packages that are not installed", command)
        return
    # The check of the keys reports the problems of references.
    environment = {**environment, **dict.fromkeys(references, "by-reference")}
    amiss = [check for server in enabled for check in _server(server, environment)]
    yield from amiss
    if not amiss:
        names = ", ".join(server.name for server in enabled)
        pronoun = "its" if len(enabled) == 1 else "their"
        summary = f"{counted(len(enabled), 'server')} with {pronoun} own access, unsandboxed: {names}"
        yield Check("mcp", "ok", summary)


def _server(server: McpServer, environment: Mapping[str, str]) -> Iterator[Check]:
    unset = mcp_servers.missing_variables(server, environment)
    if unset:
        names = " and ".join(f"${name}" for name in unset)
        yield Check(
            "mcp",
            "problem",
            f"{server.name}: {names} {'is' if len(unset) == 1 else 'are'} not set",
            "Set it in the environment of deepctl, or store it (deepctl keys set); otherwise the server is left out.",
        )
    if (problem := mcp_servers.unfit_variable(server, environment)) is not None:
        yield Check("mcp", "problem", f"{server.name}: {problem}", "Copy it again, without extra characters.")
    if server.command is not None:
        program = mcp_servers.program(server, environment)
        if program is None:
            yield Check(
                "mcp",
                "problem",
                f"{server.name}: its command {server.command!r} was not found",
                "Install it and add it to $PATH, or give its full path.",
            )
        elif (part := mcp_servers.where_agents_write(server, program, environment)) is not None:
            yield Check(
                "mcp",
                "problem",
                f"{server.name}: agents can write {part}, so it may be theirs",
                "Move it out of the profiles and projects.",
            )
        directory = mcp_servers.directory(server, environment)
        if not os.path.isdir(directory):
            yield Check(
                "mcp",
                "problem",
                f"{server.name}: its cwd {directory} is not a directory",
                "Create it, or change the setting.",
            )
    elif mcp_servers.is_open(server):
        yield Check(
            "mcp",
            "warning",
            f"{server.name}: the connection to {server.target} is not encrypted",
            "Others on the network can read and change the traffic. Use https.",
        )


def _is_installed() -> bool:
    from importlib import metadata

    try:
        metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return False
    return True
