"""Patterns of a .gitignore: what git ignores is ignored, and no pattern takes exponential time."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepctl.files import gitignore
from deepctl.files.gitignore import Level

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_GIT = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "HOME": "/nonexistent",
}


def listed(root: bytes, start: Level, *, ignore_case: bool = False) -> set[bytes]:
    """The files below `root` that no .gitignore ignores, by the matcher."""

    def walk(directory: bytes, level: Level) -> Iterator[bytes]:
        try:
            with open(directory + b"/.gitignore", "rb") as file:
                level = level.extended(gitignore.parse(file.read(), ignore_case=ignore_case))
        except OSError:
            pass
        for are_directories in (False, True):
            names = {
                item.name.lower() if ignore_case else item.name: item.name
                for item in os.scandir(directory)
                if item.is_dir(follow_symlinks=False) is are_directories and item.name != b".git"
            }
            for name in names.keys() - level.ignored(names.keys(), are_directories=are_directories):
                path = directory + b"/" + names[name]
                if are_directories:
                    yield from walk(path, level.below(name))
                else:
                    yield os.path.relpath(path, root)

    return set(walk(root, start))


def git_lists(root: bytes, *options: str) -> set[bytes]:
    command = ["git", *options, "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    output = subprocess.run(command, cwd=root, env=_GIT, check=True, capture_output=True).stdout
    return set(output.split(b"\0")) - {b""}


def fill(root: bytes, files: Mapping[bytes, bytes]) -> None:
    """Write files; a path that others do not allow is left out."""
    for path, content in files.items():
        place = root + b"/" + path
        try:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "wb") as file:
                file.write(content)
        except OSError:
            continue


def init(root: Path) -> bytes:
    root.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", "--template="], cwd=root, env=_GIT, check=True)
    return os.fsencode(root)


def level_of_top() -> Level:
    return gitignore.level(())


NAMES = [b"a", b"b", b"ab", b"aab", b"foo", b"foobar", b"foo.pyc", b"A", b"a b", b"a ", b"x\\y", b"[a]", b"!x", b"#x"]
NAMES += [b"a*", b"-", b"]", b"\xff", "ä".encode(), b"a\n", b".env", b"^", b"**"]
PIECES = [b"*", b"**", b"?", b"/", b"/", b"/**/", b"/**", b"**/", b"[ab]", b"[!a]", b"[^a]", b"[a-b]", b"[]a]", b"[!]]"]
PIECES += [
    b"[[:alpha:]]",
    b"[[:nope:]]",
    b"[[:a]",
    b"[a",
    b"[-a]",
    b"[a-]",
    b"[\\]]",
    b"[b-a]",
    b"[a-\\b]",
    b"\\",
    b"\\*",
]
PIECES += [b"[a/b]", b"[.-0]", b"\\/", b" ", b"\\ ", b"!", b"#", b"\r", b"\t", b"***", b"[[:upper:][:space:]-z]", b".*"]
LINE = st.builds(
    lambda sign, parts, end: sign + b"".join(parts) + end,
    st.sampled_from([b"", b"", b"", b"!", b"/", b"!/", b"\\", b"#"]),
    st.lists(st.sampled_from(NAMES + PIECES), min_size=1, max_size=6),
    st.sampled_from([b"", b"", b"", b"/", b"/", b" ", b"  ", b"\\ ", b"\r", b"/**", b"/*"]),
)
PATH = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(b"/".join)
SIGNS = st.sampled_from([b"", b"", b"", b"!", b"/", b"!/"])


@st.composite
def likely_line(draw: st.DrawFn, paths: list[bytes]) -> bytes:
    """A pattern that has a good chance to match one of the paths, or a directory above it."""
    components = draw(st.sampled_from(paths)).split(b"/")
    components = components[: draw(st.integers(1, len(components)))]
    components = components[draw(st.integers(0, len(components) - 1)) if draw(st.booleans()) else 0 :]
    parts: list[bytes] = []
    for component in components:
        at = draw(st.integers(0, len(component)))
        stars = draw(st.sampled_from([b"*", b"**", b"**/", b"?", b"**/**/", b"**\\/"]))
        parts.append(
            draw(
                st.sampled_from(
                    [component] * 4 + [b"*", b"**", component[:at] + stars, component[:at] + stars + component[at:]]
                )
            )
        )
    if draw(st.booleans()):
        parts.insert(
            draw(st.integers(0, len(parts))), draw(st.sampled_from([b"**", b"**", b"*", b"**/*", b"*/**", b""]))
        )
    return draw(SIGNS) + b"/".join(parts) + draw(st.sampled_from([b"", b"", b"/", b"/**", b"/*"]))


@st.composite
def case(draw: st.DrawFn) -> tuple[list[bytes], bytes, list[tuple[bytes, bytes]]]:
    """Paths, the text of the .gitignore above them, and nested ones."""
    paths = draw(st.lists(PATH, min_size=1, max_size=10))

    def text(paths: list[bytes]) -> bytes:
        lines = draw(st.lists(LINE | likely_line(paths), max_size=5))
        return draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"*\n", b"*\n!*/\n"])) + b"\n".join(lines)

    nested: list[tuple[bytes, bytes]] = []
    for path in draw(st.lists(st.sampled_from(paths), max_size=2)):
        above = path.rpartition(b"/")[0]
        if above:
            nested.append((above, text([other[len(above) + 1 :] for other in paths if other.startswith(above + b"/")])))
    return paths, text(paths), nested


Case = tuple[list[bytes], bytes, list[tuple[bytes, bytes]]]


def files_of(case: Case, ignore_case: bool) -> dict[bytes, bytes]:
    """The files of a case; no two names differ only in the case of letters if that does not count."""
    paths, text, nested = case
    spelled = bytes.upper if ignore_case else bytes
    files = {spelled(path): b"" for path in paths}
    files[b".gitignore"] = text
    return files | {spelled(directory) + b"/.gitignore": below for directory, below in nested}


@settings(max_examples=400 if _SOAK else 20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=st.lists(case(), min_size=1, max_size=25), ignore_case=st.booleans())
def test_what_git_lists_is_listed(
    cases: list[Case], ignore_case: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Many trees side by side, so that git is started once for all: each has the rules of its own .gitignore."""
    root = init(tmp_path_factory.mktemp("case") / "repository")
    for number, case in enumerate(cases):
        fill(root + b"/%d" % number, files_of(case, ignore_case))
    fill(root, files_of(cases[0], ignore_case))
    expected = git_lists(root, "-c", f"core.ignoreCase={ignore_case}")
    assert listed(root, level_of_top(), ignore_case=ignore_case) == expected


