"""What is offered for what has been typed, and what of a workspace is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from deepctl.cli.repl.command_catalogue import SlashCommand
from deepctl.cli.repl.completer import MAX_CANDIDATES, Candidate, CompletionMatch, matches, workspace_paths
from deepctl.cli.repl.status import NEW_SESSION, NO_SANDBOX, Toolbar, fit_toolbar
from deepctl.domain.mention_syntax import mentions


def _run(state: object, rest: str) -> None:
    raise NotImplementedError


class FixedCandidates:
    """Candidates that are always the same."""

    commands = (
        SlashCommand("/rewind", "[REF]", "Go back.", "", _run, "reference"),
        SlashCommand("/resume", "[NAME]", "Continue another session.", "", _run, "session"),
        SlashCommand("/only", "WHAT", "One part.", "", _run, "choice:files,memory"),
        SlashCommand("/open", "PATH…", "Files.", "", _run, "files"),
        SlashCommand("/help", "", "What there is.", "", _run),
    )

    def __init__(self, root: Path) -> None:
        self._root = str(root)

    def references(self) -> Iterable[Candidate]:
        return [Candidate("ab12cd34", "fix\x1b[31m the tests"), Candidate("ab99", "x" * 500), Candidate("bad\nname")]

    def sessions(self) -> Iterable[Candidate]:
        return [Candidate("Main", "3 turns"), Candidate("other")]

    def models(self) -> Iterable[Candidate]:
        return []

    def mentions(self, prefix: str) -> Iterable[Candidate]:
        return workspace_paths(self._root, prefix)

    def attached(self) -> Iterable[Candidate]:
        return [Candidate("~/my shot.png"), Candidate("/tmp/a.txt")]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    (root / "src" / "deep").mkdir(parents=True)
    (root / ".deep" / "memory").mkdir(parents=True)
    for name in ("README.md", "a b.txt", ".hidden", "src/one.py", "src/deep/two.py"):
        (root / name).write_text("")
    return root


def texts(text: str, root: Path) -> list[str]:
    return [one.text for one in matches(text, FixedCandidates(root))]


def test_a_slash_offers_commands_with_what_they_do(workspace: Path) -> None:
    assert list(matches("/re", FixedCandidates(workspace))) == [
        CompletionMatch(3, "/rewind ", "/rewind [REF]", "Go back."),
        CompletionMatch(3, "/resume ", "/resume [NAME]", "Continue another session."),
    ]
    assert texts("/he", workspace) == ["/help"]


@pytest.mark.parametrize(
    "text", ["", "re", " /re", "a\n/re", "/nothing x", "/help x", "/rewind --on", "/rewind ab1 ab"]
)
def test_where_nothing_can_be_meant_nothing_is_offered(text: str, workspace: Path) -> None:
    assert texts(text, workspace) == []


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("/rewind ab1", ["ab12cd34"]),
        ("/rewind --force ab9", ["ab99"]),
        ("/resume m", ["Main"]),
        ("/resume ", ["Main", "other"]),
        ("/only f", ["files"]),
        ("/open src/o", ["src/one.py"]),
        ("/open a", [r"a\ b.txt"]),
        ("/open a\\", [r"a\ b.txt"]),
        (r"/open a\ b", [r"a\ b.txt"]),
        ('/open "a b', ['"a b.txt"']),
        (r"/open a\ b.txt REA", ["README.md"]),
        ('/open "a b.txt" src/deep', ["src/deep/"]),
        ("/open ~", ["~/"]),
        ("/open ~/no", [r"~/notes\ of\ mine.txt"]),
        ("/open -", ["--remove"]),
        ("/open --remove ", [r"~/my\ shot.png", "/tmp/a.txt"]),
        ('/open --remove "~/my', ['"~/my shot.png"']),
    ],
)
def test_an_argument_is_offered_by_its_kind(
    text: str, offered: list[str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace.parent / "notes of mine.txt").write_text("")
    monkeypatch.setenv("HOME", str(workspace.parent))
    monkeypatch.chdir(workspace)
    assert texts(text, workspace) == offered


def test_what_is_offered_shows_nothing_a_terminal_would_obey(workspace: Path) -> None:
    offered = list(matches("/rewind ", FixedCandidates(workspace)))
    assert [one.text for one in offered] == ["ab12cd34", "ab99"]
    assert offered[0].description == "fix\\x1b[31m the tests"
    assert len(offered[1].description) == 80


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("read @", [r"@a\ b.txt", "@README.md", "@src/"]),
        ("@a\\", [r"@a\ b.txt"]),
        (r"@a\ b", [r"@a\ b.txt"]),
        ("@a b", []),
        ("@s", ["@src/"]),
        ("look at (@src/", ["@src/deep/", "@src/one.py"]),
        ('@"a', ['@"a b.txt"']),
        ('@"s', ['@"src/']),
        ("several\nlines @rea", ["@README.md"]),
        ("@REA", ["@README.md"]),
        ("@./src/o", ["@./src/one.py"]),
        ("@.h", ["@.hidden"]),
        ("@.", ["@.hidden"]),
        ("@.deep/", []),
        ("@./.deep/m", []),
        ("mail me@s", []),
        ("@src one", []),
        ("@/", []),
        ("@../", []),
        ("@src/../../", []),
        ("@nowhere/", []),
        ("@README.md/", []),
    ],
)
def test_an_at_sign_offers_files_of_the_workspace(text: str, offered: list[str], workspace: Path) -> None:
    assert sorted(texts(text, workspace)) == sorted(offered)


def test_what_is_not_a_file_or_cannot_be_shown_is_not_offered(workspace: Path) -> None:
    (workspace.parent / "outside").mkdir()
    (workspace.parent / "outside" / "secret").write_text("")
    (workspace / "z").mkdir()
    os.symlink(workspace.parent / "outside", workspace / "z" / "link")
    os.symlink("/etc/passwd", workspace / "z" / "passwd")
    os.mkfifo(workspace / "z" / "fifo")
    for name in (b"new\nline", b"\xff\xfe", b"esc\x1b[31m", "rtl\u202e.txt".encode(), b"good"):
        Path(os.fsdecode(os.fsencode(workspace / "z") + b"/" + name)).write_text("")
    assert [offer.text for offer in workspace_paths(str(workspace), "z/")] == ["z/good"]
    assert list(workspace_paths(str(workspace), "z/link/")) == []
    assert list(workspace_paths(str(workspace.parent / "none"), "")) == []


@pytest.mark.parametrize("name", ["it's", 'quo"te', "back\\slash", "(a) b", "a:10"])
def test_what_is_inserted_is_found_again(name: str, workspace: Path) -> None:
    (workspace / "z").mkdir()
    (workspace / "z" / name).write_text("")
    (inserted,) = texts("@z/", workspace)
    (mention,) = mentions(f"see {inserted} please")
    assert f"z/{name}" in [reading.path for reading in mention.readings]
    assert texts('@"z/', workspace) == ([f'@"z/{name}"'] if '"' not in name else [])


def test_a_huge_directory_is_read_for_a_moment_only(tmp_path: Path) -> None:
    for number in range(20_000):
        os.close(os.open(tmp_path / f"file{number:05}", os.O_CREAT | os.O_WRONLY))
    begun = time.monotonic()
    offered = [offer.text for offer in workspace_paths(str(tmp_path), "")]
    assert time.monotonic() - begun < 2
    assert len(offered) == MAX_CANDIDATES
    assert offered == sorted(offered)


BAR = Toolbar("alice", "main", "anthropic:claude-sonnet-4-6", "bubblewrap", 0.123, (3400, 1_250_000), 0.031)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (100, "alice · session main · claude-sonnet-4-6 · bubblewrap   context 12%  3.4k in 1.2M out  $0.03"),
        (88, "alice · session main · claude-sonnet-4-6 · bubblewrap   context 12%  3.4k in 1.2M out"),
        (80, "alice · session main · claude-sonnet-4-6 · bubblewrap   context 12%"),
        (60, "alice · session main · claude-sonnet-4-6   context 12%"),
        (40, "alice · claude-sonnet-4-6   context 12%"),
        (30, "alice · claude-sonnet-4-6"),
        (10, "alice"),
        (4, "ali…"),
        (0, ""),
    ],
)
def test_the_toolbar_drops_what_matters_least_first(width: int, line: str) -> None:
    assert fit_toolbar(BAR, width) == line


def test_the_toolbar_shows_what_is_known_and_nothing_a_terminal_would_obey() -> None:
    assert fit_toolbar(BAR._replace(sandbox=NO_SANDBOX), 30) == "alice · no sandbox"
    assert fit_toolbar(BAR._replace(session=NEW_SESSION), 60).startswith("alice · new session · claude")
    assert (
        fit_toolbar(Toolbar("a", None, "offline", None, None, None, None, "loading…"), 80) == "a · offline   loading…"
    )
    assert "\x1b" not in fit_toolbar(BAR._replace(model="x\x1b]0;owned\x07", note="\x1b[2J"), 200)
    assert fit_toolbar(BAR._replace(cost=0.0001, context=7.0), 200).endswith("context 700%  3.4k in 1.2M out  <$0.01")
