"""The agent's tools, driven by scripted models through the real workspace."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import FunctionToolset, ModelRetry, RunContext
from pydantic_ai.capabilities import Toolset
from pydantic_ai.exceptions import ToolFailed, UsageLimitExceeded
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.usage import UsageLimits

from deepctl import Bubblewrap, DeepAgentDeps, LocalBackend, NoSandbox, StateBackend, create_deep_agent

Call = tuple[str, Any]


class Script:
    """A model that makes these calls, one answer each, and remembers what it was told."""

    def __init__(self, *answers: list[Call]) -> None:
        self._answers = list(answers)
        self.instructions = ""
        self.sent = ""

    async def __call__(
        self, messages: list[ModelMessage], info: AgentInfo
    ) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        self.instructions = info.instructions or ""
        self.sent = repr(messages)
        calls = self._answers.pop(0) if self._answers else []
        if not calls:
            yield "done"
        for number, (tool, arguments) in enumerate(calls):
            raw = arguments if isinstance(arguments, str) else json.dumps(arguments)
            yield {number: DeltaToolCall(tool, raw, tool_call_id=f"c{len(self._answers)}-{number}")}


def _run(backend: Any, *answers: list[Call], **options: Any) -> tuple[list[ToolReturnPart], Script]:
    script = Script(*answers)
    agent = create_deep_agent(FunctionModel(stream_function=script), **options)

    async def run() -> list[ModelMessage]:
        async with agent.run_stream("go", deps=DeepAgentDeps(backend=backend)) as result:
            await result.get_output()
            return result.all_messages()

    messages = asyncio.run(run())
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    return [part for part in parts if isinstance(part, ToolReturnPart)], script


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def test_a_large_result_goes_to_a_file_and_is_read_back_in_pages(work: Path) -> None:
    backend = LocalBackend(work, sandbox=NoSandbox())
    (work / "big.txt").write_text("\n".join(f"line {n}" for n in range(9_000)))
    results, _ = _run(
        backend,
        [("execute", {"command": "cat big.txt"})],
        [("read_tool_result", {"handle": "large_tool_results/c1-0", "pattern": "line 8998"})],
        include_execute=True,
        approve="auto",
    )
    (evicted,) = (work / "large_tool_results").iterdir()
    assert evicted.name == "c1-0"
    assert "line 8999" in evicted.read_text()
    assert len(str(results[0].content)) < 5_000
    assert "large_tool_results/c1-0" in str(results[0].content)
    assert "line 8998" in str(results[1].content)


def test_an_evicted_result_does_not_replace_an_earlier_one_of_the_same_id(work: Path) -> None:
    backend = LocalBackend(work, sandbox=NoSandbox())
    for word in ("first", "second"):
        command = f"yes {word} | head -n 9000"
        _run(backend, [("execute", {"command": command})], include_execute=True, approve="auto")
    names = sorted(path.name for path in (work / "large_tool_results").iterdir())
    assert names == ["c0-0", "c0-0-2"]
    assert "first" in (work / "large_tool_results" / "c0-0").read_text()


@pytest.mark.parametrize("tool", ["read_file", "execute"])
@pytest.mark.parametrize(("window", "is_evicted"), [(6_000, True), (200_000, False), (None, False)])
def test_a_result_takes_at_most_a_quarter_of_a_small_window(
    work: Path, tool: str, window: int | None, *, is_evicted: bool
) -> None:
    backend = LocalBackend(work, sandbox=NoSandbox())
    (work / "notes.txt").write_text("a line of a file\n" * 700)
    arguments = {"path": "notes.txt"} if tool == "read_file" else {"command": "cat notes.txt"}
    calls: list[list[Call]] = [[(tool, arguments)]]
    if is_evicted:
        calls.append([("read_tool_result", {"handle": "large_tool_results/c1-0", "limit": 1000})])
    results, _ = _run(
        backend,
        *calls,
        include_execute=True,
        approve="auto",
        context_window=window,
    )
    assert (work / "large_tool_results").exists() == is_evicted
    assert all((len(str(result.content)) < 6_000 / 4 * 3 + 100) == is_evicted for result in results)
    if is_evicted:
        assert "a line of a file" in (work / "large_tool_results/c1-0").read_text()
        assert str(results[1].content).endswith("[cut; read fewer lines at once]")


@pytest.mark.parametrize("handle", ["../secret", "large_tool_results/../../secret", "/etc/passwd", "plans/x", ""])
def test_a_handle_reads_evicted_results_only(work: Path, tmp_path: Path, handle: str) -> None:
    (tmp_path / "secret").write_text("secret")
    results, _ = _run(LocalBackend(work), [("read_tool_result", {"handle": handle})])
    assert results[0].outcome != "success" or "secret" not in str(results[0].content).replace(handle, "")
    assert "root:" not in str(results[0].content)


def test_plans_and_the_to_do_list_are_files_of_the_workspace(work: Path) -> None:
    items = [{"content": "pack", "status": "pending", "active_form": "packing"}]
    results, _ = _run(
        LocalBackend(work),
        [("save_plan", {"title": "Trip to ../Lisbon!", "content": "1. pack\n2. go"}), ("write_plan", {"items": items})],
    )
    assert [result.outcome for result in results] == ["success", "success"]
    (plan,) = (work / "plans").iterdir()
    assert plan.name.startswith("trip-to-lisbon-")
    assert plan.read_text() == "# Trip to ../Lisbon!\n\n1. pack\n2. go\n"
    _, script = _run(LocalBackend(work))
    assert "pack" in script.sent, "the next run is reminded of the list"


def test_two_users_of_one_agent_have_their_own_lists_and_notebooks(tmp_path: Path) -> None:
    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        prompt = next(part.content for part in messages[0].parts if isinstance(part, UserPromptPart))
        name = str(prompt if isinstance(prompt, str) else prompt[-1])
        if len(messages) > 1:
            return ModelResponse(parts=[TextPart("done")])
        plan = ToolCallPart("write_plan", {"items": [{"content": f"task of {name}"}]})
        return ModelResponse(parts=[plan, ToolCallPart("write_memory", {"content": f"note of {name}"})])

    agent = create_deep_agent(FunctionModel(answer))
    names = ["alice", "bob"]
    backends = [LocalBackend(tmp_path / name) for name in names]

    async def run() -> None:
        for name, backend in zip(names, backends, strict=True):
            await agent.run(name, deps=DeepAgentDeps(backend=backend))
        await asyncio.gather(
            *(
                agent.run(name, deps=DeepAgentDeps(backend=backend))
                for name, backend in zip(names, backends, strict=True)
            )
        )

    asyncio.run(run())
    for name, other in (names, names[::-1]):
        todo = (tmp_path / name / ".deep/todo.json").read_text()
        notebook = (tmp_path / name / ".deep/memory/main/MEMORY.md").read_text()
        assert f"task of {name}" in todo
        assert other not in todo
        assert notebook.split() == f"note of {name}".split() * 2


def test_context_files_come_before_the_prompt(work: Path) -> None:
    backend = LocalBackend(work)
    (work / "AGENTS.md").write_text("Speak like a pirate.")
    (work / "DEEP.md").write_text("Be brief.")
    _, script = _run(backend)
    assert '<context-file path="AGENTS.md">\\nSpeak like a pirate.\\n</context-file>' in script.sent
    assert script.sent.index("pirate") < script.sent.index("Be brief.") < script.sent.index("'go'")


PLANTED = ["AGENTS.md", "DEEP.md", ".deep/todo.json", ".deep/memory", "plans", "large_tool_results", ".deep"]


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "file", "garbage"])
@pytest.mark.parametrize("name", PLANTED)
def test_nothing_planted_keeps_the_agent_from_answering_or_leads_it_out(
    work: Path, tmp_path: Path, name: str, kind: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "main").mkdir()
    (outside / "main" / "MEMORY.md").write_text("outside secret")
    (outside / "items").write_text("outside secret")
    backend = LocalBackend(work)
    place = work / name
    place.parent.mkdir(exist_ok=True)
    match kind:
        case "link":
            place.symlink_to(outside if "." not in name[1:] else outside / "items")
        case "fifo":
            os.mkfifo(place)
        case "directory":
            place.mkdir()
        case "file":
            place.write_text("text")
        case "garbage":
            place.write_bytes(b"\xff\xfe{[" * 100)
    before = sorted(str(path) for path in outside.rglob("*"))
    calls: list[Call] = [
        ("write_memory", {"content": "- note"}),
        ("save_plan", {"title": "t", "content": "c"}),
        ("write_plan", {"items": [{"content": "x"}]}),
        ("search_memory", {"query": "secret"}),
        ("read_memory", {"file": "MEMORY.md"}),
        ("read_tool_result", {"handle": "large_tool_results/items"}),
        ("write_file", {"path": "after.txt", "content": "still here"}),
    ]
    results, script = _run(backend, calls)
    assert len(results) == len(calls)
    assert (work / "after.txt").read_text() == "still here"
    assert "outside secret" not in script.sent + script.instructions
    assert sorted(str(path) for path in outside.rglob("*")) == before
    assert (outside / "main" / "MEMORY.md").read_text() == "outside secret"


def test_a_tool_that_keeps_failing_does_not_end_the_run(work: Path) -> None:
    answers: list[list[Call]] = [
        [("edit_file", {"path": "nope.txt", "old_string": "a", "new_string": "b"})],
        [("write_memory", {"content": "x", "old_text": "not there"})],
        [("read_file", {"path": "../x"})],
        [("no_such_tool", {})],
        [("write_file", {"wrong": "arguments"})],
    ]
    results, _ = _run(LocalBackend(work), *[answer for answer in answers for _ in range(3)])
    assert len(results) == 15
    assert all(result.outcome != "success" or "rror" in str(result.content) for result in results)


_WRONG: list[Call] = [
    ("no_such_tool", {}),
    ("another", {"a": 1}),
    ("write_memory", {"content": "x", "file": "../x"}),
    ("write_memory", {"content": 3}),
    ("write_file", "{not json"),
    ("write_file", '["no", "object"]'),
    ("edit_file", {"path": "nope.txt", "old_string": "a", "new_string": "b"}),
    ("read_tool_result", {"handle": "large_tool_results/x", "offset": -1}),
    ("write_plan", {"items": [{"content": 3}]}),
    ("search_memory", {"query": ""}),
    ("rewind_to", {}),
]


@pytest.mark.parametrize("call", _WRONG, ids=lambda call: f"{call[0]}-{call[1]}")
def test_no_wrong_call_ends_the_run_however_often_it_comes(work: Path, call: Call) -> None:
    good: Call = ("ls", {"path": "."})
    answers = [[call], [call], [good], [call, good, call], [call], [good], [call], [call]]
    results, _ = _run(LocalBackend(work), *answers)
    assert len(results) == 10
    assert [result.outcome for result in results if result.tool_name == "ls"] == ["success"] * 3
    wrong = [result for result in results if result.tool_name != "ls"]
    assert all(result.outcome != "success" or "rror" in str(result.content) for result in wrong)
    assert not any("pydantic" in str(result.content) for result in wrong)


def test_what_an_applications_tool_asks_for_again_and_again_does_not_end_the_run() -> None:
    def picky(ctx: RunContext[Any], word: str) -> str:
        raise ModelRetry(f"not {word}")

    toolset = FunctionToolset[Any]([picky], max_retries=0)
    results, script = _run(
        StateBackend(), *[[("picky", {"word": "a"})]] * 6, capabilities=[Toolset(toolset)], include_checkpoints=False
    )
    assert [result.content for result in results] == ["not a"] * 6
    assert "not a" in script.sent


def test_a_model_that_is_always_wrong_is_stopped_by_the_limit_of_requests(work: Path) -> None:
    class Wrong(Script):
        async def __call__(
            self, messages: list[ModelMessage], info: AgentInfo
        ) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
            yield {0: DeltaToolCall("no_such_tool", "{}", tool_call_id=f"c{len(messages)}")}

    agent = create_deep_agent(FunctionModel(stream_function=Wrong()))
    with pytest.raises(UsageLimitExceeded):
        asyncio.run(
            agent.run("go", deps=DeepAgentDeps(backend=StateBackend()), usage_limits=UsageLimits(request_limit=20))
        )


def test_two_users_of_one_agent_share_nothing(tmp_path: Path) -> None:
    """The guide's patterns A and B: a backend of their own for every user, in memory or in a directory."""
    for make in (lambda name: LocalBackend(root_dir=tmp_path / name), lambda _: StateBackend()):
        script = Script(
            [("write_memory", {"content": "- alice likes oolong"}), ("write_file", {"path": "a", "content": "x"})]
        )
        agent = create_deep_agent(FunctionModel(stream_function=script))
        alice, bob = DeepAgentDeps(backend=make("alice")), DeepAgentDeps(backend=make("bob"))

        async def say(deps: DeepAgentDeps, agent: Any = agent) -> str:
            async with agent.run_stream("hello", deps=deps) as result:
                return str(await result.get_output())

        async def everyone(alice: DeepAgentDeps = alice, bob: DeepAgentDeps = bob, say: Any = say) -> None:
            await say(alice)
            await asyncio.gather(*(say(deps) for deps in (alice, bob) for _ in range(3)))

        asyncio.run(everyone())
        script.sent = ""
        asyncio.run(say(bob))
        assert "oolong" not in script.sent
        asyncio.run(say(alice))
        assert "alice likes oolong" in script.sent


