"""`deepctl keys`."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from deepctl import distribution
from deepctl.cancellation import interruptible
from deepctl.cli import options
from deepctl.cli.confirm import Yes, ask_hidden_line, confirm
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import key_sources, profiles, settings, stored_keys
from deepctl.domain import keys as domain
from deepctl.domain.key_sources import KeyProblem
from deepctl.errors import NotFound, Refused, UsageError
from deepctl.output import settings as views
from deepctl.output.render import is_terminal, show

app = typer.Typer(
    help="The keys of a profile for providers and MCP servers.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key: a variable, such as OPENAI_API_KEY.")]


class Store(StrEnum):
    """Where a key is stored."""

    keyring = "keyring"
    file = "file"


@app.command("list", epilog="Example: deepctl keys list --user alice")
def list_(user: options.User = None, as_json: options.Json = False) -> None:
    """List the keys of a profile by name, and where they come from.

    Values are never shown, no command is run, and no keyring is opened.
    """
    profile, in_force = options.profile_of_chat(user)
    ring = in_force.keys(os.environ)
    listing = [views.ListedKey(reference, ring.state(reference)) for _, reference in sorted(ring.references.items())]
    show(views.KeyListView(profile.name if profile is not None else options.user(user, in_force), listing), as_json)


@app.command("set", epilog="Example: deepctl keys set OPENAI_API_KEY --user alice")
def set_(
    name: Name,
    user: options.User = None,
    store: Annotated[
        Store | None,
        typer.Option(
            "--store",
            help="Where to store the key: in the keyring of the desktop, or in a private file. Default: the keyring if "
            "it can be used, else the file.",
        ),
    ] = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Store a key for a profile. It is asked for at a terminal without echo, else read from stdin.

    The key replaces a stored one. Only this profile uses it.
    """
    domain.check_name(name)
    profile, in_force = options.profile_and_settings(user)
    domain.check_spelling(name, {name for server in in_force.mcp_servers() for name in server.named_variables})
    reference = in_force.keys(os.environ).references.get(name)
    if reference is not None and reference.source == "profile":
        raise Refused(
            f"Profile {profile.name!r} has a reference already, which would take precedence: {reference}.",
            f"`deepctl keys unset {name} --user {profile.name}` removes it.",
            code="key_exists",
        )
    in_keyring = _uses_keyring(store)
    text = _key(name, profile.name)
    with profiles.lock(options.root(), profile.name, command="keys set", wait=wait):
        paths = profiles.find(options.root(), profile.name)
        is_replaced = name in domain.stored(paths.keys)
        place = stored_keys.store(paths.keys, name, text, in_keyring=in_keyring)
    kind = (Store.keyring if in_keyring else Store.file).value
    show(views.KeyStoredView(paths.name, name, kind, place, is_replaced), as_json)


def _uses_keyring(store: Store | None) -> bool:
    if store is Store.file:
        return False
    is_usable = key_sources.usable_keyring() is not None
    if store is Store.keyring and not is_usable:
        try:
            key_sources.check_keyring()
        except KeyProblem:
            hint = f"Install it with: {distribution.to_install('keyring')}"
            raise UsageError("The package keyring is not installed.", hint, code="keyring") from None
        raise UsageError(
            "There is no keyring here that encrypts what it stores.",
            "`--store file` stores the key in a private file.",
            code="keyring",
        )
    return is_usable


def _key(name: str, profile: str) -> str:
    """The key from the terminal, or from stdin. Raises `UsageError`, which never contains it."""
    if is_terminal(sys.stdin):
        raw = ask_hidden_line(f"{name} of {profile} (not shown):")
    else:
        content = interruptible(sys.stdin.buffer).read(key_sources.MAX_BYTES + 1)
        if len(content) > key_sources.MAX_BYTES:
            raise UsageError("The input is too large for a key.", "A key is one line.", code="bad_key")
        raw = options.decode(content, "The input", code="bad_key")
    try:
        return key_sources.checked(raw)
    except KeyProblem as problem:
        raise UsageError(f"The key {problem}.", problem.hint or "Copy it again.", code="bad_key") from None


@app.command(epilog="Example: deepctl keys unset OPENAI_API_KEY --user alice")
def unset(
    name: Name, user: options.User = None, yes: Yes = False, wait: options.Wait = 0.0, as_json: options.Json = False
) -> None:
    """Forget a key of a profile: delete the stored one, and remove a reference from profile.toml."""
    domain.check_name(name)
    profile, in_force = options.profile_and_settings(user, deletes=True)
    options.say_ignored_directory(user, profile, as_json)
    _check_is_there(name, profile.name, in_force)
    confirm(
        f"Forget {name} of {profile.name}?",
        yes=yes,
        as_json=as_json,
        instead="`deepctl keys list` shows where the key comes from",
    )
    with profiles.lock(options.root(), profile.name, command="keys unset", wait=wait):
        paths = profiles.find(options.root(), profile.name)
        in_force = in_force.of_profile(paths)
        _check_is_there(name, paths.name, in_force)
        is_deleted = stored_keys.forget(paths.keys, name)
        table = in_force.files[0].checked().get(domain.TABLE, {})
        if is_removed := name in table:
            settings.change(paths.settings, f"{domain.TABLE}.{name}", None)
    show(views.KeyForgottenView(paths.name, name, is_deleted, is_removed), as_json)


def _check_is_there(name: str, profile: str, in_force: settings.Settings) -> None:
    """Raises `NotFound` if the profile has no key of its own of that name."""
    references = in_force.keys(os.environ).references
    reference = references.get(name)
    if reference is None:
        names = f"Its keys are: {', '.join(sorted(references))}." if references else ""
        hint = names or f"`deepctl keys set {name} --user {profile}` stores one."
        raise NotFound(f"Profile {profile!r} has no key {name!r}.", hint, code="key_not_found")
    if reference.source == "config":
        raise NotFound(
            f"Profile {profile!r} has no key {name!r} of its own: it is in config.toml, for all profiles.",
            f"`deepctl config unset {domain.TABLE}.{name}` removes it there.",
            code="key_not_found",
        )
