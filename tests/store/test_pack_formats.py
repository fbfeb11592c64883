"""Packs of format 1 stay readable beside those of format 2, and no compressed data fills the memory."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import resource
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepctl import layout
from deepctl.errors import Damaged
from deepctl.files.sparse_files import CHUNK, ZEROS
from deepctl.store import pack_store
from deepctl.store.index_db import Cache
from deepctl.store.pack_store import PackEntry, PackStore, read_table
from tests.samples import make_root
from tests.store.test_object_store import CONTENTS, Store
from tests.support.command import InProcess

HEADER_1 = b"deepctl pack 1\n"
HEADER_2 = b"deepctl pack 2\n"


def write_pack(path: Path, header: bytes, objects: list[tuple[bytes, bytes, int]]) -> None:
    """A pack of objects (hash, stored bytes, size), as the first line says."""
    raw, table = header, b""
    for digest, stored, size in objects:
        table += struct.pack(">32sQQQI", digest, len(raw), len(stored), size, zlib.crc32(stored))
        raw += stored
    count = struct.pack(">Q", len(objects))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw + table + count + hashlib.sha256(header + table + count).digest() + b"DCPACK1\n")


def write_pack_1(path: Path, contents: list[bytes]) -> None:
    """A pack as deepctl wrote it before format 2."""
    objects = []
    for content in contents:
        stored = min(zlib.compress(content, 1), content, key=len)
        objects.append((hashlib.sha256(content).digest(), stored, len(content)))
    write_pack(path, HEADER_1, objects)


def reads_as_format_1(raw: bytes) -> str:
    """What a reader of format 1 says of a pack: it compares the checksum first, and then looks at the first line."""
    (count,) = struct.unpack(">Q", raw[-48:-40])
    for size in (60, 56):
        table = raw[len(raw) - 48 - count * size : -48]
        if hashlib.sha256(HEADER_1 + table + raw[-48:-40]).digest() == raw[-40:-8]:
            return "whole" if raw.startswith(HEADER_1) else "damaged"
    header = re.match(rb"deepctl ([a-z]+) ([1-9][0-9]{0,8})\n", raw[:15])
    return "newer" if header is not None and header[1] == b"pack" and int(header[2]) > 1 else "damaged"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.cache.close()


def test_a_reader_of_format_1_refuses_a_new_pack_as_newer(store: Store, tmp_path: Path) -> None:
    store.add(*CONTENTS)
    (pack,) = store.packs.iterdir()
    assert pack.read_bytes().startswith(HEADER_2)
    assert reads_as_format_1(pack.read_bytes()) == "newer"
    write_pack_1(tmp_path / "old" / "a.pack", CONTENTS)
    assert reads_as_format_1((tmp_path / "old" / "a.pack").read_bytes()) == "whole", "the reader of this test reads"


def test_objects_of_both_formats_are_read_side_by_side_and_move_without_being_compressed_again(store: Store) -> None:
    old_contents = [
        b"old " * 500,
        bytes(5000),
        b"",
        os.urandom(300),
        random.Random(5).randbytes(70_000) + bytes(2 * CHUNK),
    ]
    write_pack_1(store.packs / f"{'0' * 16}.pack", old_contents)
    new = store.add(*CONTENTS)
    old = [hashlib.sha256(content).digest() for content in old_contents]
    objects = store.reopen()
    assert [objects.read(digest) for digest in (*old, *new)] == [*old_contents, *CONTENTS]
    with objects.new_batch() as batch:
        for digest in (*old, *new):
            batch.copy(digest)
    for path in store.packs.iterdir():
        if path.name != batch.pack:
            path.unlink()
    (pack,) = store.packs.iterdir()
    assert pack.read_bytes().startswith(HEADER_2)
    assert zlib.compress(old_contents[0], 1) in pack.read_bytes()
    objects = store.reopen()
    assert [objects.read(digest) for digest in (*old, *new)] == [*old_contents, *CONTENTS]
    assert all(objects.is_as_stored(pack.name, entry) for entry in read_table(str(pack)))


@pytest.mark.parametrize("header", [HEADER_1, HEADER_2])
def test_a_first_line_that_was_changed_is_damage(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "packs" / "a.pack"
    write_pack(path, header, [(hashlib.sha256(b"x").digest(), b"x", 1)])
    assert len(read_table(str(path))) == 1
    raw = path.read_bytes()
    for other in (HEADER_1, HEADER_2, b"deepctl pack 3\n", b"deepctl tree 1\n"):
        path.write_bytes(other + raw[len(other) :])
        if other != header:
            with pytest.raises(Damaged, match="The header of pack"):
                read_table(str(path))


def _stored(stored: bytes, size: int, place: Path, content: bytes = b"the content") -> tuple[PackStore, bytes]:
    """A store with one object, whose stored bytes and size are given."""
    digest = hashlib.sha256(content).digest()
    write_pack(place / "packs" / "a.pack", HEADER_2, [(digest, stored, size)])
    return PackStore(str(place / "packs"), Cache()), digest


def _frame(data: bytes) -> bytes:
    return pack_store.Compressor().frame(data)


def _with_header(descriptor: int, *fields: bytes) -> bytes:
    """A frame whose header is chosen, with one raw block of 5 bytes."""
    block = (5 << 3 | 1).to_bytes(3, "little") + b"hello"
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + b"".join(fields) + block


HOSTILE = {
    "a frame that expands to a gibibyte": (_frame(bytes(1 << 30)), 5),
    "a frame that expands to what the table says, and is another content": (_frame(bytes(64 << 20)), 64 << 20),
    "two thousand frames of a mebibyte": (_frame(ZEROS) * 2000, 7 << 20),
    "a frame that claims 2^63 bytes": (_with_header(0xC0, b"\x68", (1 << 63).to_bytes(8, "little")), 1 << 40),
    "a frame whose window is its content of 2^40 bytes": (_with_header(0xE0, (1 << 40).to_bytes(8, "little")), 1 << 40),
    "a frame whose window is 2 GiB": (_with_header(0x00, b"\xa8"), 6),
    "a frame that needs a dictionary": (_with_header(0x01, b"\x00", b"\x07"), 6),
    "a frame that is cut": (_frame(b"hello " * 1000)[:20], 6000),
    "a mark and nothing else": (b"\x28\xb5\x2f\xfd", 6000),
    "no compressed data": (b"neither of the two", 6000),
    "a stream of zlib that expands to a gibibyte": (zlib.compress(bytes(1 << 30), 9), 5),
    "data after the last frame": (_frame(b"hello " * 1000) + b"\0" * 30, 6000),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_data_is_damage_and_takes_little_memory(tmp_path: Path, what: str) -> None:
    objects, digest = _stored(*HOSTILE[what], tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Damaged, match="is damaged"):
        for _ in objects.chunks(digest):
            pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10, "KiB"


def test_a_million_empty_frames_are_refused_at_once(tmp_path: Path) -> None:
    objects, digest = _stored(_frame(b"") * 1_000_000, 5000, tmp_path)
    began = time.process_time()
    with pytest.raises(Damaged, match="is damaged"):
        objects.read(digest)
    assert time.process_time() - began < 1


def test_a_large_file_that_does_not_become_shorter_is_read_whatever_its_compressed_length(tmp_path: Path) -> None:
    """The length says whether an object is compressed, so a compressed object of the same length gets another."""
    lengths = set()
    for extra, repetitions in itertools.product(range(300, 304), range(34, 50)):
        content = random.Random(3).randbytes(CHUNK + extra)
        repeated = content[:-repetitions] + b"z" * repetitions
        (tmp_path / "file").write_bytes(repeated)
        store = PackStore(str(tmp_path / f"packs{extra}-{repetitions}"), Cache())
        descriptor = os.open(tmp_path / "file", os.O_RDONLY)
        with store.new_batch() as batch:
            digest, _ = batch.add_file(descriptor, len(repeated))
        os.close(descriptor)
        (entry,) = store.table(batch.pack)
        lengths.add(entry.stored_size - entry.size)
        assert store.read(digest) == repeated
    assert min(lengths) < 0 < max(lengths)
    assert 0 not in lengths
    assert len(pack_store.EMPTY_FRAME) in lengths, "one had the same length"


@pytest.mark.parametrize("user", ["alice", "bob"])
def test_a_root_of_0_1_gets_packs_of_format_2_beside_its_own(
    deepctl: InProcess, home: Path, tmp_path: Path, user: str
) -> None:
    make_root.unpack(home)
    packs = home / "profiles" / user / "checkpoints" / "packs"
    main = ("--session", "main", "--user", user)

    def formats(of: Path = packs) -> set[bytes]:
        return {path.read_bytes()[: len(HEADER_1)] for path in of.iterdir()}

    assert formats() == {HEADER_1}
    before = {path.name: path.read_bytes() for path in packs.iterdir()}
    deepctl("checkpoints", "list", "--user", user).ok()
    prompt = "\n".join(["write new.txt: " + "a text" * 50, "remember a new note"])
    deepctl("chat", *main, prompt, "--sandbox", "none", "--approve", "auto").ok()
    deepctl("checkpoints", "save", "mixed", *main).ok()
    assert formats() == {HEADER_1, HEADER_2}
    assert before.items() <= {path.name: path.read_bytes() for path in packs.iterdir()}.items()
    deepctl("profiles", "export", str(tmp_path / "mixed.deepctl"), "--user", user).ok()
    for words in (
        ("checkpoints", "verify", "--user", user),
        ("checkpoints", "rewind", "~1", *main, "--force"),
        ("checkpoints", "undo", *main),
        ("memory", "forget", "new note", "--purge", "--yes", "--user", user),
        ("checkpoints", "verify", "--user", user),
        ("checkpoints", "prune", "--keep", "3", "--user", user),
        ("checkpoints", "verify", "--user", user),
        ("checkpoints", "repair", "--user", user),
        ("profiles", "import", str(tmp_path / "mixed.deepctl"), "--as", "copied"),
        ("checkpoints", "verify", "--user", "copied"),
        ("checkpoints", "rewind", "mixed", "--session", "main", "--user", "copied", "--exact", "--force"),
        ("checkpoints", "rewind", "mixed", *main, "--exact", "--force"),
    ):
        deepctl(*words).ok()
    assert HEADER_2 in formats()
    assert formats(home / "profiles/copied/checkpoints/packs") == {HEADER_1, HEADER_2}
    assert (home / f"profiles/{user}/workspace/new.txt").read_text() == "a text" * 50


def test_the_number_of_a_new_pack_is_2() -> None:
    assert layout.PACK_FORMAT.current == 2
    assert pack_store.PACK_HEADER == HEADER_2
    assert PackEntry._fields == ("digest", "offset", "stored_size", "size", "crc")