@pytest.mark.parametrize("is_in_memory", [False, True])
def test_a_search_takes_time_in_proportion_to_what_it_reads_whatever_the_pattern(
    work: Path, is_in_memory: bool
) -> None:
    """A backtracking matcher takes 2^40 steps here."""
    backend: LocalBackend | StateBackend = LocalBackend(work)
    if is_in_memory:
        backend = StateBackend()
        backend.write_bytes("/f", b"a" * 44 + b"!")
    (work / "f").write_text("a" * 44 + "!")
    patterns = ("(a+)+$", "(a+)+!$")
    results, _ = _run(backend, [("grep", {"pattern": pattern, "output_mode": "content"}) for pattern in patterns])
    assert "No matches" in str(results[0].content)
    assert "f:1: aaa" in str(results[1].content)


@pytest.mark.parametrize("is_in_memory", [False, True])
def test_grep_takes_extended_regular_expressions_everywhere(work: Path, is_in_memory: bool) -> None:
    files = {"a.txt": b"one\ntwo\n\nthree", "b.txt": b"", "c.txt": b"four\nfive\n", "d": b"tw\0o\n"}
    backend: LocalBackend | StateBackend = LocalBackend(work)
    if is_in_memory:
        backend = StateBackend()
    for name, content in files.items():
        if isinstance(backend, StateBackend):
            backend.write_bytes(f"/{name}", content)
        else:
            (work / name).write_bytes(content)
    calls = [
        ("grep", {"pattern": pattern, "output_mode": "content"}) for pattern in ("two|fi?ve", "^t(w|h)", "^$", "(")
    ]
    results, _ = _run(backend, calls)
    found = [str(result.content).replace("  /", "  ").replace("./", "") for result in results]
    assert sorted(found[0].split("\n")) == ["  a.txt:2: two", "  c.txt:2: five", "Matches for 'two|fi?ve':"]
    assert sorted(found[1].split("\n")) == ["  a.txt:2: two", "  a.txt:4: three", "Matches for '^t(w|h)':"]
    assert found[2] == "Matches for '^$':\n  a.txt:3: "
    assert found[3].startswith("Error: ")


