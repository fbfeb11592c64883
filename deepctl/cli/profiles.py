"""`deepctl profiles`."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, BinaryIO, NamedTuple

import typer

from deepctl import distribution, layout
from deepctl.cancellation import interruptible
from deepctl.cli import options
from deepctl.cli.confirm import Yes, check_can_ask, confirm
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import profile_choice, profiles, setting_table, settings
from deepctl.errors import DeepctlError, NotFound, ProfileNotFound, StorageError, UsageError
from deepctl.files import atomic
from deepctl.layout import UNTRUSTED, ProfilePaths
from deepctl.output import profiles as views
from deepctl.output.render import BYTES, Progress, discard_stdout, is_terminal, notice, say, show, wrap

if TYPE_CHECKING:
    from deepctl.domain.settings import Settings
    from deepctl.domain.trust import WaitingSettings
    from deepctl.output.profiles import TrustView


app = typer.Typer(
    help="The users of deepctl on this machine, each with a private directory.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)

_TO_BE_SEEN = "You must see imported settings before they are put into force"

Name = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Profile. Default: --user, then the default profile.")
]


@app.command("list", epilog="Example: deepctl profiles list --json")
def list_(as_json: options.Json = False) -> None:
    """List all profiles, and the directories that use one. The default is the profile of commands without --user."""
    root = options.root()
    descriptions = [profiles.describe(root.profile(name)) for name in profiles.all_names(root)]
    in_force = settings.load(os.environ)
    profiles_of = profile_choice.read(root)
    here = options.choice_here(in_force, profiles_of)
    show(views.ProfileListView(descriptions, _default_name(in_force), profiles_of, here), as_json)


@app.command("show", epilog="Example: deepctl profiles show alice")
def show_(name: Name = None, user: options.User = None, as_json: options.Json = False) -> None:
    """Show the path of a profile and the sizes of its parts."""
    in_force = settings.load(os.environ)
    description = profiles.describe(options.named_profile(name, user, in_force))
    show(views.ProfileView(description, _default_name(in_force)), as_json)


def _default_name(in_force: Settings) -> str | None:
    """The default profile; `None` with a broken config.toml, which must not prevent a list."""
    try:
        return profile_choice.default_name(in_force)
    except DeepctlError:
        return None


@app.command(epilog="Example: deepctl profiles create alice --like reviewer")
def create(
    name: Annotated[str, typer.Argument(help="Name of the new profile.")],
    like: Annotated[
        str | None,
        typer.Option(metavar="ROLE", help="Start with the settings, files and memory of a role: see `roles list`."),
    ] = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Create a profile."""
    from deepctl.output.roles import ProfileCreationView

    root = options.root()
    role, waiting, seed = None, [], profiles.EMPTY
    if like is not None:
        from deepctl.domain.roles import catalogue

        layout.check_name(name)
        role = catalogue.find(root, like, os.environ)
        waiting, seed = catalogue.waiting(role), catalogue.seed(role)
    with profiles.lock(root, name, command="profiles create", wait=wait):
        paths = profiles.create(root, name, seed)
    show(ProfileCreationView(paths.name, paths.directory, role, waiting), as_json)


