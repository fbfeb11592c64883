"""Rules, questions and answers around tool calls, through the real agent and a real directory."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ToolReturnPart
from pydantic_ai.models.function import AgentInfo

from deepctl import LocalBackend, NoSandbox, StateBackend
from deepctl.agent.approver import ApprovalAnswer, ApprovalRequest
from deepctl.domain.permissions import Permissions, parse
from tests.agent.test_agent import Call, Script, _run
from tests.support.command import InProcess
from tests.support.loopback import Text, ToolCalls, provider
from tests.support.terminal import Terminal

YES, ALWAYS, NO = ApprovalAnswer(allow=True), ApprovalAnswer(allow=True, always=True), ApprovalAnswer(allow=False)
NO_SECRETS = [{"pattern": "secrets/**", "action": "deny", "description": "hands off"}]


class Person:
    """Answers questions in this order, and remembers them; the keys of their choices apart."""

    def __init__(self, *answers: ApprovalAnswer) -> None:
        self._answers = list(answers)
        self.asked: list[ApprovalRequest] = []
        self.keys: list[str] = []

    async def __call__(self, question: ApprovalRequest) -> ApprovalAnswer:
        self.asked.append(question._replace(choices=()))
        self.keys.append("".join(choice.key for choice in question.choices))
        return self._answers.pop(0)


def _rules(**operations: Any) -> Permissions:
    return parse(operations, "config.toml")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workspace with a secret in `secrets/x`, and links that lead to it."""
    work = tmp_path / "work"
    (work / "secrets" / "deep").mkdir(parents=True)
    (work / "secrets" / "x").write_text("TOP SECRET\n")
    (work / "a").mkdir()
    (work / "a" / "open.txt").write_text("TOP OPEN\n")
    (work / "link").symlink_to("secrets/x")
    (work / "links").symlink_to("secrets")
    (work / "within").symlink_to("secrets/deep")
    (work / "absolute").symlink_to(work / "secrets" / "x")
    return work