def test_a_pattern_that_never_ends_holds_up_no_other_user_and_is_stopped_with_the_run() -> None:
    """In memory, where there is no `find` to start."""
    call: Call = ("glob", {"pattern": "**/a/" * 12 + "b"})
    alices, bobs = StateBackend(), StateBackend()
    alices.write_bytes(f"/{'a/' * 60}f", b"a" * 44 + b"!\n")
    bobs.write_bytes("/notes.txt", b"tea\n")
    alice = create_deep_agent(FunctionModel(stream_function=Script([call])))
    bob = create_deep_agent(FunctionModel(stream_function=Script([("grep", {"pattern": "t.a"})])))

    async def story() -> None:
        searching = asyncio.create_task(alice.run("go", deps=DeepAgentDeps(backend=alices)))
        result = await bob.run("go", deps=DeepAgentDeps(backend=bobs))
        assert "notes.txt" in str(result.all_messages())
        assert not searching.done()
        searching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await searching

    asyncio.run(story())


def test_searches_in_memory_find_what_they_should() -> None:
    backend = StateBackend()
    files = {
        "/a.py": "import os\nx = 1\n",
        "/src/b.py": "import re\n",
        "/src/c.js": "import x\n",
        "/.git/config": "import",
    }
    for name, text in files.items():
        backend.write_bytes(name, text.encode())
    backend.write_bytes("/binary", b"\xffimport\n")
    calls: list[Call] = [
        ("grep", {"pattern": "^import [or]"}),
        ("grep", {"pattern": "import", "glob_pattern": "*.{py,js}", "output_mode": "count"}),
        ("grep", {"pattern": "import", "path": "src", "output_mode": "content"}),
        ("grep", {"pattern": "import", "ignore_hidden": False, "glob_pattern": "config"}),
        ("grep", {"pattern": "1", "path": "a.py", "output_mode": "content"}),
        ("glob", {"pattern": "**/*.py"}),
        ("glob", {"pattern": "*.py", "path": "src"}),
        ("glob", {"pattern": "*.rs"}),
        ("grep", {"pattern": "("}),
        ("grep", {"pattern": "x", "glob_pattern": "{1..100000}"}),
    ]
    results, _ = _run(backend, calls)
    texts = [str(result.content) for result in results]
    assert texts[0] == "Files containing '^import [or]':\n  /a.py\n  /src/b.py"
    assert texts[1] == "Found 3 match(es) for 'import'"
    assert texts[2] == "Matches for 'import':\n  /src/b.py:1: import re\n  /src/c.js:1: import x"
    assert texts[3] == "Files containing 'import':\n  /.git/config"
    assert texts[4] == "Matches for '1':\n  /a.py:2: x = 1"
    assert texts[5] == "Found 2 file(s) matching '**/*.py':\n  /a.py\n  /src/b.py"
    assert texts[6] == "Found 1 file(s) matching '*.py':\n  /src/b.py"
    assert texts[7] == "No files matching '*.rs' in ."
    assert texts[8].startswith("Error: Invalid regex pattern")
    assert texts[9].startswith("Error: ")


