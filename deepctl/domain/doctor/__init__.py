"""Checks whether deepctl works here. Every check reports its result and, for a problem, a remedy.

Nothing is created or changed, locks are taken only for a moment, and unreadable data is a result of its own.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping

from deepctl import distribution, layout, locks
from deepctl.domain import addresses, projects, provider_keys, settings
from deepctl.domain.doctor import machine, stored_state
from deepctl.domain.doctor.check import Check, Status, first_few, run_guarded
from deepctl.domain.doctor.machine import Sandboxes, settings_file, untrusted
from deepctl.domain.doctor.stored_state import DiskUsage, rights
from deepctl.domain.env_variables import ollama_address, problems, value
from deepctl.domain.profiles import checkpoint_bytes
from deepctl.domain.providers import is_variable_ignored
from deepctl.domain.settings import Settings
from deepctl.errors import DeepctlError, ProfileNotFound
from deepctl.files import atomic
from deepctl.layout import ProfilePaths, Root
from deepctl.quantities import counted, size
from deepctl.store import coverage, reserve
from deepctl.store import projects as stored_projects
from deepctl.store.coverage import DEFAULT_COVERAGE

__all__ = ["Check", "Status", "examine"]

_MOST_HINTS = 3
"""Missing projects for which there is a command."""


def examine(environment: Mapping[str, str], user: str | None, version: str) -> Iterator[Check]:
    """All checks: of the machine, and of the profile called `user`, or of all profiles.

    `version` is deepctl's own. Raises `BadName`, or `ProfileNotFound` if there is no such profile.
    """
    root = layout.root(environment)
    profiles = _profiles(root) if user is None else [_find(root, user)]
    return _checks(environment, root, profiles, user, version)


def _checks(
    environment: Mapping[str, str], root: Root, profiles: list[ProfilePaths], user: str | None, version: str
) -> Iterator[Check]:
    in_force = settings.load(environment)
    settings_of = {paths: in_force.of_profile(paths) for paths in profiles}
    of_machine = settings_of[profiles[0]] if user is not None else in_force
    sandboxes = Sandboxes(environment)
    yield from run_guarded("versions", lambda: machine.versions(version))
    yield from run_guarded("namesakes", lambda: machine.namesakes(environment))
    yield from run_guarded("root", lambda: machine.root(root))
    yield from run_guarded("leftovers", lambda: stored_state.beside_profiles(root))
    yield from run_guarded("config", lambda: machine.config(in_force.files[0]))
    yield from run_guarded("disk", lambda: machine.disk(root))
    yield from run_guarded("sandbox", lambda: sandboxes.machine(of_machine))
    if not profiles:
        # The result for the first profile.
        yield from by_settings("sandbox", lambda: sandboxes.in_force(in_force))
        yield from by_settings("model", lambda: model(environment, in_force))
        yield from run_guarded("keys", lambda: keys(environment, in_force))
        yield from run_guarded("mcp", lambda: machine.servers(environment, in_force))
    parts = {paths: stored_state.disk_usage(paths) for paths in profiles}
    if len(profiles) > 1:
        yield _all_space(parts)
    for paths in profiles:
        yield from checks_of(environment, settings_of[paths], paths, sandboxes, parts[paths])


def _profiles(root: Root) -> list[ProfilePaths]:
    """Entries with the place and the name of a profile, of any kind."""
    try:
        return [root.profile(name) for name in sorted(os.listdir(root.profiles)) if name[:1].isalnum()]
    except OSError:
        return []  # the check of the root reports why


def _find(root: Root, name: str) -> ProfilePaths:
    checked_name = layout.check_name(name)
    match = next((paths for paths in _profiles(root) if layout.same_name(paths.name, checked_name)), None)
    if match is not None:
        return match
    if not os.path.lexists(root.profile(name).directory):
        raise ProfileNotFound(name)
    return root.profile(name)


def _all_space(parts: Mapping[ProfilePaths, list[DiskUsage]]) -> Check:
    sizes = sorted(
        ((sum(part.bytes for part in profile_parts), paths.name) for paths, profile_parts in parts.items()),
        reverse=True,
    )
    largest = ", ".join(f"{name} {size(number)}" for number, name in sizes[:5])
    remainder = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
    total = sum(number for number, _ in sizes)
    return Check("space", "ok", f"{counted(len(sizes), 'profile')}, {size(total)}: {largest}{remainder}")


def checks_of(
    environment: Mapping[str, str],
    in_force: Settings,
    paths: ProfilePaths,
    sandboxes: Sandboxes,
    usage: list[DiskUsage],
) -> list[Check]:
    """All checks of a possible profile; `in_force` are its settings, `usage` is its disk usage by part."""
    if (problem := _not_a_directory(paths)) is not None:
        return [problem._replace(profile=paths.name)]
    unset = f"config unset KEY --user {paths.name}"
    checks = [
        *run_guarded("settings", lambda: settings_file("settings", in_force.files[0], unset)),
        *run_guarded("trust", lambda: untrusted(paths, in_force.files[0])),
        *by_settings("model", lambda: model(environment, in_force)),
        *run_guarded("keys", lambda: keys(environment, in_force)),
        *by_settings("sandbox", lambda: sandboxes.in_force(in_force)),
        *run_guarded("mcp", lambda: machine.servers(environment, in_force)),
        *run_guarded("hooks", lambda: sandboxes.hooks(in_force)),
        *run_guarded("lock", lambda: _lock(paths)),
        *run_guarded("rights", lambda: rights(paths)),
        *run_guarded("sessions", lambda: stored_state.sessions(paths)),
        *run_guarded("memory", lambda: stored_state.memory(paths)),
        *run_guarded("checkpoints", lambda: stored_state.checkpoints(paths)),
        *run_guarded("leftovers", lambda: stored_state.in_profile(paths)),
        *run_guarded("todo", lambda: stored_state.todo_lists(paths)),
        *run_guarded("space", lambda: _space(paths, usage)),
        *run_guarded("project", lambda: project(environment, in_force, paths)),
        *by_settings("budget", lambda: _budget(in_force, paths)),
    ]
    return [check._replace(profile=paths.name) for check in checks]


def project(environment: Mapping[str, str], in_force: Settings, paths: ProfilePaths) -> Iterator[Check]:
    """The setting `project`, and the projects of the sessions. A missing directory is reported once."""
    try:
        value = in_force.get("project")
    except DeepctlError:
        value = None  # the checks of the files report the error
    path = projects.locate(value) if value is not None else None
    if path is not None:
        try:
            projects.check(layout.root(environment), path, environment, paths)
            yield Check("project", "ok", f"{path} (setting project)")
        except DeepctlError as error:
            moved = stored_projects.hint_of_missing(paths, path)
            new = shlex.quote(stored_projects.now_at(paths, path) or "DIR")
            hint = f"deepctl config set project {new} --user {paths.name}"
            hint = f"{moved} Then: `{hint}`." if moved is not None else hint
            yield Check("project", "problem", f"setting project: {error.message.rstrip('.')}", hint)
    try:
        projects_of_profile = stored_projects.read(paths)
    except OSError:
        return  # the check of the sessions reports it
    missing = [
        project.path for project in projects_of_profile if not os.path.isdir(project.path) and project.path != path
    ]
    if missing:
        yield Check(
            "project",
            "warning",
            f"{counted(len(projects_of_profile), 'project')}; missing: {first_few(missing)}",
            " ".join(stored_projects.hint_of_missing(paths, path) or "" for path in missing[:_MOST_HINTS]),
        )
    elif projects_of_profile and (path is None or os.path.isdir(path)):
        yield Check("project", "ok", counted(len(projects_of_profile), "project"))
    for directory in dict.fromkeys(
        [*([path] if path is not None else []), *(project.path for project in projects_of_profile)]
    ):
        if os.path.isdir(directory) and (problem := coverage.read_rules(directory, DEFAULT_COVERAGE).problem_sentence):
            yield Check("project", "warning", problem)


def by_settings(name: str, look: Callable[[], Iterator[Check]]) -> list[Check]:
    """The checks that need settings, if the settings can be used."""
    try:
        return list(look())
    except DeepctlError:
        # The checks of the files report the error.
        return [Check(name, "warning", "unknown: the settings cannot be used")]


def _not_a_directory(paths: ProfilePaths) -> Check | None:
    try:
        status = os.lstat(paths.directory)
    except OSError as error:
        return Check("profile", "problem", f"{paths.directory}: {(error.strerror or 'cannot be read').lower()}")
    if not stat.S_ISDIR(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a directory"
        return Check(
            "profile",
            "problem",
            f"{paths.directory} is {kind}",
            "A profile must be a directory, and not a link or another file.",
        )
    if status.st_uid != os.geteuid():
        return Check(
            "profile",
            "problem",
            f"{paths.directory} belongs to another user of this machine (uid {status.st_uid})",
            "Set $DEEPCTL_HOME to a directory of your own.",
        )
    return None


def model(environment: Mapping[str, str], in_force: Settings) -> Iterator[Check]:
    """The model of a chat, and whether the key of its provider is found. Keys are never shown."""
    setting = in_force.resolve("model")
    name = setting.value or provider_keys.OFFLINE
    where = "" if setting.source == "default" else f" (from {_SOURCES.get(setting.source, setting.source)})"
    address = in_force.get("base_url")
    if name == provider_keys.OFFLINE:
        yield Check(
            "model",
            "ok",
            f"{name}{where}: needs no key",
            "The offline model is not an LLM: `deepctl config set model …` selects a model.",
        )
        return
    provider = provider_keys.provider(name)
    ring = in_force.keys(environment)
    has_key = ring.has_reference(provider)
    amiss = list(problems(environment, provider, has_key=has_key))
    for problem in amiss:
        yield Check(
            "model", "problem", f"{name}{where}: ${problem.variable} cannot be used: it {problem.problem}", problem.hint
        )
    if amiss:
        return
    if provider == "ollama" and not has_key:
        url = addresses.without_passwords(ollama_address(environment))
        yield Check(
            "model", "ok", f"{name}{where} at {url}: needs no key", "`deepctl models` shows whether the server answers."
        )
        return
    if provider == "openai":
        address = address or value(environment, "OPENAI_BASE_URL")
        if address:
            where += f" at {addresses.without_passwords(address)}"
        if is_variable_ignored(environment, in_force):
            where += " (base_url; $OPENAI_BASE_URL is ignored)"
    if (client := provider_keys.CLIENTS.get(provider)) is not None and not _is_installed(client):
        yield Check(
            "model",
            "problem",
            f"{name}{where}: the client of its provider is not installed",
            distribution.to_install(provider),
        )
        return
    if has_key and (references := ring.of_provider(provider)) is not None:
        # Its problem is that of the check of the keys.
        yield Check("model", "ok", f"{name}{where}: its key is {references.key}")
        return
    key = provider_keys.look(provider, environment)
    if ":" not in name or key is None:
        yield Check(
            "model",
            "warning",
            f"{name}{where}: deepctl does not know where its provider stores the key",
            "Models are named provider:name. `deepctl chat hello` shows whether this one answers.",
        )
        return
    if key.set_names:
        yield Check("model", "ok", f"{name}{where}: {' and '.join('$' + problem for problem in key.set_names)} set")
    elif provider == "openai" and address:
        yield Check("model", "ok", f"{name}{where}: $OPENAI_API_KEY is not set; your own server may not need it")
    elif provider in provider_keys.ELSEWHERE:
        yield Check("model", "ok", f"{name}{where}: no key in the environment; its client also looks in files")
    else:
        yield Check(
            "model",
            "warning",
            f"{name}{where}: no key found",
            f"Set {' or '.join('$' + problem for problem in key.names)}.",
        )


def keys(environment: Mapping[str, str], in_force: Settings) -> Iterator[Check]:
    """The references to keys; nothing without any. No command is run for them, and no keyring is opened."""
    try:
        ring = in_force.keys(environment)
    except DeepctlError as error:
        # The checks of the files report the others.
        is_reported = any(
            file.problem is not None
            or any(settings.problems(file.values, file.path, in_profile=file.source == "profile"))
            for file in in_force.files
        )
        if not is_reported:
            yield Check("keys", "problem", error.message, error.hint)
        return
    states = [(reference, ring.state(reference)) for _, reference in sorted(ring.references.items())]
    for reference, state in states:
        if state.ok is False:
            yield Check("keys", "problem", f"{reference}: it {state.problem}", state.hint)
    names = [reference.name for reference, state in states if state.ok is not False]
    if names:
        yield Check("keys", "ok", f"{counted(len(names), 'key')} of its own: {', '.join(names)}")


_SOURCES = {"environment": "$DEEPCTL_MODEL", "profile": "profile.toml", "config": "config.toml"}


def _is_installed(package: str) -> bool:
    from importlib import metadata

    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _lock(paths: ProfilePaths) -> Iterator[Check]:
    """The holder of the lock. A file without a holder is not tried, so that no other process is delayed."""
    try:
        content = atomic.read_file(paths.lock)
    except FileNotFoundError:
        content = b""
    holder = locks.holder(paths.lock) if content.strip() else None
    if holder is None:
        addition = "; its text is from a command that was killed" if content.strip() else ""
        yield Check("lock", "ok", f"free{addition}")
        return
    if holder.pid <= 0:
        yield Check("lock", "warning", "held; the holder is unknown", "--wait SECONDS waits for it.")
        return
    description = f"{holder}, in {holder.directory}" if holder.directory is not None else str(holder)
    if _is_alive(holder.pid):
        yield Check("lock", "ok", f"held by {description}", "--wait SECONDS waits for it.")
    else:
        yield Check(
            "lock",
            "warning",
            f"held, but {description} has ended",
            "A process that it started may hold the lock, or the holder runs in another container.",
        )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _space(paths: ProfilePaths, usage: list[DiskUsage]) -> Iterator[Check]:
    total, unread_count = sum(part.bytes for part in usage), sum(part.unread for part in usage)
    parts = ", ".join(f"{part.name} {size(part.bytes)}" for part in usage)
    if reserve_size := reserve.held_bytes(paths):
        parts += f"; {size(reserve_size)} more held in reserve for a full disk"
    if unread_count:
        yield Check(
            "space",
            "warning",
            f"at least {size(total)}: {parts}; {counted(unread_count, 'place')} could not be read",
        )
    else:
        yield Check("space", "ok", f"{size(total)}: {parts}")


def _budget(in_force: Settings, paths: ProfilePaths) -> Iterator[Check]:
    limit = in_force.size("limits.checkpoints")
    size_taken = checkpoint_bytes(paths)
    if size_taken > limit:
        yield Check(
            "budget",
            "warning",
            f"checkpoints take {size(size_taken)}, more than limits.checkpoints ({size(limit)})",
            f"To see what pruning would free: deepctl checkpoints prune --keep 50 --dry-run --user {paths.name}",
        )
    else:
        yield Check("budget", "ok", f"checkpoints take {size(size_taken)} of {size(limit)}")
