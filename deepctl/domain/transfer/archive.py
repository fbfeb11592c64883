"""The archive format of a profile, shared by the writer and the reader.

An archive is a tar file in the POSIX pax format, compressed by gzip:

- first `deepctl-profile.json`, one sealed line (`deepctl.files.sealed_lines`): `{format, deepctl, profile, created_at,
  files, bytes, entries}`. The totals are counted just before. A workspace may grow while it is read, so the content may
  be a little more (`allowance`), and never more than that;
- then the profile, a directory right before its contents. Names are UTF-8, other bytes are unchanged;
- last `MANIFEST.jsonl`, a sealed line for each entry: `{path, kind, mode, size, sha256}`, where the hash of a link is
  that of its target, and at the end `{entries, files, bytes}` as real totals.

Modification times have nanoseconds, because they decide which session was used last.
"""

from __future__ import annotations

import json
import re
from typing import Literal, NamedTuple

from deepctl import layout
from deepctl.errors import NewerFormat
from deepctl.files import sealed_lines
from deepctl.sandbox.policy import MOUNT
from deepctl.store import log_file

FORMAT = 1

HEADER = "deepctl-profile.json"
MANIFEST = "MANIFEST.jsonl"
MAX_HEADER = 64 << 10
"""Bytes of the largest header that is read."""
MAX_DEPTH = 200
"""Maximum nesting of directories in a workspace; the same as in checkpoints."""

Kind = Literal["file", "directory", "link"]

_PACK = re.compile(r"[0-9a-f]{16}\.pack", re.ASCII)


class ArchiveHeader(NamedTuple):
    """The first member. `created_at` is RFC 3339 in UTC, `bytes` is the size of all content, `deepctl` a version."""

    deepctl: str
    profile: str
    created_at: str
    files: int
    bytes: int
    entries: int


class ArchiveEntry(NamedTuple):
    """One file, directory or link of an archive. `path` is relative to the profile, undecodable bytes as surrogates.

    `mode` is the permission bits, `size` is in bytes (of a link: of its target), `modified` in nanoseconds since the
    epoch, `target` the target of a link.
    """

    path: str
    kind: Kind
    mode: int
    size: int
    modified: int
    target: str = ""


class Totals(NamedTuple):
    """Totals: entries, files (links included), and bytes in them."""

    entries: int
    files: int
    bytes: int

    def with_(self, kind: Kind, size: int) -> Totals:
        """The totals with one more entry."""
        return Totals(self.entries + 1, self.files + (kind != "directory"), self.bytes + size)


class OmittedPath(NamedTuple):
    """A path that is not in the archive, relative to the profile, and the reason."""

    path: str
    reason: str


def raw(text: str) -> bytes:
    """The bytes of a path or of a link's target; the inverse of `text`."""
    return text.encode("utf-8", "surrogateescape")


def text(raw: bytes) -> str:
    """A path or a link's target as text, with a surrogate for each byte that is not UTF-8."""
    return raw.decode("utf-8", "surrogateescape")


def allowance(totals: Totals) -> Totals:
    """The maximum content of an archive whose header declares `totals`."""
    return Totals(
        totals.entries + max(1000, totals.entries // 8),
        totals.files + max(1000, totals.files // 8),
        totals.bytes + max(16 << 20, totals.bytes // 8),
    )


def header_line(header: ArchiveHeader) -> bytes:
    """The content of the first member."""
    return sealed_lines.seal({"format": FORMAT, **header._asdict()})


def parse_header(line: bytes, where: str) -> ArchiveHeader:
    """The first member of the archive `where`. Raises `NewerFormat`, and `ValueError` if it is damaged."""
    try:
        # Before the checksum is checked, because a later format may have another one.
        fields = json.loads(line)
        if isinstance(fields, dict) and type(version := fields.get("format")) is int and version > FORMAT:
            raise NewerFormat(where, version, FORMAT)
        fields = sealed_lines.unseal(line.removesuffix(b"\n"))
    except RecursionError:
        raise ValueError("not a header") from None
    match fields:
        case {
            "format": 1,
            "deepctl": str(version),
            "profile": str(profile),
            "created_at": str(at),
            "files": int(files),
            "bytes": int(size),
            "entries": int(entries),
        } if min(files, size, entries) >= 0:
            return ArchiveHeader(version, profile, at, files, size, entries)
        case _:
            raise ValueError("not a header")


def manifest_line(entry: ArchiveEntry, digest: str | None) -> bytes:
    """The line of one entry; `digest` is the SHA-256 of its content in hex, `None` for a directory."""
    return sealed_lines.seal(
        {
            "path": entry.path,
            "kind": entry.kind,
            "mode": f"{entry.mode:04o}",
            "size": entry.size,
            "sha256": digest,
        }
    )


def manifest_end(totals: Totals) -> bytes:
    """The last line of the manifest."""
    return sealed_lines.seal(totals._asdict())


def is_of_a_profile(path: str, kind: Kind) -> bool:
    """Whether an entry of that path and kind belongs to a profile: the whole layout of archives."""
    match path.split("/"):
        case ["profile.toml" | "prompt_history"]:
            return kind == "file"
        case ["workspace" | "sessions" | "checkpoints"] | ["checkpoints", "packs" | "messages"]:
            return kind == "directory"
        case ["workspace", *_]:
            return True
        case ["sessions", name]:
            return kind == "directory" and layout.is_good_name(name)
        case ["sessions", name, file]:
            return kind == "file" and layout.is_good_name(name) and (file == "session.json" or _is_log(file))
        case ["skills", *rest]:
            return kind == "directory" or (kind == "file" and len(rest) > 1)
        case ["commands"]:
            return kind == "directory"
        case ["commands", file]:
            return kind == "file" and file.endswith(".md")
        case ["checkpoints", "ledger.jsonl" | "ledger.size"]:
            return kind == "file"
        case ["checkpoints", "packs", file]:
            return kind == "file" and _PACK.fullmatch(file) is not None
        case ["checkpoints", "messages", file]:
            return kind == "file" and _is_log(file)
        case _:
            return False


def _is_log(file: str) -> bool:
    return file.endswith(log_file.SUFFIX) and log_file.is_id(file.removesuffix(log_file.SUFFIX))


def leads_out(path: str, target: str) -> bool:
    """Whether the link at `path`, which begins with `workspace/`, may lead out of the workspace.

    The target text alone decides: `..` is allowed only at its beginning, where it goes up real directories; after a
    name that is a link itself, it could lead anywhere. `/workspace` is the agents' name of their workspace.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    if target.startswith("/"):
        return parts[:1] != [MOUNT.strip("/")] or ".." in parts
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return up > path.count("/") - 1 or ".." in parts[up:]