def test_links_that_lead_round_in_circles_do_not_keep_a_search_busy(work: Path) -> None:
    backend = LocalBackend(work)
    (work / "s").mkdir()
    (work / "s" / "found.txt").write_text("needle")
    for name in ("l1", "l2", "l3"):
        (work / "s" / name).symlink_to(".")
    results, _ = _run(
        backend, [("glob", {"pattern": "**/*.txt"}), ("grep", {"pattern": "needle"}), ("glob", {"pattern": "**/*.zzz"})]
    )
    assert "1 file(s)" in str(results[0].content)
    assert "found.txt" in str(results[1].content)
    assert "No files" in str(results[2].content)


@pytest.mark.parametrize("commands", [False, True])
def test_a_search_path_is_never_taken_for_an_option(work: Path, commands: bool) -> None:
    backend = LocalBackend(work, sandbox=NoSandbox() if commands else None)
    (work / "kept.txt").write_text("kept")
    calls: list[Call] = [
        ("glob", {"pattern": "*", "path": "-delete"}),
        ("grep", {"pattern": "x", "path": "-f/etc/passwd"}),
        ("glob", {"pattern": "' -delete '", "path": "."}),
        ("glob", {"pattern": "*", "path": "; touch owned"}),
        ("glob", {"pattern": "*", "path": "/etc"}),
        ("grep", {"pattern": "root", "path": "/etc/passwd", "output_mode": "content"}),
    ]
    results, _ = _run(backend, calls)
    assert [path.name for path in work.iterdir()] == ["kept.txt"]
    assert all("root:x" not in str(result.content) for result in results)


