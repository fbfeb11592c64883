"""Objects: kept once, read exactly or not at all."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepctl.errors import Damaged
from deepctl.store.index_db import Cache
from deepctl.store.pack_store import PackStore, read_table


class Store:
    """Objects in a directory, opened afresh as by another process with `reopen`."""

    def __init__(self, place: Path) -> None:
        self.packs = place / "packs"
        self.cache_path = place / "cache"
        self._open()

    def _open(self) -> None:
        self.cache = Cache(str(self.cache_path))
        self.objects = PackStore(str(self.packs), self.cache)

    def reopen(self) -> PackStore:
        self.cache.close()
        self._open()
        return self.objects

    def add(self, *contents: bytes) -> list[bytes]:
        with self.objects.new_batch() as batch:
            return [batch.add(content) for content in contents]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.cache.close()


CONTENTS = [b"", b"x", b"hello " * 1000, os.urandom(5000), bytes(100_000), os.urandom(3 << 20)]


def test_what_is_added_is_read_back_by_any_process(store: Store) -> None:
    digests = store.add(*CONTENTS)
    assert [store.objects.read(digest) for digest in digests] == CONTENTS
    assert [store.reopen().read(digest) for digest in digests] == CONTENTS


def test_the_same_content_is_kept_once_and_one_batch_is_one_pack(store: Store) -> None:
    first = store.add(*CONTENTS, *CONTENTS)
    assert len(list(store.packs.iterdir())) == 1
    store.reopen()
    assert store.add(*CONTENTS) == first[: len(CONTENTS)]
    assert len(list(store.packs.iterdir())) == 1, "nothing was new"
    store.add(b"new")
    assert len(list(store.packs.iterdir())) == 2
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in store.packs.iterdir())


@pytest.mark.parametrize("content", CONTENTS, ids=len)
def test_a_file_is_the_same_object_as_its_bytes(store: Store, tmp_path: Path, content: bytes) -> None:
    (expected,) = store.add(content)
    (tmp_path / "file").write_bytes(content)
    for size in (len(content), 0, 10 << 20):  # whatever its status said a moment ago
        descriptor = os.open(tmp_path / "file", os.O_RDONLY)
        with store.objects.new_batch() as batch:
            assert batch.add_file(descriptor, size) == (expected, len(content))
        os.close(descriptor)


def test_an_error_in_a_batch_leaves_nothing(store: Store) -> None:
    store.add(b"before")
    before = sorted(store.packs.iterdir())

    def fail() -> None:
        with store.objects.new_batch() as batch:
            batch.add(b"never kept")
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert sorted(store.packs.iterdir()) == before
    store.add(b"before")
    assert sorted(store.packs.iterdir()) == before


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty", "other version", "cut"])
def test_the_cache_can_be_lost_or_spoilt_at_any_time(store: Store, damage: str) -> None:
    digests = store.add(*CONTENTS)
    store.cache.close()
    raw = store.cache_path.read_bytes()
    match damage:
        case "missing":
            store.cache_path.unlink()
        case "garbage":
            store.cache_path.write_bytes(os.urandom(10_000))
        case "empty":
            store.cache_path.write_bytes(b"")
        case "other version":
            store.cache_path.write_bytes(raw[:60] + b"\0\0\0\x63" + raw[64:])
        case "cut":
            store.cache_path.write_bytes(raw[: len(raw) // 2])
    objects = store.reopen()
    assert [objects.read(digest) for digest in digests] == CONTENTS


def test_a_byte_flipped_anywhere_never_yields_wrong_content(store: Store) -> None:
    contents = [b"a" * 300, os.urandom(300), b"tree of something " * 40]
    digests = store.add(*contents)
    (pack,) = store.packs.iterdir()
    raw = pack.read_bytes()
    randomness = random.Random(7)
    caught = 0
    positions = randomness.sample(range(len(raw)), 200)
    for position in positions:
        pack.write_bytes(raw[:position] + bytes([raw[position] ^ randomness.randrange(1, 256)]) + raw[position + 1 :])
        store.cache_path.unlink(missing_ok=True)
        objects = store.reopen()
        whole = True
        try:
            read_table(str(pack))
        except Damaged:
            whole = False
        for digest, content in zip(digests, contents, strict=True):
            try:
                assert objects.read(digest) == content
            except Damaged:
                whole = False
        caught += not whole
    assert caught == len(positions), "every byte is covered by a checksum"


@pytest.mark.parametrize("length", [0, 1, 15, 100, -1, -48])
def test_a_pack_cut_short_is_damage_and_the_others_are_read(store: Store, length: int) -> None:
    (first,) = store.add(b"first" * 100)
    (pack,) = store.packs.iterdir()
    (second,) = store.add(b"second" * 100)
    pack.write_bytes(pack.read_bytes()[:length])
    store.cache_path.unlink()
    objects = store.reopen()
    assert objects.read(second) == b"second" * 100
    with pytest.raises(Damaged):
        objects.read(first)


def test_a_pack_that_vanished_is_not_believed_to_hold_anything(store: Store) -> None:
    (digest,) = store.add(b"content")
    (pack,) = store.packs.iterdir()
    pack.unlink()
    store.reopen()
    assert store.add(b"content") == [digest]
    assert store.reopen().read(digest) == b"content"


def test_a_huge_file_is_kept_in_constant_memory(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with open(path, "wb") as file:
        file.write(b"begin")
        file.truncate(300 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    descriptor = os.open(path, os.O_RDONLY)
    with store.objects.new_batch() as batch:
        digest, size = batch.add_file(descriptor, 300 << 20)
    os.close(descriptor)
    assert size == 300 << 20
    assert sum(map(len, store.objects.chunks(digest))) == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10, "KiB"


def test_many_objects_are_looked_up_at_once_as_one_by_one(store: Store) -> None:
    with store.objects.new_batch() as batch:
        kept = [batch.add(b"%d" % number) for number in range(1200)]
        assert batch.stored(kept) == set(), "the batch does not count"
    with store.objects.new_batch() as batch:
        other = batch.add(b"in another pack")
    wanted = [*kept, other, bytes(32)]
    assert store.objects.stored(wanted) == {digest for digest in wanted if store.objects.has(digest)} == {*kept, other}
    assert store.objects.stored(()) == set()
    store.cache.forget()
    assert store.objects.stored(wanted) == {*kept, other}, "the cache is filled again"
    counted = PackStore(str(store.packs), store.cache, counted_packs=lambda: {batch.pack})
    with counted.new_batch() as third:
        assert third.stored(wanted) == {digest for digest in wanted if counted.keeps(digest)} == {other}
        third.drop()
