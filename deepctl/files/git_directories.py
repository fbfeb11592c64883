"""Git directories in a workspace: what of them makes git run a program, and taking it away where an agent put it.

A person who runs git in a workspace runs the hooks in there, and the programs that the configuration names. So what a
command in a sandbox leaves there is compared with what was there before (`survey`, `additions`), wherever the
directory lies and whatever it is called: a hook that is new or changed, a setting that is not known to be harmless,
and a `.git` or `commondir` that leads out of the workspace. `set_aside` takes away these alone, and keeps their text in
a file beside them, which git does not read. Nothing follows a link, and git is not run.

The format of settings is that of `git_parse_source` in git's config.c, character by character: whatever git takes for
a setting is one here, and where git gives up, the rest of the file is a setting that is not harmless. The parser is
deepctl's own, and not `git config --list`: a setting has to be cut out of its file at the right place, the git that a
person runs later is another one than that of this machine or container, and a workspace of many repositories would
start a process for each of them around every command. A test compares the parser with the git that is installed.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from deepctl.files import atomic

ASIDE = ".disabled"
"""The suffix of a file with settings that were set aside."""
_MOST = 500_000
"""Maximum number of workspace entries that are checked."""
_LARGEST = 1 << 20
_CONFIGS = ("config", "config.worktree")
_SHOWN = 80
"""Characters of a setting that are named."""


class _PathState(NamedTuple):
    """The state of a path: the bytes of a file, or a text for another kind, and the permissions."""

    content: bytes
    mode: int


class GitPaths(NamedTuple):
    """The paths of settings, hooks and pointers in a workspace, and the repositories there.

    A repository is named by its working tree; a bare one, or one under another name, by its git directory.
    """

    dangerous: Sequence[str]
    repositories: frozenset[str]


class GitSurvey(NamedTuple):
    """The settings and hooks in a workspace that make git run programs.

    `mount` is the workspace's path in a sandbox, `states` is by path. `settings` are those that are not known to be
    harmless now; this may depend on links, which a command can change.
    """

    root: str
    mount: str
    states: dict[str, _PathState]
    settings: set[tuple[str, str | None]]
    repositories: frozenset[str] = frozenset()

    def hooks(self) -> set[tuple[str, _PathState]]:
        """All states except settings files, by the last part of the path, so that a copy does not count as new."""
        return {(os.path.basename(path), state) for path, state in self.states.items() if not _is_config(path)}


class Addition(NamedTuple):
    """An addition at a path: these settings of a file, or the whole file if there are none.

    `replaced` is the text of former settings with the same names that the file no longer has.
    """

    path: str
    state: _PathState
    was: _PathState | None
    settings: Sequence[GitSetting]
    replaced: Mapping[str, str]


GIT_NAMES = ("HEAD", "objects", "refs", "commondir")
"""The names by which git recognises its own directory."""


def looks_like_git(names: set[str]) -> bool:
    """Whether git takes a directory with these names (in lower case) for its own."""
    return "head" in names and ("commondir" in names or {"objects", "refs"} <= names)


def survey(root: str, mount: str) -> GitSurvey:
    """All settings and hooks in the workspace at `root` that make git run programs."""
    now = paths(root, mount)
    states = {path: _state(path) for path in now.dangerous}
    settings = {
        setting.identity
        for path, state in states.items()
        if _is_config(path)
        for setting in _settings(path, state.content, root)
    }
    return GitSurvey(root, mount, states, settings, now.repositories)


def additions(before: GitSurvey, now_there: GitPaths | None = None) -> list[Addition]:
    """The additions since then, in the order of the paths. A state that existed before is no addition, even at another
    path. `now_there` are the present paths, if they are known.
    """
    hooks = before.hooks()
    changes = []
    for path in sorted(set((now_there or paths(before.root, before.mount)).dangerous)):
        old_state, now = before.states.get(path), _state(path)
        settings: list[GitSetting] = []
        replacements: dict[str, str] = {}
        if _is_config(path) and stat.S_ISREG(now.mode) and len(now.content) <= _LARGEST:
            settings = [
                setting
                for setting in _settings(path, now.content, before.root)
                if setting.identity not in before.settings
            ]
            if not settings:
                continue
            if old_state is not None and stat.S_ISREG(old_state.mode) and len(old_state.content) <= _LARGEST:
                replacements = _replaced(path, old_state.content, now.content, settings, before)
        elif now == old_state or (os.path.basename(path), now) in hooks:
            continue
        changes.append(Addition(path, now, old_state, settings, replacements))
    return changes


def describe(before: GitSurvey, changes: Sequence[Addition]) -> list[str]:
    """Each addition in ASCII words: its path in the workspace, and the setting."""
    words = []
    for addition in changes:
        path = os.path.relpath(addition.path, before.root)
        words += [f"{path}: {_shortened(str(setting))}" for setting in addition.settings] or [path]
    return [word.encode("unicode_escape", "surrogatepass").decode("ascii") for word in words]


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def set_aside(changes: Sequence[Addition]) -> None:
    """Remove the additions, and restore what they replaced. Raises `OSError`.

    The removed text is in a file of the same name with the suffix `.disabled`; settings keep their form.
    """
    for addition in changes:
        path, old_state = addition.path, addition.was
        if addition.settings:
            text = decode(addition.state.content)
            cut = [f"{setting.header}\t{text[setting.start : setting.end]}" for setting in addition.settings]
            _keep(path, "".join(cut))
            _replace(path, _without(text, addition.settings, addition.replaced), addition.state.mode)
            continue
        _move_aside(path, addition.state)
        if old_state is not None and stat.S_ISLNK(old_state.mode):
            os.symlink(old_state.content, path)
        elif old_state is not None and stat.S_ISREG(old_state.mode) and len(old_state.content) <= _LARGEST:
            _replace(path, old_state.content, old_state.mode)


def restore_link(path: str, target: str) -> None:
    """Put a symbolic link back that something replaced, and keep the replacement under a name of `set_aside`.

    Raises `OSError`.
    """
    if os.path.islink(path) and os.readlink(path) == target:
        return
    if os.path.lexists(path):
        _move_aside(path, _state(path))
    os.symlink(target, path)


def _is_config(path: str) -> bool:
    return os.path.basename(path).lower() in _CONFIGS


def paths(root: str, mount: str) -> GitPaths:
    """The configurations and hooks of every git directory, pointers to one outside of the workspace, and all
    repositories.
    """
    directories: dict[str, None] = {}
    pointers: list[str] = []
    repositories: set[str] = set()
    pending, visited, entry_count = [root], set[str](), 0
    while pending and entry_count <= _MOST:
        directory = pending.pop()
        if directory in visited:
            continue
        visited.add(directory)
        try:
            with os.scandir(directory) as entries:
                dir_entries = list(entries)
        except OSError:
            continue
        entry_count += len(dir_entries)
        names = {entry.name.lower() for entry in dir_entries}
        is_git = looks_like_git(names)
        is_named_git = os.path.basename(directory).lower() == ".git"
        if is_git or is_named_git:
            directories[directory] = None
        if is_git:
            repositories.add(os.path.dirname(directory) if is_named_git else directory)
        for entry in dir_entries:
            name = entry.name.lower()
            is_directory = entry.is_dir(follow_symlinks=False)
            if (name == "commondir" and "head" in names) or (name == ".git" and not is_directory):
                target = _leads_to(entry.path, root, mount)
                if name == ".git":
                    repositories.add(directory)
                if target is not None and _is_within(target, root):
                    directories[target] = None
                    pending.append(target)  # it may be among objects, and lead further
                else:
                    pointers.append(entry.path)
            elif is_directory and not (is_git and name == "objects"):
                pending.append(entry.path)
    parts = (part for directory in directories for part in _parts(directory))
    return GitPaths([*pointers, *parts], frozenset(repositories))


def _parts(directory: str) -> Iterator[str]:
    for name in _listed(directory):
        path = os.path.join(directory, name)
        if name.lower() in _CONFIGS:
            yield path
        elif name.lower() == "hooks":
            if not os.path.isdir(path) or os.path.islink(path):
                yield path
                continue
            for hook in _listed(path):
                if not hook.endswith((".sample", ASIDE)):
                    yield os.path.join(path, hook)


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _leads_to(path: str, root: str, mount: str) -> str | None:
    """The target directory of a link, a `.git` file or a `commondir`, read as git does; `None` without a target."""
    state = _state(path)
    target = os.fsdecode(state.content)
    is_commondir = os.path.basename(path).lower() == "commondir"
    if stat.S_ISLNK(state.mode):
        if is_commondir or os.path.isfile(path):
            return None  # git reads the target of the link
    elif not stat.S_ISREG(state.mode) or "\0" in target:
        return None
    else:
        target = target.rstrip("\r\n")
        if not is_commondir:
            if not target.startswith("gitdir: "):
                return None
            target = target.removeprefix("gitdir: ")
    if target.startswith(f"{mount}/"):
        target = root + target.removeprefix(mount)  # git in a sandbox writes absolute paths
    return os.path.realpath(os.path.join(os.path.dirname(path), target))


def _state(path: str) -> _PathState:
    """The state of a path; for a large file its beginning, and attributes that change with it."""
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return _PathState(os.fsencode(os.readlink(path)), status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            return _PathState(b"", status.st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        return _PathState(f"unreadable: {error.errno}".encode(), 0)
    if len(content) > _LARGEST:
        content += repr((status.st_size, status.st_ctime_ns)).encode()
    return _PathState(content, status.st_mode)


def _settings(path: str, content: bytes, root: str) -> Iterator[GitSetting]:
    """The settings of a file that are not known to be harmless."""
    for setting in parse_settings(decode(content)):
        if not is_harmless(setting, os.path.dirname(path), root):
            yield setting


def _replaced(
    path: str, old_content: bytes, now: bytes, new_settings: Sequence[GitSetting], before: GitSurvey
) -> dict[str, str]:
    """The former settings that additions replaced, by name, if they are harmless now."""
    text = decode(old_content)
    identities = {setting.identity for setting in new_settings}
    stable_names = {setting.name for setting in parse_settings(decode(now)) if setting.identity not in identities}
    names = {setting.name for setting in new_settings} - stable_names - {""}
    former: dict[str, str] = {}
    for setting in parse_settings(text):
        if setting.name in names and (
            setting.identity in before.settings or is_harmless(setting, os.path.dirname(path), before.root)
        ):
            former[setting.name] = former.get(setting.name, "") + text[setting.start : setting.end]
    return former


def _replace(path: str, content: bytes, mode: int) -> None:
    atomic.write_file(path, content)
    os.chmod(path, stat.S_IMODE(mode))


def _keep(path: str, text: str) -> None:
    """Append the removed text to the file beside it, unless that contains it."""
    content = text.encode("utf-8", "surrogateescape")
    for target in _names_aside(path):
        if not os.path.lexists(target):
            atomic.write_file(target, content)
            return
        state = _state(target)
        if stat.S_ISREG(state.mode) and len(state.content) <= _LARGEST:
            if content not in state.content:
                atomic.write_file(target, state.content + content)
            return


def _move_aside(path: str, state: _PathState) -> None:
    """Rename it to a name that git ignores; if that file already exists with the same text, remove it."""
    for target in _names_aside(path):
        if not os.path.lexists(target):
            os.rename(path, target)
            return
        if stat.S_ISREG(state.mode) and len(state.content) <= _LARGEST and _state(target) == state:
            os.unlink(path)
            return


def _names_aside(path: str) -> Iterator[str]:
    yield f"{path}{ASIDE}"
    for number in itertools.count(1):
        yield f"{path}-{number}{ASIDE}"


_SKIPPED = re.compile(r"[ \t\r\n]++|[#;][^\n]*+")
_HEADER = re.compile(r'\[(?!\])([A-Za-z0-9.-]*+)(?:[ \t\r]++"((?:[^"\\\n]|\\[^\n])*+)")?\]')
_NAME = re.compile(r"([A-Za-z][A-Za-z0-9-]*+)[ \t]*+(?:(?P<none>\n)|=)")
_VALUE = re.compile(
    r'((?:[^"\\#;\n]|\\[\\"tbn\n]|"(?:[^"\\\n]|\\[\\"tbn\n])*+")*+)'  # text, escapes, and both in quotation marks
    r"(?:[#;][^\n]*+)?+(?:\n|\Z)"
)
_PART = re.compile(r"\\(?s:.)|[ \t\r]|\"|[^\\ \t\r\"]+")
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\b": "\b", "\\\n": ""}


class GitSetting(NamedTuple):
    """A setting: its name as `git config --list` prints it, its value, `None` without `=`, and its position.

    Text that git cannot read has no name; its text is the value. `header` is the section line above it, as written.
    """

    name: str
    value: str | None
    start: int
    end: int
    header: str

    @property
    def identity(self) -> tuple[str, str | None]:
        """Name and value, which identify a setting."""
        return self.name, self.value

    def __str__(self) -> str:
        if not self.name:
            return f"settings that git cannot read: {self.value}"
        return self.name if self.value is None else f"{self.name} = {self.value}"


def decode(content: bytes) -> str:
    """The text in which settings have positions; git reads both kinds of line ends as one."""
    text = content.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    return text if text.endswith("\n") else f"{text}\n"


def parse_settings(text: str) -> Iterator[GitSetting]:
    """The settings of a text, in order."""
    at, section, above = int(text.startswith("\ufeff")), "", ""
    while at < len(text):
        if match := _SKIPPED.match(text, at):
            at = match.end()
        elif header := _HEADER.match(text, at):
            section = f"{header[1].lower()}."
            if header[2] is not None:
                section += re.sub(r"\\(.)", r"\1", header[2]) + "."
            above = f"{header[0]}\n"
            at = header.end()
        else:
            name = _NAME.match(text, at)
            value = _VALUE.match(text, name.end()) if name and not name["none"] else None
            if name and (value or name["none"]):
                end = (value or name).end()
                yield GitSetting(section + name[1].lower(), _plain(value[1]) if value else None, at, end, above)
            else:
                # Continuing after the line would take quadratic time for some files.
                end = len(text)
                yield GitSetting("", text[at:], at, end, above)
            at = end


def _without(text: str, dropped_settings: Sequence[GitSetting], new_values: Mapping[str, str]) -> bytes:
    """A file without some of its settings, in order; replacements, by name, are inserted at the first of them."""
    pieces, at, replacements = [], 0, dict(new_values)
    for setting in dropped_settings:
        before = text[at : setting.start]
        instead = replacements.pop(setting.name, "")
        is_alone = not before.rstrip(" \t") or before.rstrip(" \t").endswith("\n")
        pieces.append(before.rstrip(" \t") if is_alone and not instead else before)
        # The removed text has a line end; a header on the same line needs it.
        pieces.append(instead if instead or is_alone else "\n")
        at = setting.end
    return "".join([*pieces, text[at:]]).encode("utf-8", "surrogateescape")


def _plain(raw: str) -> str:
    """A value without quotation marks and escapes, and without spaces around it."""
    parts: list[str] = []
    spaces, is_quoted, has_text = 0, False, False
    for part in _PART.findall(raw):
        if part in (" ", "\t", "\r") and not is_quoted:
            spaces += has_text
            continue
        parts.append(" " * spaces)
        spaces = 0
        if part == '"':
            is_quoted = not is_quoted
            continue
        parts.append(_ESCAPES.get(part, part[1:]) if part[0] == "\\" else part)
        has_text = has_text or bool(parts[-1])
    return "".join(parts)


_HARMLESS = {
    "add": "ignoreErrors interactive.useBuiltin",
    "am": "keepcr threeWay",
    "apply": "ignoreWhitespace whitespace",
    "author": "email name",
    "blame": "blankBoundary coloring date markIgnoredLines markUnblamableLines showEmail showRoot",
    "branch": "autoSetupMerge autoSetupRebase sort",
    "branch.*": "description merge rebase gh-merge-base vscode-merge-base github-pr-owner-number github-pr-base-branch",
    "checkout": "defaultRemote guess thresholdForParallelism workers",
    "clean": "requireForce",
    "clone": "defaultRemoteName filterSubmodules rejectShallow",
    "commit": "cleanup gpgSign status verbose",
    "commitgraph": "changedPathsVersion generationVersion maxNewFilters readChangedPaths",
    "committer": "email name",
    "core": "abbrev alternateRefsPrefixes autocrlf bare bigFileThreshold checkRoundtripEncoding checkStat "
    "commentChar commentString commitGraph compression createObject deltaBaseCacheLimit eol fileMode "
    "filesRefLockTimeout fsmonitorHookVersion fsync fsyncMethod fsyncObjectFiles hideDotFiles ignoreCase "
    "ignoreStat logAllRefUpdates longPaths looseCompression maxTreeDepth multiPackIndex notesRef packedGitLimit "
    "packedGitWindowSize packedRefsTimeout precomposeUnicode preferSymlinkRefs preloadIndex quotePath "
    "repositoryFormatVersion safecrlf sharedRepository sparseCheckout sparseCheckoutCone splitIndex symlinks "
    "trustctime untrackedCache useReplaceRefs warnAmbiguousRefs whitespace",
    "credential": "useHttpPath username",
    "diff": "algorithm autoRefreshIndex colorMoved colorMovedWS context dirstat ignoreSubmodules indentHeuristic "
    "interHunkContext mnemonicPrefix noprefix relative renameLimit renames statGraphWidth statNameWidth submodule "
    "suppressBlankEmpty wordRegex wsErrorHighlight srcPrefix dstPrefix",
    "diff.*": "algorithm binary cachetextconv funcname wordRegex xfuncname",
    "difftool": "prompt trustExitCode",
    "extensions": "compatObjectFormat noop objectFormat preciousObjects relativeWorktrees worktreeConfig",
    "fastimport": "unpackLimit",
    "feature": "experimental manyFiles",
    "fetch": "all fsckObjects negotiationAlgorithm output parallel prune pruneTags recurseSubmodules "
    "showForcedUpdates unpackLimit writeCommitGraph",
    "format": "attach cc coverFromDescription coverLetter encodeEmailHeaders filenameMaxLength forceInBodyFrom "
    "from headers mboxrd noprefix notes numbered pretty signOff signature subjectPrefix suffix thread to "
    "useAutoBase",
    "gc": "aggressiveDepth aggressiveWindow auto autoDetach autoPackLimit bigPackThreshold cruftPacks logExpiry "
    "maxCruftSize packRefs pruneExpire reflogExpire reflogExpireUnreachable rerereResolved rerereUnresolved "
    "worktreePruneExpire writeCommitGraph",
    "gc.*": "reflogExpire reflogExpireUnreachable",
    "gpg": "format minTrustLevel",
    "grep": "column extendedRegexp fallbackToNoIndex fullName lineNumber patternType threads",
    "help": "autoCorrect format",
    "http": "lowSpeedLimit lowSpeedTime maxRequests minSessions noEPSV postBuffer userAgent version",
    "http.*": "lowSpeedLimit lowSpeedTime maxRequests minSessions noEPSV postBuffer userAgent version",
    "index": "recordEndOfIndexEntries recordOffsetTable skipHash sparse threads version",
    "init": "defaultBranch defaultObjectFormat defaultRefFormat",
    "interactive": "singleKey",
    "lfs": "repositoryFormatVersion",
    "log": "abbrevCommit date decorate diffMerges excludeDecoration follow graphColors initialDecorationSet "
    "mailmap showRoot showSignature",
    "lsrefs": "unborn",
    "mailinfo": "scissors",
    "mailmap": "blob",
    "maintenance": "auto autoDetach strategy",
    "maintenance.*": "auto enabled schedule",
    "merge": "autoStash branchdesc conflictStyle defaultToUpstream directoryRenames ff log renameLimit renames "
    "renormalize stat suppressDest verbosity verifySignatures",
    "merge.*": "name recursive",
    "mergetool": "hideResolved keepBackup keepTemporaries prompt writeToTemp",
    "mergetool.*": "hideResolved trustExitCode",
    "notes": "displayRef mergeStrategy rewriteMode rewriteRef",
    "notes.*": "mergeStrategy",
    "notes.rewrite": "amend rebase",
    "pack": "allowPackReuse compression deltaCacheLimit deltaCacheSize depth indexVersion island islandCore "
    "packSizeLimit preferBitmapTips readReverseIndex threads useBitmaps useSparse window windowMemory "
    "writeBitmapHashCache writeBitmapLookupTable writeReverseIndex useBitmapBoundaryTraversal",
    "protocol": "version",
    "pull": "ff rebase",
    "push": "autoSetupRemote default followTags gpgSign negotiate pushOption recurseSubmodules useBitmaps "
    "useForceIfIncludes",
    "rebase": "abbreviateCommands autoSquash autoStash backend forkPoint maxLabelLength "
    "missingCommitsCheck rebaseMerges rescheduleFailedExec stat updateRefs",
    "receive": "advertiseAtomic advertisePushOptions autogc certNonceSeed certNonceSlop denyCurrentBranch "
    "denyDeleteCurrent denyDeletes denyNonFastForwards fsckObjects hideRefs keepAlive maxInputSize shallowUpdate "
    "unpackLimit updateServerInfo",
    "remote.*": "fetch followRemoteHEAD gh-resolved mirror partialclonefilter promisor prune pruneTags push "
    "skipDefaultUpdate skipFetchAll tagOpt",
    "repack": "cruftDepth cruftThreads cruftWindow cruftWindowMemory packKeptObjects updateServerInfo "
    "useDeltaBaseOffset useDeltaIslands writeBitmaps",
    "rerere": "autoUpdate enabled",
    "revert": "reference",
    "showbranch": "default",
    "sparse": "expectFilesOutsideOfPatterns",
    "splitindex": "maxPercentChange sharedIndexExpire",
    "stash": "showIncludeUntracked showPatch showStat",
    "status": "aheadBehind branch displayCommentPrefix relativePaths renameLimit renames short showStash "
    "showUntrackedFiles submoduleSummary",
    "submodule": "active alternateErrorStrategy fetchJobs propagateBranches recurse",
    "submodule.*": "active branch fetchRecurseSubmodules ignore path shallow",
    "tag": "forceSignAnnotated gpgSign sort",
    "tar": "umask",
    "trailer": "ifexists ifmissing separators where",
    "trailer.*": "ifexists ifmissing key where",
    "transfer": "advertiseSID credentialsInUrl fsckObjects hideRefs unpackLimit",
    "uploadarchive": "allowUnreachable",
    "uploadpack": "allowAnySHA1InWant allowFilter allowReachableSHA1InWant allowRefInWant allowTipSHA1InWant "
    "hideRefs keepAlive",
    "uploadpackfilter": "allow",
    "uploadpackfilter.*": "allow maxDepth",
    "user": "email name signingKey useConfigOnly",
    "versionsort": "prereleaseSuffix suffix",
    "worktree": "guessRemote useRelativePaths",
}
"""Settings of git 2.39 and some newer versions that name no program, and no source of settings, files or credentials.