def test_without_a_sandbox_nothing_but_searches_runs(work: Path) -> None:
    results, script = _run(
        LocalBackend(work), [("execute", {"command": "touch owned"})], include_execute=True, approve="auto"
    )
    assert [result.outcome for result in results] == ["retried"]
    assert "Unknown tool name: 'execute'" in script.sent
    assert "There is no shell." in script.instructions
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["[" * 5000, '{"version": 1, "items": [{"id": 5}]}', '{"version": 99, "items": []}']
)
def test_a_to_do_file_that_is_none_is_reported_and_left_alone(work: Path, content: str) -> None:
    backend = LocalBackend(work)
    (work / ".deep").mkdir()
    (work / ".deep" / "todo.json").write_text(content)
    results, _ = _run(backend, [("write_plan", {"items": [{"content": "x"}]})])
    assert results[0].outcome == "failed"
    assert (work / ".deep" / "todo.json").read_text() == content


def test_a_search_for_lines_keeps_to_the_named_files(work: Path) -> None:
    backend = LocalBackend(work)
    for name in ("a.py", "b.txt", "c.py.bak"):
        (work / name).write_text("needle\n")
    results, _ = _run(backend, [("grep", {"pattern": "needle", "glob_pattern": "*.py"})])
    assert str(results[0].content).splitlines()[1:] == ["  ./a.py"]