SPELLINGS = [
    "secrets/x",
    "./secrets/x",
    ".//secrets//x",
    "a/../secrets/x",
    "secrets/deep/../x",
    "/workspace/secrets/x",
    "/workspace/a/../secrets/x",
    "/workspace/../workspace/secrets/x",
    "//workspace/secrets/x",
    "{work}/secrets/x",
    "{work}/a/../secrets/x",
    "link",
    "./link",
    "/workspace/link",
    "{work}/link",
    "links/x",
    "links/deep/../x",
    "absolute",
    "within/../x",
    "/workspace/within/../x",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("commands", [False, True])
def test_a_denied_file_is_denied_however_it_is_spelled(work: Path, spelling: str, commands: bool) -> None:
    path = spelling.format(work=work)
    before = (work / "secrets" / "x").read_bytes()
    rules = _rules(**{operation: {"rules": NO_SECRETS} for operation in ("read", "write", "edit")})
    results, script = _run(
        LocalBackend(work, sandbox=NoSandbox() if commands else None),
        [("read_file", {"path": path})],
        [("edit_file", {"path": path, "old_string": "TOP SECRET", "new_string": "gone"})],
        [("write_file", {"path": path, "content": "gone"})],
        permissions=rules,
        approve="auto",
    )
    assert len(results) == 3
    assert (work / "secrets" / "x").read_bytes() == before
    assert sorted(entry.name for entry in (work / "secrets").iterdir()) == ["deep", "x"]
    assert "1\tTOP SECRET" not in script.sent


@pytest.mark.parametrize("path", ["secrets/new", "links/new", "secrets/a/b/new", "links/a/b/new", "a/../links/n/new"])
def test_a_file_cannot_be_made_where_writing_is_denied(work: Path, path: str) -> None:
    results, _ = _run(
        LocalBackend(work),
        [("write_file", {"path": path, "content": "x"})],
        permissions=_rules(write={"rules": NO_SECRETS}),
    )
    assert results[0].outcome == "failed"
    assert sorted(entry.name for entry in (work / "secrets").iterdir()) == ["deep", "x"]


def test_a_denial_says_why_and_the_run_goes_on(work: Path) -> None:
    results, script = _run(
        LocalBackend(work),
        *[[("read_file", {"path": "secrets/x"})] for _ in range(6)],
        [("read_file", {"path": "./secrets/x"}), ("write_file", {"path": "after.txt", "content": "x"})],
        permissions=_rules(read={"rules": NO_SECRETS}),
    )
    assert [result.outcome for result in results] == [*["failed"] * 7, "success"]
    assert all("hands off" in str(result.content) for result in results[:7])
    assert (work / "after.txt").exists()
    assert "TOP SECRET" not in script.sent


def test_the_reason_of_a_denial_is_that_of_the_rule_that_denies(work: Path) -> None:
    rules = [{"pattern": "link", "action": "allow", "description": "links are fine"}, *NO_SECRETS]
    results, _ = _run(LocalBackend(work), [("read_file", {"path": "link"})], permissions=_rules(read={"rules": rules}))
    assert results[0].outcome == "failed"
    assert "hands off" in str(results[0].content)


GREPPED = [".", "secrets", "secrets/x", "./secrets", "a/../secrets", "/workspace/secrets", "/workspace", "{work}"]
GREPPED += ["{work}/secrets", "{work}/secrets/x", "link", "links", "links/x", "absolute", "secrets/deep/.."]


@pytest.mark.parametrize("commands", [False, True])
@pytest.mark.parametrize("where", [*GREPPED, "within/..", "./within/../x"])
def test_a_search_shows_no_line_of_a_file_that_must_not_be_read(work: Path, where: str, commands: bool) -> None:
    results, _ = _run(
        LocalBackend(work, sandbox=NoSandbox() if commands else None),
        *[
            [("grep", {"pattern": "TOP", "path": where.format(work=work), "output_mode": mode})]
            for mode in ("content", "files_with_matches", "count")
        ],
        permissions=_rules(read={"rules": NO_SECRETS}),
    )
    said = "\n".join(str(result.content) for result in results)
    assert "SECRET" not in said
    assert ("OPEN" in said) is (where in (".", "/workspace", "{work}", "within/.."))


def test_a_search_shows_no_line_of_a_file_that_must_be_asked_for(work: Path) -> None:
    results, _ = _run(
        LocalBackend(work),
        [("read_file", {"path": "secrets/x"})],
        [("grep", {"pattern": "TOP", "path": "secrets", "output_mode": "content"})],
        permissions=_rules(read={"rules": [{"pattern": "secrets/**", "action": "ask"}]}),
    )
    assert "allow" in str(results[0].content)
    assert "SECRET" not in str(results[1].content)


def test_a_search_in_memory_shows_no_line_of_a_file_that_must_not_be_read() -> None:
    results, _ = _run(
        StateBackend(),
        [("write_file", {"path": "secrets/x", "content": "TOP SECRET"})],
        [("read_file", {"path": "/secrets/x"})],
        [("grep", {"pattern": "TOP", "output_mode": "content"})],
        permissions=_rules(read={"rules": NO_SECRETS}),
    )
    assert [result.outcome for result in results[:2]] == ["success", "failed"]
    assert "SECRET" not in str(results[2].content)


def test_the_first_rule_that_matches_decides(work: Path) -> None:
    (work / "secrets" / "readme").write_text("public")
    rules = [{"pattern": "secrets/readme", "action": "allow"}, *NO_SECRETS]
    results, _ = _run(
        LocalBackend(work),
        *[[("read_file", {"path": path})] for path in ("secrets/readme", f"{work}/secrets/readme", "secrets/x")],
        permissions=_rules(read={"rules": rules}),
    )
    assert [result.outcome for result in results] == ["success", "success", "failed"]


def _commands(work: Path, *commands: str, **options: Any) -> list[ToolReturnPart]:
    results, _ = _run(
        LocalBackend(work, sandbox=NoSandbox()),
        *[[("execute", {"command": command})] for command in commands],
        include_execute=True,
        **options,
    )
    return results


def test_commands_are_allowed_denied_and_asked_about_by_pattern(work: Path) -> None:
    rules = [
        {"pattern": "echo no**", "action": "deny", "description": "not this"},
        {"pattern": "echo **", "action": "allow"},
    ]
    person = Person(YES, NO)
    results = _commands(
        work,
        "echo yes",
        "echo no",
        "touch asked",
        "touch refused",
        permissions=_rules(execute={"default": "ask", "rules": rules}),
        ask=person,
    )
    assert [result.outcome for result in results] == ["success", "failed", "success", "failed"]
    assert str(results[0].content) == "yes\n"
    assert "not this" in str(results[1].content)
    assert person.asked == [ApprovalRequest("execute", "touch asked"), ApprovalRequest("execute", "touch refused")]
    assert (work / "asked").exists()
    assert not (work / "refused").exists()


def test_auto_and_never_do_not_change_what_rules_deny_or_allow(work: Path) -> None:
    rules = _rules(
        execute={
            "rules": [{"pattern": "touch no*", "action": "deny"}, {"pattern": "touch yes*", "action": "allow"}],
        }
    )
    for approve in ("auto", "never"):
        commands = [f"touch {name}-{approve}" for name in ("no", "yes", "asked")]
        _commands(work, *commands, permissions=rules, approve=approve)
    made = sorted(entry.name for entry in work.iterdir() if "-" in entry.name)
    assert made == ["asked-auto", "yes-auto", "yes-never"]


@pytest.mark.parametrize(
    "command",
    [
        "touch P",
        "touch P Q",
        "touch P\n",
        *("touch P\ntrue", " touch P", "touch  P", "true; touch P", "true\ntouch P"),
    ],
)
def test_a_denied_command_is_denied_with_more_around_it(work: Path, command: str) -> None:
    _commands(
        work,
        command,
        permissions=_rules(execute={"default": "allow", "rules": [{"pattern": "touch P**", "action": "deny"}]}),
    )
    assert not (work / "P").exists()


@pytest.mark.parametrize(
    ("pattern", "command"),
    [
        ("true **", "true x\ntouch P"),
        ("true *", "true x\ntouch P"),
        ("true **", "true x; touch P"),
        ("true **", "true $(touch P)"),
        ("true **", "true > P"),
        ("true **", "true x && touch P"),
    ],
)
def test_what_follows_an_allowed_command_is_asked_about(work: Path, pattern: str, command: str) -> None:
    """`git **` as allowed, the example of the module's own text, must not allow `git status; rm -rf ~`."""
    _commands(
        work,
        command,
        permissions=_rules(execute={"default": "ask", "rules": [{"pattern": pattern, "action": "allow"}]}),
    )
    assert not (work / "P").exists()


class _Offered(Script):
    """Remembers which tools were offered."""

    tools: frozenset[str] = frozenset()

    async def __call__(self, messages: Any, info: AgentInfo) -> Any:
        self.tools = frozenset(tool.name for tool in info.function_tools)
        async for piece in super().__call__(messages, info):
            yield piece


def _offered(work: Path, permissions: Permissions, monkeypatch: pytest.MonkeyPatch) -> frozenset[str]:
    monkeypatch.setattr("tests.agent.test_agent.Script", _Offered)
    _, script = _run(LocalBackend(work, sandbox=NoSandbox()), permissions=permissions, include_execute=True)
    assert isinstance(script, _Offered)
    return script.tools


TOOLS = {"read": "read_file", "write": "write_file", "edit": "edit_file", "execute": "execute"}


@pytest.mark.parametrize("operation", TOOLS)
def test_an_operation_that_is_denied_altogether_is_not_offered(
    work: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    offered = _offered(work, _rules(**{operation: "deny"}), monkeypatch)
    assert {tool for tool in TOOLS.values() if tool not in offered} == {TOOLS[operation]}
    asked = _offered(work, _rules(**{operation: "ask"}), monkeypatch)
    assert asked >= set(TOOLS.values())


@pytest.mark.parametrize("operation", TOOLS)
@pytest.mark.parametrize("last", ["default", "rule"])
def test_what_is_denied_but_for_some_is_offered(
    work: Path, monkeypatch: pytest.MonkeyPatch, operation: str, last: str
) -> None:
    """Everything but what is listed: the most usual way to write rules."""
    rules = [{"pattern": "a/**", "action": "allow"}]
    table: dict[str, Any] = {"rules": rules}
    if last == "default":
        table["default"] = "deny"
    else:
        rules.append({"pattern": "**", "action": "deny"})
    assert TOOLS[operation] in _offered(work, _rules(**{operation: table}), monkeypatch)


@pytest.mark.parametrize("operation", ["read", "write"])
def test_denying_files_altogether_leaves_commands_to_their_own_rules(work: Path, operation: str) -> None:
    (result,) = _commands(work, "echo hi", permissions=_rules(**{operation: "deny", "execute": "allow"}))
    assert str(result.content) == "hi\n"


def test_rules_about_files_are_not_rules_about_commands(work: Path) -> None:
    """A shell has too many ways to name a file; what looks like a boundary and is none would be worse."""
    rules = _rules(execute="allow", read={"rules": NO_SECRETS})
    assert "TOP SECRET" in str(_commands(work, "cat secrets/x", permissions=rules)[0].content)


def _asked(work: Path, tool: str, arguments: dict[str, Any]) -> str:
    """What is shown of a change; it is refused then."""
    person = Person(NO)
    _run(LocalBackend(work), [(tool, arguments)], permissions=_rules(write="ask", edit="ask"), ask=person)
    (question,) = person.asked
    assert (question.operation, question.target) == (tool.partition("_")[0], arguments["path"])
    return question.preview


def test_a_question_shows_what_changes(work: Path) -> None:
    (work / "f").write_text("one\ntwo\none\n")
    assert _asked(work, "write_file", {"path": "new", "content": "a\nb\n"}) == "@@ -0,0 +1,2 @@\n+a\n+b"
    assert _asked(work, "write_file", {"path": "no/dir/new", "content": "a"}) == "@@ -0,0 +1 @@\n+a"
    assert _asked(work, "write_file", {"path": "f", "content": "one\n2\none\n"}) == (
        "@@ -1,3 +1,3 @@\n one\n-two\n+2\n one"
    )
    assert _asked(work, "edit_file", {"path": "f", "old_string": "two", "new_string": "2"}) == (
        "@@ -1,3 +1,3 @@\n one\n-two\n+2\n one"
    )
    everywhere = {"path": "f", "old_string": "one", "new_string": "1", "replace_all": True}
    assert _asked(work, "edit_file", everywhere) == "@@ -1,3 +1,3 @@\n-one\n+1\n two\n-one\n+1"
    assert (work / "f").read_text() == "one\ntwo\none\n"
    assert not (work / "new").exists()
    assert not (work / "no").exists()


def test_a_question_about_a_change_that_is_none_says_so(work: Path) -> None:
    (work / "f").write_text("one\n")
    assert _asked(work, "write_file", {"path": "f", "content": "one\n"}) == "(unchanged)"
    assert _asked(work, "write_file", {"path": "new", "content": ""}) == "(a new, empty file)"


@pytest.mark.parametrize("spelled", ["./d/../f", "/workspace/f"])
def test_a_question_names_a_file_as_the_user_knows_it(work: Path, spelled: str) -> None:
    person = Person(NO)
    write = ("write_file", {"path": spelled, "content": "x"})
    _run(LocalBackend(work), [write], permissions=_rules(write="ask"), ask=person)
    assert [question.target for question in person.asked] == ["f"]


def test_a_question_shows_what_it_can_of_files_that_are_no_text(work: Path) -> None:
    (work / "binary").write_bytes(b"\x00\xff\xfe\n")
    assert _asked(work, "write_file", {"path": "binary", "content": "text"}) == "@@ -1 +1 @@\n-\x00��\n+text"
    with open(work / "giant", "wb") as file:
        file.truncate(1 << 40)
    assert "too large" in _asked(work, "write_file", {"path": "giant", "content": "x"})
    os.mkfifo(work / "fifo")
    assert "cannot be shown" in _asked(work, "write_file", {"path": "fifo", "content": "x"})
    assert "cannot be shown" in _asked(work, "write_file", {"path": "a", "content": "x"})


def test_a_long_change_comes_whole_so_that_who_asks_can_show_all_of_it(work: Path) -> None:
    shown = _asked(work, "write_file", {"path": "new", "content": "\n".join(str(n) for n in range(1000))})
    assert shown.splitlines()[-1] == "+999"
    (work / "f").write_text("x" * 500_000)
    assert "y" * 500_000 in _asked(work, "write_file", {"path": "f", "content": "y" * 500_000})


@pytest.mark.parametrize("content", ["a\nb\n", "a\r\nb"])
def test_a_change_of_line_ends_is_not_shown_as_none(work: Path, content: str) -> None:
    (work / "f").write_bytes(b"a\r\nb\r\n")
    assert _asked(work, "write_file", {"path": "f", "content": content})


def test_a_question_about_a_link_says_where_it_leads(work: Path) -> None:
    person = Person(NO)
    _run(
        LocalBackend(work),
        [("write_file", {"path": "link", "content": "x"})],
        permissions=_rules(write="ask"),
        ask=person,
    )
    assert "secrets/x" in person.asked[0].target
    # Whatever lies where the words of the question would lead.
    (work / "link (which is secrets").mkdir()
    (work / "link (which is secrets" / "x)").write_text("a decoy")
    assert person.asked[0].preview == f"@@ -1 +1 @@\n-{(work / 'secrets/x').read_text().strip()}\n+x"


def test_a_line_with_a_form_feed_is_shown_as_one_line(work: Path) -> None:
    assert _asked(work, "write_file", {"path": "new", "content": "a\x0cb\u2028c"}) == "@@ -0,0 +1 @@\n+a\x0cb\u2028c"


def test_a_no_reaches_the_model_with_its_word_and_ends_nothing(work: Path) -> None:
    person = Person(NO, ApprovalAnswer(allow=False, word="use b.txt"), YES)
    calls: list[Call] = [("write_file", {"path": name, "content": "x"}) for name in ("a.txt", "a.txt", "b.txt")]
    results, script = _run(LocalBackend(work), calls, permissions=_rules(write="ask"), ask=person)
    assert [result.outcome for result in results] == ["failed", "failed", "success"]
    assert "The reason: use b.txt" in script.sent
    assert not (work / "a.txt").exists()
    assert (work / "b.txt").read_text() == "x"


def test_always_is_for_the_same_file_and_operation(work: Path) -> None:
    person = Person(ALWAYS, NO, NO)
    same = ["n.txt", "./n.txt", "a/../n.txt", "/workspace/n.txt", f"{work}/n.txt"]
    results, _ = _run(
        LocalBackend(work),
        *[[("write_file", {"path": path, "content": path})] for path in [*same, "m.txt"]],
        [("edit_file", {"path": "n.txt", "old_string": "n", "new_string": "m"})],
        [("write_file", {"path": "n.txt", "content": "last"})],
        permissions=_rules(write="ask", edit="ask"),
        ask=person,
    )
    assert [result.outcome for result in results] == [*["success"] * 5, "failed", "failed", "success"]
    assert [(question.operation, question.target) for question in person.asked] == [
        ("write", "n.txt"),
        ("write", "m.txt"),
        ("edit", "n.txt"),
    ]
    assert (work / "n.txt").read_text() == "last"


def test_always_for_a_link_is_for_what_it_led_to(work: Path) -> None:
    (work / "to").symlink_to("a/one")
    person = Person(ALWAYS, NO)
    rules = _rules(write="ask", execute="allow")
    results, _ = _run(
        LocalBackend(work, sandbox=NoSandbox()),
        [("write_file", {"path": "to", "content": "1"})],
        [("write_file", {"path": "a/one", "content": "2"})],
        [("execute", {"command": "ln -sf a/two to"})],
        [("write_file", {"path": "to", "content": "3"})],
        permissions=rules,
        ask=person,
        include_execute=True,
    )
    assert [result.outcome for result in results] == ["success", "success", "success", "failed"]
    assert len(person.asked) == 2
    assert (work / "a" / "one").read_text() == "2"
    assert not (work / "a" / "two").exists()


def test_always_is_for_the_same_command(work: Path) -> None:
    person = Person(ALWAYS, NO)
    results = _commands(work, "touch P", "touch P", "touch P Q", ask=person)
    assert [result.outcome for result in results] == ["success", "success", "failed"]


def test_always_does_not_get_past_a_denial(work: Path) -> None:
    person = Person(ALWAYS)
    rules = [{"pattern": "secrets/**", "action": "deny"}]
    results, _ = _run(
        LocalBackend(work, sandbox=NoSandbox()),
        [("write_file", {"path": "f", "content": "x"})],
        [("execute", {"command": "ln -sf links/x f"})],
        [("write_file", {"path": "f", "content": "x"})],
        permissions=_rules(write={"default": "ask", "rules": rules}, execute="allow"),
        ask=person,
        include_execute=True,
    )
    assert [result.outcome for result in results] == ["success", "success", "failed"]
    assert (work / "secrets" / "x").read_text() == "TOP SECRET\n"


@pytest.mark.parametrize(("approve", "word"), [("ask", "There is no terminal"), ("never", "settings do not allow")])
def test_without_anybody_to_ask_it_is_no(work: Path, approve: str, word: str) -> None:
    rules = _rules(read="ask", write="ask", edit="ask")
    calls: list[Call] = [
        ("read_file", {"path": "a/open.txt"}),
        ("write_file", {"path": "new", "content": "x"}),
        ("edit_file", {"path": "a/open.txt", "old_string": "TOP", "new_string": "x"}),
        ("execute", {"command": "touch ran"}),
        ("ls", {"path": "a"}),
    ]
    person = Person() if approve == "never" else None
    results, script = _run(
        LocalBackend(work, sandbox=NoSandbox()),
        calls,
        permissions=rules,
        approve=approve,
        ask=person,
        include_execute=True,
    )
    assert [result.outcome for result in results] == [*["failed"] * 4, "success"]
    assert all(word in str(result.content) for result in results[:4])
    assert not (work / "new").exists()
    assert not (work / "ran").exists()
    assert (work / "a" / "open.txt").read_text() == "TOP OPEN\n"
    assert "1\tTOP OPEN" not in script.sent


def test_auto_is_yes_to_everything_that_would_be_asked(work: Path) -> None:
    person = Person()
    results, _ = _run(
        LocalBackend(work, sandbox=NoSandbox()),
        [("write_file", {"path": "new", "content": "x"}), ("execute", {"command": "cat new"})],
        permissions=_rules(write="ask", execute="ask"),
        approve="auto",
        ask=person,
        include_execute=True,
    )
    assert [result.outcome for result in results] == ["success", "success"]
    assert person.asked == []


@pytest.mark.parametrize(("action", "runs"), [("deny", False), ("ask", True)])
def test_auto_is_no_where_a_rule_that_denies_may_be_about_a_command(work: Path, action: str, runs: bool) -> None:
    (work / "run").write_text('#!/bin/sh\n"$@"\n')
    (work / "run").chmod(0o700)
    rules = _rules(execute={"default": "allow", "rules": [{"pattern": "touch **", "action": action}]})
    (result,) = _commands(work, "./run touch made", approve="auto", permissions=rules)
    assert (work / "made").exists() is runs
    assert ("may not allow this" in str(result.content)) is not runs


def test_a_question_comes_in_the_models_order(work: Path) -> None:
    """A tool that waits for a yes must not run after the calls behind it."""
    person = Person(YES, YES)
    calls: list[Call] = [
        ("execute", {"command": "cp a/open.txt copy"}),
        ("read_file", {"path": "copy"}),
        ("write_file", {"path": "copy", "content": "new"}),
        ("read_file", {"path": "copy"}),
    ]
    results, _ = _run(
        LocalBackend(work, sandbox=NoSandbox()),
        calls,
        permissions=_rules(write="ask"),
        ask=person,
        include_execute=True,
    )
    assert [str(result.content).strip() for result in results][1::2] == ["1\tTOP OPEN", "1\tnew"]


TOKEN = "tok-canary-0123456789"


def test_a_key_of_the_environment_is_not_in_what_a_tool_returns(work: Path) -> None:
    (work / "f").write_text(f"the key is {TOKEN}, twice {TOKEN}\n")
    results, script = _run(
        LocalBackend(work, sandbox=NoSandbox()),
        [("read_file", {"path": "f"})],
        [("grep", {"pattern": "key", "output_mode": "content"})],
        [("execute", {"command": "cat f; cat f >&2; exit 3"})],
        permissions=_rules(execute="allow"),
        environment={"MY_TOKEN": TOKEN, "HARMLESS": "the key is"},
        include_execute=True,
    )
    for result in results:
        assert TOKEN not in str(result.content)
        assert "[MY_TOKEN]" in str(result.content)
        assert "the key is" in str(result.content)
    assert TOKEN not in script.sent


@pytest.mark.parametrize("tool", ["execute", "read_file"])
def test_a_key_is_not_in_a_large_result_either_nor_in_the_file_it_goes_to(work: Path, tool: str) -> None:
    (work / "big").write_text(f"{TOKEN}{'.' * 80}\n" * 1900)
    arguments = {"execute": {"command": "cat big"}, "read_file": {"path": "big"}}[tool]
    _, script = _run(
        LocalBackend(work, sandbox=NoSandbox()),
        [(tool, arguments)],
        permissions=_rules(execute="allow"),
        environment={"MY_TOKEN": TOKEN},
        include_execute=True,
    )
    (evicted,) = (work / "large_tool_results").iterdir()
    assert TOKEN not in evicted.read_text()
    assert TOKEN not in script.sent


def test_a_key_that_begins_like_another_is_replaced_whole(work: Path) -> None:
    (work / "f").write_text(f"{TOKEN}-and-more\n")
    results, _ = _run(
        LocalBackend(work),
        [("read_file", {"path": "f"})],
        environment={"MY_TOKEN": TOKEN, "MY_SECRET": f"{TOKEN}-and-more"},
    )
    assert "and-more" not in str(results[0].content)


def test_a_key_found_by_a_command_is_in_no_event_log_or_checkpoint(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-canary-0123456789abcdef"
    find = ToolCalls([("execute", {"command": "printf 'sk-canary-%s' 0123456789abcdef; echo done"})])
    with provider(find, Text(["Done."])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", key)
        result = deepctl(
            "chat", "--json", "--sandbox", "none", "--approve", "auto", "--model", "openai-chat:loopback", "go"
        ).ok()
    assert key not in result.stdout
    assert "[OPENAI_API_KEY]done" in result.stdout
    assert key not in json.dumps(server.requests)
    for directory, _, names in os.walk(home):
        for name in names:
            assert key.encode() not in Path(directory, name).read_bytes(), name


def test_rules_of_config_toml_hold_in_a_chat(deepctl: InProcess, home: Path, tmp_path: Path) -> None:
    config = tmp_path / "config" / "config.toml"
    config.parent.mkdir()
    config.write_text(
        '[permissions]\nwrite = "ask"\n'
        '[permissions.read]\nrules = [{ pattern = "secrets/**", action = "deny", description = "hands off" }]\n'
    )
    asked = deepctl("chat", "--user", "alice", "write secrets/x: TOP").ok()
    assert "There is no terminal" in asked.stdout
    deepctl("chat", "--user", "alice", "--approve", "auto", "write secrets/x: TOP").ok()
    workspace = home / "profiles/alice/workspace"
    assert (workspace / "secrets/x").read_text() == "TOP"
    for path in ("secrets/x", "./secrets/x", str(workspace / "secrets/x"), "/workspace/secrets/x"):
        denied = deepctl("chat", "--user", "alice", "--approve", "auto", f"read {path}").ok()
        assert "hands off" in denied.stdout
        assert "1\tTOP" not in denied.stdout
    with open(home / "profiles/alice/profile.toml", "a") as file:
        file.write('\n[permissions]\nread = "allow"\n')
    assert "1\tTOP" in deepctl("chat", "--user", "alice", "read secrets/x").ok().stdout


def test_a_person_at_the_terminal_sees_the_change_and_answers(home: Path, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text('[permissions]\nwrite = "ask"\n')
    terminal = Terminal("chat", "--user", "alice")
    file = home / "profiles/alice/workspace/a.txt"
    terminal.prompt()
    terminal.type("write a.txt: one\r")
    terminal.expect("+one")
    terminal.expect("[a]lways this file")
    terminal.type("what?\r")
    terminal.expect("Allow it?", times=2)
    terminal.type("t")
    terminal.expect("Reason for the agent?")
    terminal.type("use b.txt\r")
    terminal.expect("The reason: use b.txt")
    terminal.prompt()
    assert not file.exists()
    terminal.type("write a.txt: two\r")
    terminal.expect("Allow it?", times=3)
    terminal.type("a")
    terminal.prompt()
    terminal.type("write ./a.txt: three\r")
    terminal.prompt()
    assert file.read_text() == "three"
    terminal.type("write b.txt: four\r")
    terminal.expect("Allow it?", times=4)
    terminal.type("\x04")
    terminal.prompt()
    assert not (file.parent / "b.txt").exists()
    assert terminal.leave() == 0


def test_neither_a_paste_nor_what_is_typed_ahead_answers_a_question(home: Path, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text('[permissions]\nwrite = "ask"\n')
    terminal = Terminal("chat", "--user", "alice")
    terminal.prompt()
    terminal.type("write a.txt: one\r")
    terminal.expect("why not:")
    pastes = ("q" * 64 + "y", "q" * 5000 + "y", "\x1b[200~" + "q" * 58 + "y", "\x1b[200~y\x1b[201~", "\x1b[3;4R")
    for number, pasted in enumerate(pastes, 2):
        terminal.type(pasted)
        terminal.expect("why not:", times=number)
    assert not (home / "profiles/alice/workspace/a.txt").exists()
    terminal.type("n")
    terminal.prompt()
    assert not (home / "profiles/alice/workspace/a.txt").exists()
    assert terminal.leave() == 0


def test_commands_that_rules_allow_are_asked_about_where_the_sandbox_is_missing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody chose to do without a sandbox: the chat says that each command is asked about, so it must be."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text('[permissions]\nexecute = "allow"\n')
    monkeypatch.setenv("DEEPCTL_BWRAP", "/nonexistent")
    terminal = Terminal("chat", "--user", "alice")
    try:
        terminal.prompt()
        terminal.expect("each after an approval request")
        terminal.type("run touch ran\r")
        terminal.expect("The agent wants to run a command")
        time.sleep(1)
        assert not (home / "profiles/alice/workspace/ran").exists()
        terminal.expect("Allow it?")
    finally:
        terminal.close()


ODD_NAMES = ["a\nb", "\na", "a\n", "dump-2026-01-01T10:30:00", "a:1:b", "-e", "a\\b", "[x]", "*", "a:b"]


@pytest.mark.parametrize("commands", [False, True])
@pytest.mark.parametrize("pattern", ["guard/*", "**.sql"])
def test_a_rule_covers_a_file_whatever_is_in_its_name(work: Path, pattern: str, commands: bool) -> None:
    """A newline passed every rule, and `grep` showed lines of a file with `:30:` in its name (K7.1)."""
    (work / "guard").mkdir()
    paths = [f"guard/{name}.sql" for name in ODD_NAMES]
    for name, path in zip(ODD_NAMES, paths, strict=True):
        (work / path).write_text("TOP HIDDEN\n")
        (work / f"link-{name}").symlink_to(path)
    results, _ = _run(
        LocalBackend(work, sandbox=NoSandbox() if commands else None),
        [("read_file", {"path": path}) for path in paths],
        [("read_file", {"path": f"./link-{name}"}) for name in ODD_NAMES],
        [("write_file", {"path": path, "content": "gone"}) for path in paths],
        [("edit_file", {"path": path, "old_string": "TOP", "new_string": "gone"}) for path in paths],
        [("grep", {"pattern": "TOP", "path": path, "output_mode": "content"}) for path in (".", "guard", *paths)],
        [("grep", {"pattern": "TOP", "path": f"link-{name}", "output_mode": "content"}) for name in ODD_NAMES],
        permissions=_rules(
            **{
                operation: {"rules": [{"pattern": pattern, "action": "deny"}]}
                for operation in ("read", "write", "edit")
            }
        ),
    )
    assert [result.outcome for result in results[: 4 * len(paths)]] == ["failed"] * 4 * len(paths)
    assert "HIDDEN" not in str([result.content for result in results])
    assert {(work / path).read_text() for path in paths} == {"TOP HIDDEN\n"}


def test_a_search_tells_names_from_lines(work: Path) -> None:
    (work / "d").mkdir()
    for name in ODD_NAMES:
        (work / "d" / name).write_text("one\nTOP:2:x\n")
    (result,), _ = _run(LocalBackend(work), [("grep", {"pattern": "TOP", "path": "d", "output_mode": "content"})])
    assert all(f"  d/{name}:2: TOP:2:x" in str(result.content) for name in ODD_NAMES)


def test_an_allow_is_for_the_whole_of_a_name(work: Path) -> None:
    results, _ = _run(
        LocalBackend(work),
        *[[("write_file", {"path": path, "content": "x"})] for path in ("a.txt", "a.txt\n", "a.txt\nb")],
        permissions=_rules(write={"default": "deny", "rules": [{"pattern": "a.txt", "action": "allow"}]}),
    )
    assert [result.outcome for result in results] == ["success", "failed", "failed"]


def test_a_search_in_memory_shows_no_line_of_a_file_with_colons_in_its_name() -> None:
    name = "dump-2026-01-01T10:30:00\n.sql"
    results, _ = _run(
        StateBackend(),
        [("write_file", {"path": name, "content": "TOP SECRET"})],
        [("grep", {"pattern": "TOP", "output_mode": "content"})],
        permissions=_rules(read={"rules": [{"pattern": "**.sql", "action": "deny"}]}),
    )
    assert "SECRET" not in str(results[1].content)
