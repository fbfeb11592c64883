"""Kinds of commands that a person can allow for good: what is of a kind, and what never is."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepctl.domain.commands import kinds
from deepctl.domain.commands.kinds import KINDS, described, kind_of
from deepctl.domain.commands.rules import analyse, judge
from deepctl.domain.permissions import Rule
from deepctl.sandbox.policy import COMMAND_PATH

HARMLESS = {
    "ls -la src": "ls",
    "ls": "ls",
    "cat 'a b' c.txt": "cat",
    "head -20 f": "head",
    "tail -n +5 f": "tail",
    "wc -l f": "wc",
    "sed -n 1,20p f": "sed -n",
    "sed -n '5p' f": "sed -n",
    "grep -rn 'foo bar' src": "grep",
    "grep -e a -e b -- f": "grep",
    "grep -rn --include='*.py' foo .": "grep",
    "rg -n foo src": "rg",
    "find . -name '*.py' -type f -maxdepth 3": "find",
    "sort -rnk 2 f": "sort",
    "git log --oneline -5": "git log",
    "git --no-pager log -n 5 HEAD~1..HEAD -- src": "git log",
    "git diff --stat HEAD^": "git diff",
    "git status --porcelain=v1": "git status",
    "git show HEAD:a/b": "git show",
    "git branch -vv": "git branch",
    "date +%F": "date",
    "echo hello there": "echo",
}
DANGEROUS = (
    # Code, other programs, and files that are written.
    *("git -c core.pager=x log", "git -c alias.x='!touch ran' x", "git diff --ext-diff", "git log --output=x"),
    *("git log --textconv", "git grep -O foo", "git grep --open-files-in-pager=x foo", "git blame --contents=x f"),
    *("git -C .. log", "git --git-dir=x log", "git --exec-path=. log", "git branch x", "git branch -D x", "git tag x"),
    *("git remote add x ext::x", "git log --format=%G?", "git log --pretty=%GK", "git diff --no-index a b"),
    *(
        "find . -exec touch ran +",
        "find . -execdir touch ran +",
        "find . -ok x",
        "find . -delete",
        "find . -fprint ran",
    ),
    *("find . -fls ran", "find . -files0-from x", "find -L . -name x", "find . -name", "find . x -delete"),
    *("rg --pre ./evil x", "rg --pre=./evil x", "rg --hostname-bin=./evil x", "rg -z x", "rg --search-zip x"),
    *("sort -o ran f", "sort -oran f", "sort --output=ran f", "sort --outp=ran f", "sort --compress-program=./evil f"),
    *("sed -i s/a/b/ f", "sed -n 1,2p f -i", "sed -n '1w ran' f", "sed -n 1e f", "sed -n -e 1p f", "sed s/a/b/e f"),
    *("awk 1 f", "awk 'BEGIN{system(1)}'", "tar -xf a --to-command=./evil", "xargs ls", "env ls", "nice ls", "time ls"),
    *("python3 -V", "node -v", "sh -c ls", "bash f", "make -n", "pytest", "./ls", "/bin/ls", "sub/ls", "../ls"),
    *("uniq f ran", "tree -o ran", "tree -R", "file -m f", "file -z f", "diff -l a b", "diff -r a b", "tail -f f"),
    *("date 01010000", "date -s now", "hostname x", "tee ran", "touch ran", "command ls", "builtin echo x", "exec ls"),
    # Files elsewhere.
    *("cat /etc/passwd", "cat ../x", "cat a/../../x", "cat ~/x", "cat ~root/x", "grep -r x /", "grep -f /etc/passwd x"),
    *(
        "find / -name x",
        "find a .. -name x",
        "find . -newer /etc/passwd",
        "git diff /etc/passwd f",
        "du -s ~",
        "ls -- /",
    ),
    *("wc --files0-from=f", "stat /", "grep x ..", "ls a/.."),
    # What a shell makes of it.
    *("A=1 ls", "ls > x", "ls>x", "ls 2>x", "ls < x", "ls | cat", "ls; ls", "ls & ls", "ls && ls", "ls\nls", "ls $x"),
    *("ls $(x)", "ls `x`", "ls *", "ls a?", "ls [a]", "ls {a,b}", "ls a{1..3}", "ls #x", "ls !x", "!ls", "ls a=~/x"),
    *(
        "{ ls; }",
        "(ls)",
        "ls()",
        "\\ls",
        "l\\s",
        "ls\\ x",
        "$'ls'",
        '$"ls"',
        "ls '",
        'ls "',
        "ls\tx",
        "ls\\\nx",
        "ls\u00a0x",
    ),
    # git reads no cluster with -S, and tree no value in the word of an option; git formats have signs before a letter.
    *("git log -iS --output=x", "git log -iG --output=x", "tree -Io x f", "tree -Po x f", "tree -Il x d"),
    *("git log --format=%+GK", "git show --format=%-G?", "git diff --pretty='% GF'", "'git log' -p", "'sed -n' 1p f"),
    *(
        "ls \u202ex",
        "ls \x1b[2J",
        "",
        " ",
        "alias ls=x",
        "function ls",
        "if ls",
        "ls -Z",
        "ls --all=x",
        "ls -",
        "grep",
        "grep -e",
    ),
)


@pytest.mark.parametrize(("text", "kind"), HARMLESS.items())
def test_a_harmless_command_has_its_kind(text: str, kind: str) -> None:
    match = kind_of(text)
    assert match is not None
    assert match.name == kind


@pytest.mark.parametrize("text", DANGEROUS)
def test_a_dangerous_command_has_no_kind(text: str) -> None:
    assert kind_of(text) is None
    assert kind_of(f"{text} ") is None


def test_a_kind_is_described_by_its_options() -> None:
    assert described("whoami") == "no options"
    assert described("wc") == "options -l -w -c -m -L --lines --words --bytes --chars"
    assert "-name" in described("find")
    assert all(described(kind) for kind in KINDS)


_PROGRAMS = (*KINDS, "git", "find", "grep", "sed", "sed -n", "./ls", "bash", "python3", "awk", "xargs", "env", "tar")
_ARGUMENTS = (
    *("-exec", "-execdir", "-delete", "-fprint", "-ok", "+", "touch", "ran", "./evil", "-o", "-oran", "--output=ran"),
    *("--pre=./evil", "--pre", "-i", "-f", "-c", "core.pager=./evil", "--ext-diff", "--textconv", "-O./evil", "-O"),
    *(
        "--compress-program=./evil",
        "-S1",
        "-T.",
        "-s",
        "--set=now",
        "1w ran",
        "1e",
        "1,5p",
        "w ran",
        "e",
        "-e",
        "-n",
        "5",
    ),
    *(
        "-rn",
        "-la",
        "-k2",
        "-t:",
        "--",
        "-",
        "f",
        "sub",
        "sub/g",
        "link",
        "..",
        "../outside",
        "/etc/passwd",
        "~",
        "HEAD",
    ),
    *(
        "a..b",
        "HEAD~1",
        "HEAD:f",
        "foo",
        "--all",
        "--stat",
        "--format=%h",
        "--format=%GG",
        "-name",
        "*.py",
        "-type",
        "-newer",
    ),
    *(
        "$(touch ran)",
        "`touch ran`",
        "${x:-y}",
        "; touch ran",
        "| tee ran",
        "> ran",
        ">> ran",
        "&& touch ran",
        "&",
        "\n",
    ),
    *(
        "'a b'",
        "'*'",
        '"x"',
        "'\"'",
        "\\",
        "{f,g}",
        "?",
        "[f]",
        "#",
        "!",
        "A=1",
        "x=~/y",
        "'",
        '"',
        "--include=x",
        "-5",
        "+%s",
    ),
)
_TEXTS = st.builds(
    lambda before, program, words, joiner: before + joiner.join([program, *words]),
    st.sampled_from(["", "", "", "A=1 ", "\\", "! ", "time ", "{ ", "("]),
    st.sampled_from(_PROGRAMS),
    st.lists(st.one_of(st.sampled_from(_ARGUMENTS), st.text(" abf-/.=~'\"\\$`*{},n1p;|", max_size=6)), max_size=5),
    st.sampled_from([" ", " ", " ", " ", "  ", ""]),
)


@settings(max_examples=600, deadline=None)
@given(_TEXTS)
def test_a_text_with_a_kind_is_one_command_with_listed_options(text: str) -> None:
    match = kind_of(text)
    if match is None:
        return
    words = shlex.split(text)
    analysis = analyse(text)
    assert [list(command.words) for command in analysis.commands] == [[(word,) for word in words]]
    assert not analysis.unclear
    program = " ".join(words[: match.name.count(" ") + 1]) if words[1:2] != ["--no-pager"] else match.name
    assert program == match.name
    assert match.name in KINDS
    kind = kinds._KINDS[match.name]
    values = [*kind.flags, *kind.values]
    options = [word for word in words[1:] if word.startswith("-")]
    listed = set(kind.long) | {"no-pager", ""} | {test.strip("-") for test in kinds._FIND_TESTS}
    for option in options if "--" not in options else options[: options.index("--")]:
        name = option.lstrip("-").partition("=")[0]
        is_value = any(option == word and words[at - 1][-1:] in kind.values for at, word in enumerate(words) if at)
        assert (
            name in listed
            or option[1:2] in values
            or is_value
            or re.fullmatch("-[0-9]+", option)
            or program == "sed -n"
        )
    assert not {"/etc/passwd", "..", "../outside", "~"} & set(match.operands)
    # A rule that allows exactly this text would allow it too.
    assert judge([Rule(re.sub(r"([*?\[\\])", r"[\1]", text.strip()), "allow")], text, otherwise="ask").action == "allow"


def _state(root: Path) -> dict[str, tuple[int, bytes]]:
    states = {}
    for path in sorted(root.rglob("*")):
        if ".git/" in f"{path}/":
            continue
        status = path.lstat()
        states[str(path.relative_to(root))] = (
            status.st_mode,
            path.read_bytes() if stat.S_ISREG(status.st_mode) else b"",
        )
    return states


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which a careless command would leave a file `ran`, or show what is outside."""
    place = tmp_path_factory.mktemp("kinds")
    (place / "outside").write_text("canary\n")
    work = place / "work"
    (work / "sub").mkdir(parents=True)
    for name in ("f", "sub/g", "a", "b", "-delete", "--pre=.evil", "HEAD"):
        (work / name).write_text("foo\nbar\n")
    evil = work / "evil"
    evil.write_text(f"#!/bin/sh\n: > '{work}/ran'\n")
    evil.chmod(0o755)
    for command in (
        ("init", "-q"),
        ("add", "."),
        ("-c", "user.name=a", "-c", "user.email=a@mail.test", "commit", "-qm", "x"),
    ):
        subprocess.run(["git", *command], cwd=work, check=True)
    return work


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=_TEXTS)
def test_a_command_with_a_kind_changes_and_runs_nothing(trap: Path, text: str) -> None:
    if kind_of(text) is None:
        return
    before = _state(trap)
    done = subprocess.run(
        ["/bin/sh", "-c", text],
        cwd=trap,
        env={"PATH": COMMAND_PATH, "HOME": str(trap.parent / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert b"canary" not in done.stdout
    assert _state(trap) == before
    assert sorted(os.listdir(trap.parent)) == ["outside", "work"]


def test_the_documentation_lists_all_kinds() -> None:
    page = (Path(__file__).parents[2] / "docs/sandbox.md").read_text()
    listed = page.partition("deepctl ships the list of kinds:")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"`([^`]+)`", listed)) == KINDS
