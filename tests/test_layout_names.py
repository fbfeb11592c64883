"""Names are refused, never repaired."""

from __future__ import annotations

import pytest

from deepctl import layout
from deepctl.errors import BadName

GOOD = ["a", "Alice", "alice.smith", "a_b-c@d+e", "0", "x" * 64, "console", "nullable", "com10"]
BAD = ["", ".", "..", ".hidden", "-x", "_x", "a/b", "../x", "a\\b", "a b", "a\n", "a\0b", "a.", "x" * 65, "é", "~", "*"]
BAD += ["ＡＬＩＣＥ", "аlice", "ali\u200dce", "١", "con", "NUL", "nul.txt", "Com1", "lpt9.log", "aux", "prn", "a:b"]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name_is_itself(name: str) -> None:
    assert layout.check_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(BadName):
        layout.check_name(name)
