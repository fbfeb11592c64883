"""`deepctl config`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from deepctl import layout
from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import profiles, settings
from deepctl.errors import BadSetting, Damaged, DeepctlError, Interrupted, NotFound, Refused
from deepctl.layout import ProfilePaths
from deepctl.locks import Lease
from deepctl.output import settings as views
from deepctl.output.profiles import ProfilePathView
from deepctl.output.render import error as say_error
from deepctl.output.render import notice, show

if TYPE_CHECKING:
    from deepctl.domain.settings import SettingsFile
    from deepctl.domain.trust import TrustItem

app = typer.Typer(
    help="The settings of all profiles, or of one profile (--user).",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)

Key = Annotated[str, typer.Argument(help="Name of the setting, as in `deepctl config show`.")]
FileOwner = Annotated[
    str | None,
    typer.Option(
        "--user",
        "-u",
        "--profile",
        metavar="NAME",
        help="Use the settings file of this profile. Default: config.toml, the settings of all profiles.",
        show_default=False,
    ),
]
"""Whose settings file is meant. $DEEPCTL_USER and default_user do not apply, other than in `options.User`."""


def _profile(user: str | None) -> ProfilePaths | None:
    return None if user is None else options.existing_profile(user)


def _file(profile: ProfilePaths | None) -> str:
    return layout.config_file(os.environ) if profile is None else profile.settings


def _lock(profile: ProfilePaths | None, command: str, wait: float) -> Lease:
    if profile is None:
        return options.config_lock(command, wait)
    return profiles.lock(options.root(), profile.name, command=command, wait=wait)


@app.command("show", epilog="Example: deepctl config show --user alice")
def show_(user: options.User = None, as_json: options.Json = False) -> None:
    """Show the settings in force and their sources, the MCP servers and the hooks.

    Settings of [model_profile] are shown only if they are set.
    """
    profile, in_force = options.profile_of_chat(user)
    for table in settings.MODEL_TABLES:
        in_force.of_table(table)
    all_values = [
        in_force.resolve(key) for key, setting in settings.SETTINGS.items() if profile is None or setting.in_profile
    ]
    # The many settings of [model_profile] are for servers with peculiarities; most profiles have none.
    values = [item for item in all_values if item.value is not None or not item.key.startswith("model_profile.")]
    file = in_force.files[0]
    unknown, servers = settings.unknown_keys(file.checked()), in_force.mcp_servers()
    items, problem = _waiting(profile, file) if profile is not None else ([], None)
    name = profile.name if profile else None
    view = views.SettingsView(name, file.path, values, unknown, servers, items, problem, in_force.hooks())
    show(view, as_json)


def _waiting(profile: ProfilePaths, file: SettingsFile) -> tuple[list[TrustItem], str | None]:
    """The settings of a profile that are not trusted yet, or the reason why they cannot be read."""
    if not os.path.lexists(profile.untrusted) and not os.path.lexists(profile.untrusted_files):
        return [], None
    from deepctl.domain import trust

    try:
        return trust.waiting(profile, file).items, None
    except DeepctlError as error:
        return [], error.message


@app.command(epilog="Example: deepctl config get model")
def get(key: Key, user: options.User = None, as_json: options.Json = False) -> None:
    """Print the value that a setting has now."""
    settings.describe(key)
    profile, in_force = options.profile_of_chat(user)
    value = in_force.resolve(key)
    if value.value is None:
        raise NotFound(f"Setting {key!r} is not set and has no default.", code="setting_not_set")
    show(views.SettingView(profile.name if profile else None, value), as_json)


@app.command("set", epilog="Example: deepctl config set model anthropic:claude-sonnet-4-6 --user alice")
def set_(
    key: Key,
    value: Annotated[str, typer.Argument(help="New value of the setting.")],
    user: FileOwner = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Change a setting. Comments in the file stay."""
    if settings.describe(key).kind == "directory" and user is not None:
        value = _directory(value)
    value = settings.validate(key, value)
    if key == "default_user":
        layout.check_name(value)
    _change(key, value, user, "config set", wait, as_json)


def _directory(value: str) -> str:
    """The real path of a project. Raises the error for a directory that cannot be one."""
    from deepctl.domain import projects

    path = projects.locate(value)
    projects.check(options.root(), path, os.environ)
    return path


@app.command(epilog="Example: deepctl config unset model --user alice")
def unset(key: Key, user: FileOwner = None, wait: options.Wait = 0.0, as_json: options.Json = False) -> None:
    """Remove a setting from the file. Unknown settings can be removed too."""
    _change(key, None, user, "config unset", wait, as_json)


