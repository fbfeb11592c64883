"""Archives that no export made: each is refused as a whole, and nothing of it is left."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deepctl.domain import profiles
from deepctl.domain.transfer import archive, archive_reader, profile_import
from deepctl.domain.transfer.archive import ArchiveEntry, ArchiveHeader, Totals
from deepctl.domain.transfer.profile_export import Export
from deepctl.domain.transfer.profile_import import ImportLimits, ProfileImport
from deepctl.errors import BadName, Damaged, DeepctlError, NewerFormat, Refused, StorageError, UsageError
from deepctl.files import sealed_lines
from deepctl.layout import Root
from tests.store.scene import Scene

Piece = tuple[ArchiveEntry, bytes] | bytes
"""An entry and its content, or bytes as they are."""


def directory(path: str, mode: int = 0o755) -> Piece:
    return ArchiveEntry(path, "directory", mode, 0, 0), b""


def file(path: str, content: bytes = b"x", mode: int = 0o644) -> Piece:
    return ArchiveEntry(path, "file", mode, len(content), 0), content


def link(path: str, target: str) -> Piece:
    return ArchiveEntry(path, "link", 0o777, len(archive.raw(target)), 0, target), b""


def special(path: str, kind: bytes, *, target: str = "", size: int = 0) -> bytes:
    member = tarfile.TarInfo(path)
    member.type, member.linkname, member.size = kind, target, size
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def extended(records: bytes, path: str = "workspace/a") -> bytes:
    """A file behind an extended header with these records."""
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, len(records)
    plain = tarfile.TarInfo(path)
    plain.size = 1
    return (
        member.tobuf(tarfile.USTAR_FORMAT)
        + records
        + bytes(archive_reader.padding(len(records)))
        + plain.tobuf(tarfile.USTAR_FORMAT)
        + b"x".ljust(512, b"\0")
    )


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


START: list[Piece] = [
    file("profile.toml", b"version = 1\n"),
    directory("checkpoints"),
    directory("checkpoints/packs"),
    directory("sessions"),
    directory("workspace"),
]


def forged(pieces: list[Piece], *, header: bytes | None = None, declared: Totals | None = None) -> bytes:
    """An archive of these, with a manifest that fits."""
    totals = Totals(0, 0, 0)
    lines = b""
    body = b""
    for piece in pieces:
        if isinstance(piece, bytes):
            body += piece
            continue
        entry, content = piece
        body += archive_reader.encode(entry) + content + bytes(archive_reader.padding(len(content)))
        totals = totals.with_(entry.kind, entry.size)
        said = archive.raw(entry.target) if entry.kind == "link" else content
        lines += archive.manifest_line(entry, hashlib.sha256(said).hexdigest() if entry.kind != "directory" else None)
    said_to_be = declared or totals
    if header is None:
        header = archive.header_line(
            ArchiveHeader(
                "0.1.0", "alice", "2026-01-01T00:00:00Z", said_to_be.files, said_to_be.bytes, said_to_be.entries
            )
        )
    lines += archive.manifest_end(totals)
    first = archive_reader.encode(ArchiveEntry(archive.HEADER, "file", 0o600, len(header), 0)) + header
    last = archive_reader.encode(ArchiveEntry(archive.MANIFEST, "file", 0o600, len(lines), 0)) + lines
    return gzip.compress(
        first
        + bytes(archive_reader.padding(len(header)))
        + body
        + last
        + bytes(archive_reader.padding(len(lines)))
        + archive_reader.END,
        1,
    )


NORMAL = ImportLimits()


def take(root: Root, data: bytes, name: str | None = None, limits: ImportLimits = NORMAL) -> ProfileImport:
    opened = profile_import.examine(root, io.BytesIO(data), "a.tgz", name=name, size=len(data), limits=limits)
    return profile_import.take_in(root, opened, lambda: profiles.lock(root, opened.name, command="test"))


def left(root: Root) -> list[str]:
    return sorted(os.listdir(root.profiles)) if os.path.isdir(root.profiles) else []


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(str(tmp_path / "there"))


def test_what_these_tests_forge_would_be_imported_if_nothing_were_wrong_with_it(root: Root) -> None:
    done = take(
        root,
        forged(
            [
                *START,
                directory("workspace/d", 0o2555),
                file("workspace/d/setuid", b"content", 0o4755),
                link("workspace/d/up", "../file"),
                link("workspace/mounted", "/workspace/d/setuid"),
                directory("workspace/e"),
                file("workspace/file"),
            ]
        ),
    )
    workspace = Path(done.paths.workspace)
    assert left(root) == ["alice"]
    assert (workspace / "d" / "up").resolve() == workspace / "file"
    assert (workspace / "d").stat().st_mode & 0o7777 == 0o555
    assert (workspace / "d" / "setuid").stat().st_mode & 0o7777 == 0o755
    assert done.notes == ["Without their setuid, setgid or sticky bit: 2 entries."]


HOSTILE: dict[str, list[Piece]] = {
    "up and out": [file("workspace/../../evil")],
    "up and out of the root": [file("../evil")],
    "absolute": [file("/tmp/evil")],
    "an empty part": [file("workspace//evil")],
    "a dot": [file("workspace/./evil")],
    "dots": [file("workspace/..")],
    "a link to an absolute path": [link("workspace/l", "/etc/passwd")],
    "a link that goes up and out": [link("workspace/l", "../profile.toml")],
    "a link that goes up and out from below": [directory("workspace/d"), link("workspace/d/l", "../../profile.toml")],
    "links that together go out": [
        directory("workspace/d"),
        link("workspace/d/up", ".."),
        link("workspace/l", "d/up/../.."),
    ],
    "a link out of the mounted workspace": [link("workspace/l", "/workspace/../etc")],
    "a link to beside the mounted workspace": [link("workspace/l", "/workspaces/x")],
    "a link that says nothing": [link("workspace/l", "")],
    "a link in the place of a session": [link("sessions/main", "../workspace")],
    "writing through a link": [
        directory("workspace/d"),
        link("workspace/l", "d"),
        file("workspace/l/evil"),
    ],
    "writing through a link that is announced as a directory": [
        link("workspace/l", "d"),
        directory("workspace/l"),
        file("workspace/l/evil"),
    ],
    "a hard link": [special("workspace/a", tarfile.LNKTYPE, target="profile.toml")],
    "a character device": [special("workspace/a", tarfile.CHRTYPE)],
    "a block device": [special("workspace/a", tarfile.BLKTYPE)],
    "a FIFO": [special("workspace/a", tarfile.FIFOTYPE)],
    "a contiguous file": [special("workspace/a", tarfile.CONTTYPE)],
    "a sparse file of GNU tar's": [special("workspace/a", tarfile.GNUTYPE_SPARSE)],
    "a long name of GNU tar's": [special("x", tarfile.GNUTYPE_LONGNAME, size=10) + bytes(512)],
    "a header for everything": [special("x", tarfile.XGLTYPE, size=20) + record("path", "a" * 10).ljust(512, b"\0")],
    "a sparse file": [extended(record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0"))],
    "a header that says something unknown": [extended(record("SCHILY.xattr.user.x", "y"))],
    "a header that says something twice": [extended(record("path", "workspace/a") + record("path", "workspace/b"))],
    "a header with a null": [extended(record("path", "workspace/a\0b"))],
    "a header of a header": [extended(record("path", "workspace/a"))[:1024] * 2],
    "an enormous header": [special("././@PaxHeader", tarfile.XHDTYPE, size=1 << 40)],
    "an empty header": [special("././@PaxHeader", tarfile.XHDTYPE, size=0)],
    "a negative size": [extended(record("size", "-1"))],
    "an invalid size": [extended(record("size", "1e9"))],
    "an invalid time": [extended(record("mtime", "nan"))],
    "an enormous file": [extended(record("size", "9" * 18))],
    "a directory with content": [special("workspace/d", tarfile.DIRTYPE, size=512) + bytes(512)],
    "the same file twice": [file("workspace/a", b"1"), file("workspace/a", b"2")],
    "the same directory twice": [directory("workspace/a"), directory("workspace/a")],
    "a directory where a file is": [file("workspace/a"), directory("workspace/a")],
    "a file where a directory is": [directory("workspace/a"), file("workspace/a")],
    "a link where a file is": [file("workspace/a"), link("workspace/a", "b")],
    "something in a file": [file("workspace/a"), file("workspace/a/b")],
    "something in a directory that was not announced": [file("workspace/d/a")],
    "something in a directory that was left": [
        directory("workspace/a"),
        directory("workspace/b"),
        file("workspace/a/late"),
    ],
    "a file in the place of the workspace": [file("workspace")],
    "something unknown": [file("evil")],
    "something hidden": [file(".new-bob")],
    "a cache": [directory("cache"), file("cache/index")],
    "something unknown in checkpoints": [file("checkpoints/evil")],
    "a pack of another name": [
        directory("checkpoints"),
        directory("checkpoints/packs"),
        file("checkpoints/packs/x.pack"),
    ],
    "a session of a bad name": [directory("sessions"), directory("sessions/con")],
    "a hidden session": [directory("sessions"), directory("sessions/.deleted-x")],
    "sessions that differ by case": [directory("sessions"), directory("sessions/Main"), directory("sessions/main")],
    "a directory in a session": [directory("sessions"), directory("sessions/main"), directory("sessions/main/x")],
    "something else in a session": [directory("sessions"), directory("sessions/main"), file("sessions/main/x.toml")],
    "a log of a bad name": [directory("sessions"), directory("sessions/main"), file("sessions/main/X-1.jsonl")],
    "a directory in the place of the settings": [directory("profile.toml")],
    "very many directories in one another": [
        directory("workspace" + "/d" * depth) for depth in range(1, archive.MAX_DEPTH + 2)
    ],
}  # fmt: skip


def _followed(pieces: list[Piece]) -> list[Piece]:
    """What comes before `pieces` in a good archive, without what they bring themselves."""
    brought = {piece[0].path for piece in pieces if not isinstance(piece, bytes)}
    wanted = [piece for piece in START if not isinstance(piece, bytes) and piece[0].path not in brought]
    beginning = [piece for piece in wanted if not any(path.startswith(piece[0].path + "/") for path in brought)]
    above = [piece for piece in wanted if piece not in beginning and piece[0].path not in ("checkpoints/packs",)]
    return [*[piece for piece in beginning if piece[0].path.count("/") == 0], *above, *pieces]


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_no_export_makes_is_refused_and_leaves_nothing(root: Root, tmp_path: Path, kind: str) -> None:
    profiles.make_root(root)
    before = sorted(os.listdir(tmp_path))
    data = forged(_followed(HOSTILE[kind]), declared=Totals(400, 400, 1 << 20))
    with pytest.raises(Refused) as raised:
        take(root, data)
    assert raised.value.code == "hostile_archive", raised.value.message
    assert "a.tgz is refused: " in raised.value.message
    assert left(root) == []
    assert sorted(os.listdir(tmp_path)) == before
    assert os.listdir(root.locks) == []


LEDGERS: dict[str, dict[str, object]] = {
    "a log elsewhere": {"record": {"id": "a" * 16, "log": "../../../../bob/x"}},
    "a pack elsewhere": {"record": {"id": "a" * 16, "log": "", "pack": "../../x.pack"}},
    "a tree that is not a hash": {"record": {"id": "a" * 16, "log": "", "tree": "zz"}},
    "a rewind to a log elsewhere": {"record": {"id": "a" * 16, "log": ""}, "rewind": {"id": "b" * 16, "log": "../x"}},
    "a rewind whose mark is a path": {"record": {"id": "a" * 16, "log": ""}, "rewind": {"id": "../b", "log": "x"}},
    "a label of several lines": {"label": {"id": "a" * 16, "label": "a\nb"}},
    "a label that is a number": {"label": {"id": "a" * 16, "label": 5}},
    "an id of several lines": {"record": {"id": "a\nb", "log": ""}},
    "a rewind with a list for a log": {"record": {"id": "a" * 16, "log": ""}, "rewind": {"id": "b", "log": ["x"]}},
}


@pytest.mark.parametrize("kind", LEDGERS)
def test_a_ledger_that_names_files_by_paths_is_refused(root: Root, kind: str) -> None:
    ledger = sealed_lines.seal({"v": 1, **LEDGERS[kind]})
    with pytest.raises(Refused) as raised:
        take(root, forged([*START[:2], file("checkpoints/ledger.jsonl", ledger), *START[3:]]))
    assert raised.value.code == "hostile_archive"
    assert left(root) == []


def test_a_ledger_nested_beyond_reason_is_refused(root: Root) -> None:
    body = b'{"v":1,"x":' + b"[" * 200_000 + b"]" * 200_000
    import zlib

    line = b'%s,"crc":"%08x"}\n' % (body, zlib.crc32(body))
    with pytest.raises(Refused):
        take(root, forged([*START[:2], file("checkpoints/ledger.jsonl", line), *START[3:]]))
    assert left(root) == []


def test_more_than_is_allowed_is_refused_before_anything_is_written(root: Root) -> None:
    for declared in (Totals(10, 5, 2 << 30), Totals(1_000_000, 1_000_000, 5), Totals(5, 5, 10**30)):
        with pytest.raises(Refused) as raised:
            take(root, forged(START, declared=declared))
        assert raised.value.code == "archive_too_large"
        assert "--max-" in (raised.value.hint or "")
    assert not os.path.exists(root.path)
    assert (
        take(root, forged(START, declared=Totals(10, 5, 2 << 30)), limits=ImportLimits(100, 3 << 30)).totals.files == 1
    )


def test_what_does_not_fit_on_the_disk_is_storage_and_writes_nothing(root: Root) -> None:
    with pytest.raises(StorageError) as raised:
        take(root, forged(START, declared=Totals(10, 5, 10**17)), limits=ImportLimits(100, 10**18))
    assert raised.value.code == "storage_enospc"
    assert not os.path.exists(root.path)


def test_a_bomb_is_read_no_further_than_its_header_says(root: Root) -> None:
    """Content, entries and headers: whichever there is too much of ends it soon."""
    big = bytes(40 << 20)
    entries = [file(f"workspace/{number}", b"") for number in range(2000)]
    headers = [extended(record("path", "workspace/" + "x" * 1000) * 1 + record("size", "1"), "workspace/x")]
    large = record("mtime", "1." + "0" * 9) + record("path", "workspace/" + "y" * 100_000)
    for pieces in (
        [*START, file("workspace/big", big)],
        [*START, *entries],
        [*START, *[extended(large) for _ in range(300)]],
    ):
        with pytest.raises(DeepctlError) as raised:
            take(root, forged(pieces, declared=Totals(5, 5, 100)))
        assert raised.value.exit_code in (6, 8), headers
        assert left(root) == []


def test_a_header_beyond_reason_is_refused(root: Root) -> None:
    for header in (b" " * (100 << 10), b"[" * (60 << 10)):
        with pytest.raises(DeepctlError) as raised:
            take(root, forged(START, header=header))
        assert raised.value.exit_code in (5, 6)
    assert not os.path.exists(root.path)


def test_a_later_format_is_told_from_damage(root: Root) -> None:
    line = sealed_lines.seal({"format": 2, "anything": "else"})
    with pytest.raises(NewerFormat):
        take(root, forged(START, header=line))
    whole = forged(START, header=line)
    with pytest.raises(Damaged) as flipped:
        take(root, whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    assert flipped.value.code == "damaged"
    with pytest.raises(NewerFormat):
        take(root, forged([file("profile.toml", b"version = 99\n"), *START[1:]]))
    later = sealed_lines.seal({"v": 99, "whatever": 1})
    with pytest.raises(NewerFormat) as raised:
        take(root, forged([*START[:2], file("checkpoints/ledger.jsonl", later), *START[3:]]))
    assert "a.tgz" in raised.value.message
    assert left(root) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04 something", b"x" * 10_000, gzip.compress(b""), gzip.compress(b"x" * 10_000)],
    ids=["empty", "zip", "text", "nothing compressed", "text compressed"],
)
def test_something_else_is_no_archive(root: Root, data: bytes) -> None:
    with pytest.raises(UsageError) as raised:
        take(root, data)
    assert raised.value.code == "bad_archive"
    assert not os.path.exists(root.path)


def test_another_tar_file_is_no_archive(root: Root) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("workspace/a"))
    with pytest.raises(UsageError) as raised:
        take(root, packed.getvalue())
    assert raised.value.code == "bad_archive"


def test_a_bad_name_in_an_archive_makes_no_profile(root: Root) -> None:
    for name in ("../bob", "", "con", ".wipe-x", "a/b"):
        header = archive.header_line(ArchiveHeader("0.1.0", name, "2026-01-01T00:00:00Z", 1, 12, 5))
        with pytest.raises(Refused):
            take(root, forged(START, header=header))
    with pytest.raises(BadName):
        take(root, forged(START), name="../bob")
    assert not os.path.exists(root.path)


def test_something_behind_the_end_is_refused(root: Root) -> None:
    whole = forged(START)
    inner = gzip.decompress(whole)
    for data in (
        gzip.compress(inner + b"more"),
        gzip.compress(inner + b"more".ljust(1024, b"x")),
        gzip.compress(inner + bytes(64 << 20)),
        whole + gzip.compress(b"more"),
        whole + b"more",
    ):
        with pytest.raises((Refused, Damaged)):
            take(root, data)
        assert left(root) == []


def test_without_its_manifest_or_with_another_it_is_refused(root: Root) -> None:
    inner = gzip.decompress(forged([*START, file("workspace/a", b"content")]))
    start = inner.index(b"MANIFEST.jsonl") // 512 * 512
    for data in (
        inner[:start] + archive_reader.END,
        inner.replace(b"content", b"CONTENT"),
        inner.replace(b'"mode":"0644"', b'"mode":"0755"'),
    ):
        with pytest.raises((Refused, Damaged)):
            take(root, gzip.compress(data))
        assert left(root) == []


@pytest.fixture
def exported(tmp_path: Path) -> tuple[bytes, Scene]:
    scene = Scene(tmp_path / "here")
    scene.agent("a.txt", "one")
    (scene.workspace / "l").symlink_to("a.txt")
    scene.agent("b.txt", "two")
    return archived(scene), scene


def archived(scene: Scene) -> bytes:
    made = io.BytesIO()
    export = Export(scene.paths, "0.1.0")
    export.measure()
    export.write(made)
    return made.getvalue()


Tree = dict[str, tuple[int, bytes | str]]


def tree(directory: str) -> Tree:
    """Everything below a directory but the cache and the usage of a profile: mode and content."""
    found: Tree = {}
    for above, names, files in os.walk(directory):
        names[:] = [name for name in names if os.path.join(above, name) != os.path.join(directory, "cache")]
        for name in [*names, *files]:
            path = os.path.join(above, name)
            mode = os.lstat(path).st_mode
            content: bytes | str = os.readlink(path) if os.path.islink(path) else b""
            if os.path.isfile(path) and not os.path.islink(path):
                content = Path(path).read_bytes()
            found[os.path.relpath(path, directory)] = (mode, content)
    found.pop("usage.jsonl", None)
    return found


def _tried(root: Root, data: bytes, expected: Tree) -> str:
    """What became of an import: the code of an error, or `same`; anything in between fails."""
    try:
        done = take(root, data)
    except (UsageError, Damaged, Refused) as error:
        left_behind, code = left(root), error.code
    else:
        left_behind, code = [], "same"
    assert left_behind == []
    if code != "same":
        return code
    found = tree(done.paths.directory)
    os.rename(done.paths.directory, f"{root.path}/imported-{os.urandom(4).hex()}")
    assert found == expected
    return "same"


def test_every_flipped_bit_is_found_or_does_not_matter(root: Root, exported: tuple[bytes, Scene]) -> None:
    data, scene = exported
    expected = tree(scene.paths.directory)
    chosen = random.Random(1)
    positions = [*range(40), *chosen.sample(range(40, len(data) - 12), 260), *range(len(data) - 12, len(data))]
    outcomes = {}
    for position in positions:
        bit = 1 << chosen.randrange(8)
        outcomes[position] = _tried(
            root, data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :], expected
        )
    # gzip's time and system do not matter, and deflate has more than one spelling for the same bytes.
    same = [position for position, outcome in outcomes.items() if position >= 10 and outcome == "same"]
    assert len(same) < len(positions) // 10
    others = {outcome for position, outcome in outcomes.items() if position >= 10}
    assert others <= {"same", "damaged"}, "chance is never taken for malice"


def test_every_truncation_is_found(root: Root, exported: tuple[bytes, Scene]) -> None:
    data, scene = exported
    expected = tree(scene.paths.directory)
    lengths = [*range(1, 30), *range(30, len(data), max(1, len(data) // 150)), *range(len(data) - 20, len(data))]
    outcomes = {length: _tried(root, data[:length], expected) for length in lengths}
    assert {outcome for length, outcome in outcomes.items() if length >= 2} == {"damaged"}
    assert outcomes[1] in ("bad_archive", "damaged")


def test_bytes_that_change_places_or_come_twice_are_found(root: Root, exported: tuple[bytes, Scene]) -> None:
    """The same within gzip: tar files whose blocks are dropped, doubled and swapped."""
    data, scene = exported
    inner = gzip.decompress(data)
    blocks = [inner[start : start + 512] for start in range(0, len(inner), 512)]
    expected = tree(scene.paths.directory)
    change: Callable[[list[bytes], int], list[bytes]]
    for change in (
        lambda found, at: found[:at] + found[at + 1 :],
        lambda found, at: [*found[:at], found[at], *found[at:]],
        lambda found, at: [*found[:at], *found[at : at + 2][::-1], *found[at + 2 :]],
    ):
        for at in range(0, len(blocks) - 2, max(1, len(blocks) // 40)):
            changed = change(blocks, at)
            if changed != blocks:
                assert _tried(root, gzip.compress(b"".join(changed), 1), expected) != "same" or at == 0
