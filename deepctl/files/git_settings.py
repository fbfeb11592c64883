"""The settings of git in a configuration file: the parser, and which of them cannot make git run a program.

The format of settings is that of `git_parse_source` in git's config.c, character by character: whatever git takes for
a setting is one here, and where git gives up, the rest of the file is a setting that is not harmless. The parser is
deepctl's own, and not `git config --list`: a setting has to be cut out of its file at the right place, the git that a
person runs later is another one than that of this machine or container, and a workspace of many repositories would
start a process for each of them around every command. A test compares the parser with the git that is installed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from deepctl.files.paths_beneath import is_within

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


def without(text: str, dropped_settings: Sequence[GitSetting], new_values: Mapping[str, str]) -> bytes:
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
        return is_within(os.path.realpath(os.path.join(directory, value)), os.path.realpath(root))
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