@app.command(epilog="Example: deepctl profiles use alice --here")
def use(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Profile.")] = None,
    here: Annotated[
        bool, typer.Option("--here", help="Only in the current directory and below it. The same as -C .")
    ] = False,
    directory: Annotated[
        str | None, typer.Option("-C", metavar="DIR", help="Only in this directory and below it.", show_default=False)
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="With --here or -C: the directory has no profile.")] = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Choose the profile of commands without --user: everywhere, or in one directory.

    Nothing is written into the directory. `wipe`, `sessions delete`, `memory forget` and `projects forget` ignore the
    profile of a directory.
    """
    if here and directory is not None:
        raise UsageError("--here means the current directory, but -C names one.", "Give only one of the two.")
    place = "." if here else directory
    if forget:
        if place is None:
            raise UsageError(
                "--forget needs the directory whose profile it removes.",
                "Add --here or -C DIR. `deepctl config unset default_user` removes the default.",
            )
        if name is not None:
            raise UsageError("--forget takes no NAME.", "Without --forget, NAME becomes the profile of the directory.")
        _forget_directory(_located(place), wait, as_json)
        return
    if name is None:
        raise UsageError("NAME is missing.", "`deepctl profiles list` lists the profiles.")
    root = options.root()
    profile = profiles.find(root, name)
    if place is None:
        config = layout.config_file(os.environ)
        with options.config_lock("profiles use", wait):
            settings.change(config, "default_user", profile.name)
        view = views.ProfileUseView(profile.name, None, config)
    else:
        path = _located(place)
        if not os.path.isdir(path):
            raise NotFound(f"There is no directory {path!r}.", code="directory_not_found")
        profile_choice.use(root, path, profile.name, wait=wait)
        view = views.ProfileUseView(profile.name, path, profile_choice.path_of(root))
    show(view, as_json)
    if not as_json:
        _say_overridden(profile.name)


def _located(directory: str) -> str:
    """The real path of a directory that a user has named."""
    from deepctl.domain import projects

    return projects.locate(directory)


def _forget_directory(path: str, wait: float, as_json: bool) -> None:
    root = options.root()
    if (name := profile_choice.forget(root, path, wait=wait)) is None:
        choice = profile_choice.nearest(profile_choice.read(root), path)
        hint = "`deepctl profiles list` lists the directories that use a profile."
        if choice is not None and choice.directory is not None:
            command = f"deepctl profiles use --forget -C {shlex.quote(choice.directory)}"
            hint = f"{choice.directory} above it uses {choice.name}: `{command}`."
        raise NotFound(f"{path} has no profile.", hint, code="directory_not_found")
    show(views.ProfileUseView(name, path, profile_choice.path_of(root), is_forgotten=True), as_json)


def _say_overridden(name: str) -> None:
    """Say that commands in the current directory use another profile than the chosen one."""
    with suppress(DeepctlError):
        in_force = settings.load(os.environ)
        choice = options.choice_here(in_force, profile_choice.read(options.root()))
        if choice is None or layout.same_name(choice.name, name):
            return
        source = choice.directory or "$DEEPCTL_USER"
        notice(f"In this directory, commands still use {choice.name}: {source} comes first.")


@app.command(epilog='Example: cd "$(deepctl profiles path alice)/workspace"')
def path(name: Name = None, user: options.User = None, as_json: options.Json = False) -> None:
    """Print the directory of a profile."""
    paths = options.named_profile(name, user)
    show(views.ProfilePathView(paths.name, paths.directory), as_json)


@app.command(epilog="Example: deepctl profiles rename alice alicia")
def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Present name of the profile.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="New name of the profile.")],
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Rename a profile.

    Its contents do not change. A Docker container is created again when it is needed.
    """
    from deepctl.domain import sandbox_settings
    from deepctl.domain.memory import shared

    root, in_force = options.root(), settings.load(os.environ)
    profiles.find(root, old)
    layout.check_name(new)
    with ExitStack() as stack:
        # Always in the same order, so that two renames never wait for each other.
        for name in sorted({layout.folded_name(old), layout.folded_name(new)}):
            stack.enter_context(profiles.lock(root, name, command="profiles rename", wait=wait))
        paths = profiles.find(root, old)
        profiles.check_free(root, new, by=paths)
        container = sandbox_settings.remove_container_if_any(os.environ, in_force.of_profile(paths), paths)
        new_paths = profiles.rename(root, paths, new)
        with atomic.after_commit("The profile has its new name"):
            directories = profile_choice.rename(root, paths.name, new_paths.name, wait=wait)
            shared.rename(root, paths.name, new_paths.name)
    sources = _naming(paths.name, in_force)
    sources += [f"{key} of profile {other_name}" for other_name, key in shared.naming(root, paths.name)]
    view = views.ProfileRenamingView(paths.name, new_paths.name, new_paths.directory, container, sources, directories)
    show(view, as_json)


def _naming(name: str, in_force: Settings) -> list[str]:
    """The sources that name the profile `name` for commands without `--user`."""
    sources = []
    if layout.same_name(os.environ.get("DEEPCTL_USER", ""), name):
        sources.append("$DEEPCTL_USER")
    # An error in config.toml must not prevent the rename: `values` is empty then.
    if layout.same_name(str(in_force.files[0].values.get("default_user")), name):
        sources.append("default_user in config.toml")
    return sources