`X.*` is for settings of one X. Settings for servers, mail, and windows (`gitweb`, `sendemail`, `gui`, …) are left out,
because some of them name programs and an agent's daily work does not set them. `rebase.instructionFormat` and encodings
(`i18n`) are not names of programs, but can add a line `exec …` to a rebase.
"""
_HARMLESS_SECTIONS = ("advice", "color", "column", "pretty")
_ANY_FSCK = ("fsck", "fetch", "receive")
_VALUES = {
    "core.fsmonitor": {"false"},
    "extensions.refstorage": {"files", "reftable"},
    "core.hookspath": {"/dev/null"},
    "submodule.*.update": {"checkout", "rebase", "merge", "none"},
    "submodule.alternatelocation": {"no", "superproject"},
}
"""Settings that are harmless with these values."""
_URLS = {
    *("remote.pushdefault", "remote.*.url", "remote.*.pushurl", "branch.*.remote", "branch.*.pushremote"),
    *("submodule.*.url", "extensions.partialclone"),
}
"""Settings that are an address, which can also name a program: `ext::sh -c …`."""
_SCHEME = re.compile(r"([A-Za-z0-9+.-]*):(?::|//(?P<dash>-)?)")
_SCHEMES = {"file", "ftp", "ftps", "git", "git+ssh", "http", "https", "ssh", "ssh+git"}
"""Schemes that git handles itself. For another scheme, and for `NAME::…`, it runs a program called
`git-remote-NAME`.
"""


def is_harmless(setting: GitSetting, directory: str, root: str) -> bool:
    """Whether a setting of the git directory `directory` makes git run no program, and read nothing outside of `root`.

    Unknown settings are not harmless.
    """
    if not setting.name or "\0" in setting.name or "\0" in (setting.value or ""):
        return False  # git reads it up to the NUL
    section, _, rest = setting.name.partition(".")
    subsection, dot, key = rest.rpartition(".")
    name = f"{section}.*.{key}" if dot else setting.name
    value = setting.value or ""
    if name in _URLS:
        return _is_plain_address(value)
    if name in _VALUES:
        return value in _VALUES[name]
    if name == "core.worktree":
        return _is_within(os.path.realpath(os.path.join(directory, value)), root)
    if section == "pager" and not dot:
        return value in ("true", "false")
    if section in _ANY_FSCK and (subsection == "fsck" if dot else section == "fsck"):
        return key != "skiplist"
    return name in _harmless() or setting.name in _harmless() or section in _HARMLESS_SECTIONS


@cache
def _harmless() -> frozenset[str]:
    return frozenset(f"{section}.{key.lower()}" for section, keys in _HARMLESS.items() for key in keys.split())


def _is_plain_address(value: str) -> bool:
    scheme = _SCHEME.match(value)
    if value.startswith("-"):
        return False  # it would be an option
    return scheme is None or (not scheme[0].endswith("::") and scheme[1] in _SCHEMES and not scheme["dash"])


def _is_within(path: str, root: str) -> bool:
    """Whether a path without links is in a directory, or equals it."""
    real = os.path.realpath(root)
    return path == real or path.startswith(f"{real}/")