def test_sparse_giants_are_refused_and_odd_names_listed(work: Path) -> None:
    backend = LocalBackend(work)
    for name in ("big.txt", ".deep/memory/main/BIG.md", ".deep/todo.json"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        with open(work / name, "wb") as file:
            file.truncate(1 << 42)
    (work / os.fsdecode(b"z\xff")).write_text("x")
    results, _ = _run(backend, [("read_file", {"path": "big.txt"}), ("search_memory", {"query": "x"}), ("ls", {})])
    assert "too large" in str(results[0].content)
    assert "big.txt" in str(results[2].content)
    assert "udcff" in str(results[2].content)


def test_a_search_waits_for_no_fifo(work: Path) -> None:
    backend = LocalBackend(work)
    os.mkfifo(work / "fifo")
    results, _ = _run(backend, [("grep", {"pattern": "x", "path": "fifo"}), ("grep", {"pattern": "x"})])
    assert len(results) == 2


def test_the_home_of_commands_is_not_made_through_a_link(work: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    for sandbox, outcome in ((Bubblewrap(), "refused"), (NoSandbox(), "home is elsewhere")):
        backend = LocalBackend(work, sandbox=sandbox)
        if not os.path.lexists(work / ".deep"):
            (work / ".deep").symlink_to(tmp_path / "outside")
        command = 'case "$HOME" in *.deep*) ;; *) echo home is elsewhere ;; esac'
        results, _ = _run(backend, [("execute", {"command": command})], include_execute=True, approve="auto")
        assert outcome in str(results[0].content)
        assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("failure", [ToolFailed, ModelRetry, ValueError, OSError])
def test_what_a_failing_tool_says_has_no_key_in_it(work: Path, failure: type[Exception]) -> None:
    toolset = FunctionToolset[Any]()

    @toolset.tool_plain
    def look_up() -> str:
        raise failure("refused: sk-canary-0123456789abcdef is not known")

    environment = {"OPENAI_API_KEY": "sk-canary-0123456789abcdef"}
    results, script = _run(
        LocalBackend(work), [("look_up", {})], capabilities=[Toolset(toolset)], environment=environment
    )
    assert results[0].outcome != "success"
    assert "refused:" in str(results[0].content)
    assert "canary" not in script.sent