@app.command(epilog="Example: deepctl profiles copy alice bob --only settings,memory")
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Profile to copy.")],
    name: Annotated[str, typer.Argument(metavar="TO", help="Name of the new profile.")],
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PARTS", help="Copy only these parts, separated by commas: settings, memory, files."),
    ] = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Create a profile with the settings, the memory and the files of another one.

    Never copied are sessions, checkpoints, keys, tokens, trust and usage. The output names what was left out.
    """
    from deepctl.domain.transfer import profile_copy
    from deepctl.store import ledger

    parts = profile_copy.parse_parts(only)
    root = options.root()
    profiles.find(root, source)
    layout.check_name(name)
    profiles.check_free(root, name)
    with ExitStack() as stack:
        for locked_name in sorted({layout.folded_name(source), layout.folded_name(name)}):
            stack.enter_context(profiles.lock(root, locked_name, command="profiles copy", wait=wait))
        paths = profiles.find(root, source)
        if ledger.read(paths.checkpoints, paths.ledger_cache).unfinished is not None:
            in_force = settings.load(os.environ, paths)
            with options.open_repository(paths, in_force, (lambda note: None) if as_json else notice):
                pass  # finishes the interrupted rewind, which would be copied half done
        work = profile_copy.CopyOperation(root, paths, parts)
        with Progress("Copy", BYTES, work.measure().bytes) as progress:
            result = work.write(name, os.environ, progress)
    show(views.ProfileCopyView(result), as_json)


@app.command(epilog="Example: deepctl profiles export alice.tgz --user alice")
def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Archive to write, or - for stdout.")],
    user: options.User = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a whole profile to one file: settings, workspace, sessions and checkpoints.

    This works during a chat.
    """
    from deepctl.domain.transfer.profile_export import Export
    from deepctl.store import export_target

    paths = options.existing_profile(user)
    if file == "-":
        target: AbstractContextManager[BinaryIO] = stdout(as_json)
    else:
        export_target.check(options.root(), file, force=force)
        target = export_target.open_target(file, force=force)
    export = Export(paths, distribution.__version__)
    with Progress("Export", BYTES, export.measure().bytes) as progress, target as stream:
        result = export.write(stream, progress)
    view = views.ProfileExportView(paths.name, file, export_target.absolute(file), result)
    if file == "-":
        view.notices()
    else:
        show(view, as_json)


@app.command("import", epilog="Example: deepctl profiles import alice.tgz --as bob")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Archive from `profiles export`, or - for stdin.")],
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Name of the new profile. Default: its name in the archive."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size",
            metavar="SIZE",
            help="Allow this many bytes of content, with K, M or G. Default: 1G, or 100 times the size of FILE if "
            "that is more.",
        ),
    ] = None,
    max_files: Annotated[
        int, typer.Option("--max-files", metavar="N", min=1, help="Allow this many files and directories.")
    ] = 250_000,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Then run `profiles trust`: put the settings into force after a confirmation."),
    ] = False,
    yes: Yes = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Create a profile from an archive.

    A damaged archive is refused, and nothing is created then. Settings that could do harm (commands, addresses, the
    sandbox, rules, limits) are not in force until `profiles trust`.
    """
    from deepctl.domain.transfer import profile_import

    limits = profile_import.ImportLimits(max_files, bytes_of(max_size))
    if name is not None:
        layout.check_name(name)
    root = options.root()
    with opened_archive(file) as archive:
        if trust:
            instead = "without --trust, they are imported but not put into force"
            check_can_ask(yes=yes, as_json=as_json, reason=_TO_BE_SEEN, instead=instead)
        source = profile_import.examine(root, archive.stream, archive.name, name=name, size=archive.size, limits=limits)
        with Progress("Import", BYTES, source.bytes) as progress:
            result = profile_import.take_in(
                root,
                source,
                lambda: profiles.lock(root, source.name, command="profiles import", wait=wait),
                progress,
            )
    view = views.ProfileImportView(result)
    if not trust:
        show(view, as_json)
        if not as_json:
            view.notice_waiting()
        return
    if not as_json:
        show(view, False)
    try:
        trust_view = _put_into_force(result.paths, result.waiting, yes=yes, wait=wait, as_json=as_json)
    except DeepctlError:
        if not as_json:
            view.notice_waiting()
        raise
    show(views.ProfileImportView(result, trust_view.trusted) if as_json else trust_view, as_json)
    trust_view.check()


@app.command(epilog="Example: deepctl profiles trust bob")
def trust(
    name: Name = None,
    user: options.User = None,
    yes: Yes = False,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Show the imported settings that are not in force, and put them into force after a confirmation.

    Invalid settings, such as a misspelled table, are listed and stay out of force (exit 2).
    """
    try:
        profile = options.named_profile(name, user)
    except ProfileNotFound as error:
        error.hint = "`deepctl profiles list` lists the profiles; `deepctl profiles import FILE` creates one."
        raise
    view = _put_into_force(profile, None, yes=yes, wait=wait, as_json=as_json)
    show(view, as_json)
    view.check()