def test_every_byte_is_in_the_same_brackets(tmp_path: Path) -> None:
    """One directory a bracket, with a file for each byte that a name can have."""
    names = [
        "alnum",
        "alpha",
        "blank",
        "cntrl",
        "digit",
        "graph",
        "lower",
        "print",
        "punct",
        "space",
        "upper",
        "xdigit",
    ]
    brackets = [f"[[:{name}:]]" for name in names] + [f"[^[:{name}:]]" for name in names]
    brackets += ["[a-f]", "[!a-f]", "[]-a]", "[--0]", "[a-]", "[A-Z]", "[\\]]", "[[:digit:]-z]", "[[:a-z]", "[Z-\\a]"]
    for ignore_case in (False, True):
        root = init(tmp_path / str(ignore_case))
        for number, bracket in enumerate(brackets):
            letters = (bytes([byte]) for byte in range(1, 256) if not ignore_case or not 65 <= byte <= 90)
            files = {b"%d/_%b" % (number, letter): b"" for letter in letters if letter != b"/"}
            fill(root, files | {b"%d/.gitignore" % number: b"_" + bracket.encode()})
        expected = git_lists(root, "-c", f"core.ignoreCase={ignore_case}")
        assert listed(root, level_of_top(), ignore_case=ignore_case) == expected


def test_a_pattern_can_be_read_from_the_text_as_git_reads_it(tmp_path: Path) -> None:
    cases = {
        b"a\n\n#b\n\\#c\n": [b"a", b"#c"],
        b"\xef\xbb\xbfa\nb": [b"a", b"b"],
        b"a\r\nb \r\nc  \n": [b"a", b"b", b"c"],
        b"a\\ \nb\\ \\  \nc\\\\ \n": [b"a ", b"b  ", b"c\\"],
        b"a\0b\nc": [b"a", b"c"],
        b"a\\": [],
        b"!a\na": [b"a"],
        b"a\n!a": [],
        b"!\\!a\n\\!a": [b"!a"],
    }
    names = [b"a", b"b", b"c", b"#b", b"#c", b"a ", b"b ", b"b  ", b"c\\", b"a\\", b"!a", b"c  ", b"\xef\xbb\xbfa"]
    for number, (text, ignored) in enumerate(cases.items()):
        assert gitignore.level(gitignore.parse(text)).ignored(names, are_directories=False) == set(ignored)
        root = init(tmp_path / str(number))
        fill(root, dict.fromkeys(names, b"") | {b".gitignore": text})
        assert git_lists(root) == set(names) - set(ignored) | {b".gitignore"}


HOSTILE = {
    "many stars": (b"*a" * 120 + b"b", b"a" * 255),
    "many double stars": (b"**a" * 80 + b"b", b"a" * 255),
    "many stars and brackets": (b"*[ab]?" * 40 + b"c", b"ab" * 127),
    "many directories": (b"**/a/" * 500 + b"b", b"a/" * 200 + b"a"),
    "stars for directories": (b"**/*/" * 500 + b"b", b"a/" * 200 + b"a"),
    "a quirk many times": (b"a" + b"**/" * 100_000 + b"b", b"a/" * 200 + b"a"),
    "brackets without an end": (b"[" * 300_000, b"a"),
    "classes without an end": (b"[[:" * 300_000 + b"]", b"a"),
    "classes with one end": (b"[" + b"[:" * 300_000 + b"]", b"a"),
    "a long name": (b"a*" * 500_000, b"a" * 255),
    "backslashes": (b"\\a" * 300_000 + b" " * 300_000, b"a"),
    "many lines": (b"\n".join(b"*%d*x" % number for number in range(1000)), b"a/" * 10 + b"1" * 200),
    "many lines for one name": (b"*\n" + b"!b\n*a\n" * 5000, b"a" * 255),
    "many anchored lines": (b"\n".join(b"/a/*%d/b" % number for number in range(5000)), b"a/" * 50 + b"b"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_no_pattern_takes_exponential_time(what: str) -> None:
    """Processor time: other tests run at the same time."""
    text, path = HOSTILE[what]
    began = time.process_time()
    level = gitignore.level(gitignore.parse(text))
    *directories, name = path.split(b"/")
    for directory in directories:
        level.ignored([directory], are_directories=True)
        level = level.below(directory)
    for number in range(100):
        level.ignored([name[number % 2 :] or b"x", b"x%d" % number], are_directories=False)
    assert time.process_time() - began < 3