@app.command(epilog="Example: EDITOR='code --wait' deepctl config edit --user alice")
def edit(user: FileOwner = None, wait: options.Wait = 0.0, as_json: options.Json = False) -> None:
    """Edit the settings file with your editor. The file is created if it does not exist.

    The editor is $VISUAL, then $EDITOR, then the first installed one of editor, nano and vi. You edit a copy. It is
    checked before it replaces the file. After an error, you can edit the copy again at a terminal; otherwise nothing is
    written and your text is saved (exit 2 or 5). The same happens if the file changes in the meantime (exit 6).
    """
    from deepctl.cli import editor

    profile = _profile(user)
    command = editor.editor(os.environ)
    path = _file(profile)
    try:
        before = settings.read_document(path)
    except FileNotFoundError:
        before = None
    is_changed = _edited(command, profile, path, before, wait, as_json)
    show(views.SettingsEditView(profile.name if profile else None, path, is_changed), as_json)


_NEW_FILE = b"# Settings of deepctl. `deepctl config show` lists all settings.\n"


def _edited(
    command: list[str], profile: ProfilePaths | None, path: str, before: bytes | None, wait: float, as_json: bool
) -> bool:
    """Let the user edit the settings file at `path`, whose bytes are `before`. Returns whether it was changed.

    The lock is not held meanwhile.
    """
    from deepctl.cli import confirm, editor
    from deepctl.domain.memory import changes
    from deepctl.files import atomic

    atomic.make_root(os.path.dirname(path))
    old = _NEW_FILE if before is None else before
    draft = changes.begin_draft(os.path.dirname(path), changes.SETTINGS_DRAFT, old)
    while True:
        try:
            failure = editor.edit(command, draft.path)
        except Refused:
            changes.discard_draft(draft)
            raise
        new = changes.read_draft(draft)
        place = f" Your text is saved in {draft.path}."
        if new == old:
            changes.discard_draft(draft)
            place = ""
        if failure is not None:
            raise Refused(f"The editor failed ({failure}), so nothing was changed.{place}", code="editor_failed")
        if new == old:
            return False
        try:
            settings.check_document(new, path, in_profile=profile is not None)
            _replace(profile, path, before, new, wait)
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted.{place}") from None
        except (DeepctlError, OSError) as error:
            problem = error if isinstance(error, DeepctlError) else atomic.storage_error(error)
            if isinstance(problem, BadSetting | Damaged) and not as_json and confirm.can_ask():
                say_error(problem, as_json=False)
                if confirm.ask_line("Edit the text again? [Y/n]").lower() in ("", *confirm.YES):
                    continue
            problem.message += f" Nothing was changed.{place}"
            raise problem from error
        changes.discard_draft(draft)
        return True


def _replace(profile: ProfilePaths | None, path: str, before: bytes | None, new: bytes, wait: float) -> None:
    """Replace the settings file. Raises `Refused` if it was changed since it had the bytes `before`."""
    with _lock(profile, "config edit", wait):
        try:
            now = settings.read_document(path)
        except FileNotFoundError:
            now = None
        if now != before:
            raise Refused(
                f"Another command or editor changed {path} in the meantime.",
                "Compare the two files, and edit again.",
                code="settings_changed",
            )
        settings.replace_document(path, new, is_last=True)


def _change(key: str, value: str | None, user: str | None, command: str, wait: float, as_json: bool) -> None:
    profile = _profile(user)
    if profile is not None and key in settings.SETTINGS and not settings.SETTINGS[key].in_profile:
        raise BadSetting(
            f"Setting {key!r} cannot be set for one profile.", f"Set it without --user: deepctl config set {key} …"
        )
    if profile is None and value is not None and not settings.SETTINGS[key].in_config:
        raise BadSetting(
            f"Setting {key!r} cannot be set for all profiles.",
            f"Name a profile: deepctl config set {key} … --user NAME",
        )
    with _lock(profile, command, wait):
        settings.change(_file(profile), key, value)
    show(views.SettingChangeView(profile.name if profile else None, _file(profile), key, value), as_json)
    variable = settings.SETTINGS[key].variable if key in settings.SETTINGS else None
    if value is not None and variable is not None and variable in os.environ and not as_json:
        notice(f"${variable} is set, and overrides the setting {key}.")


@app.command(epilog='Example: $EDITOR "$(deepctl config path)"')
def path(user: FileOwner = None, as_json: options.Json = False) -> None:
    """Print the path of the settings file, even if the file does not exist."""
    profile = _profile(user)
    show(ProfilePathView(profile.name if profile else None, _file(profile)), as_json)