def _put_into_force(
    paths: ProfilePaths, untrusted: WaitingSettings | None, *, yes: bool, wait: float, as_json: bool
) -> TrustView:
    """Put the imported settings of a profile into force, if the user has seen them and agrees. They are read if
    `untrusted` is `None`.
    """
    from deepctl.domain import trust as domain
    from deepctl.domain import untrusted_files
    from deepctl.output.profiles import TrustView, lines

    untrusted = untrusted or domain.waiting(paths, settings.read("profile", paths.settings))
    usable = [item for item in untrusted.items if item.problem is None]
    unusable = [item for item in untrusted.items if item.problem is not None]
    if not usable:
        untrusted_files.remove_empty(paths)
        TrustView(paths.name, [], False, remaining_items=unusable).check()
        return TrustView(paths.name, [], False)
    is_shown = not yes and not as_json
    if is_shown:
        if unusable:
            say(f"Settings that came with {paths.name} and stay in {UNTRUSTED}:")
        _say(lines(unusable))
        say(f"Settings that came with {paths.name} and are not in force:")
        _say(lines(usable))
    confirm(
        f"Put {'the latter' if unusable else 'them'} into force in {paths.name}?",
        yes=yes,
        as_json=as_json,
        reason=_TO_BE_SEEN,
        instead=f"`deepctl config show --user {paths.name}` shows them",
    )
    with profiles.lock(options.root(), paths.name, command="profiles trust", wait=wait):
        domain.merge(options.named_profile(paths.name, None), untrusted)
    return TrustView(paths.name, usable, True, is_shown, unusable)


def _say(text_lines: Iterator[str]) -> None:
    """Print settings before a question: reasons wrapped between words, values with all of their blanks."""
    for line in text_lines:
        say(line if line.startswith("    ") else wrap(line, sys.stderr))


class Archive(NamedTuple):
    """An archive to read, and its name in errors. `size` is in bytes, `None` if it is unknown beforehand."""

    stream: BinaryIO
    name: str
    size: int | None


@contextmanager
def opened_archive(file: str) -> Iterator[Archive]:
    """The archive FILE. Raises `NotFound`, or `UsageError` for a directory or a terminal."""
    if file == "-":
        if is_terminal(sys.stdin):
            raise UsageError("- means stdin, but stdin is a terminal.", "Name a file, or pipe an archive in.")
        yield Archive(interruptible(sys.stdin.buffer), "What stdin has", None)
        return
    try:
        stream = open(file, "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        raise NotFound(f"There is no file {file!r}.", code="file_not_found") from None
    except IsADirectoryError:
        raise UsageError(
            f"{file} is a directory.", "FILE must be an archive that `deepctl profiles export` wrote."
        ) from None
    with stream:
        status = os.fstat(stream.fileno())
        yield Archive(interruptible(stream), file, status.st_size if stat.S_ISREG(status.st_mode) else None)


@contextmanager
def stdout(as_json: bool) -> Iterator[BinaryIO]:
    """The standard output, for an archive. Raises `UsageError` if it is a terminal, or is needed for the JSON
    document.
    """
    if as_json:
        raise UsageError("--json and - both need stdout.", "Name a file, or leave out --json.")
    if is_terminal(sys.stdout):
        raise UsageError(
            "- means stdout, but stdout is a terminal.",
            "Name a file, or redirect stdout: deepctl profiles export - > FILE",
        )
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Unlike a list, a partial archive is useless, so the user must get an error.
        discard_stdout()
        raise StorageError("The reader of stdout ended before the archive was complete.", code="stdout") from None


def bytes_of(size: str | None) -> int | None:
    """The value of `--max-size` in bytes. Raises `UsageError`."""
    if size is None:
        return None
    try:
        return setting_table.size(size)
    except ValueError:
        raise UsageError(
            f"--max-size cannot be {size!r}.", "It must be a number of bytes, optionally followed by K, M or G."
        ) from None
