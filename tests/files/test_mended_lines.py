"""One changed byte of a file of sealed lines is found by the checksum, and put right."""

from __future__ import annotations

import random

from deepctl.files import sealed_lines


def _lines() -> bytes:
    randomness = random.Random(1)
    return b"".join(
        sealed_lines.seal({"v": 2, "turn": n, "text": 'é"\n' + "x" * randomness.randrange(200)}) for n in range(4)
    )


def test_any_byte_that_became_another_is_as_it_was_again() -> None:
    raw = _lines()
    for at in range(len(raw)):
        for change in {1, 0x80, 0xFF, raw[at] ^ 0x0A} - {0}:
            damaged = raw[:at] + bytes([raw[at] ^ change]) + raw[at + 1 :]
            assert sealed_lines.mend(damaged) == raw, (at, change)


def test_what_more_than_a_byte_changed_in_stays_as_it_is() -> None:
    raw = _lines()
    for at in range(0, len(raw) - 40, 7):
        damaged = raw[:at] + b"#" * 30 + raw[at + 30 :]
        assert sealed_lines.mend(damaged) == damaged or raw[at : at + 30].count(b"#") > 28


def test_what_is_cut_short_stays_as_it_is() -> None:
    raw = _lines()
    for end in range(0, len(raw), 5):
        assert sealed_lines.mend(raw[:end]) in (raw[:end], raw[:end] + b"\n")
