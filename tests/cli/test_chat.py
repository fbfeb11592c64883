"""`deepctl chat` for scripts: one turn, its answer on stdout, its exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.command import Command, InProcess


def test_the_next_command_continues_the_conversation_and_bob_sees_none_of_it(
    deepctl: InProcess, process: Command
) -> None:
    process("chat", "--user", "alice", "remember I like green tea\nwrite notes/a.txt: hello\nplan Trip: pack; go").ok()
    again = process("chat", "--user", "alice", "recall tea").ok()
    assert "I like green tea" in again.stdout
    assert "can see 2 earlier turns" in deepctl("chat", "--user", "alice", "hello").ok().stdout
    assert "green" not in deepctl("chat", "--user", "bob", "recall tea").ok().stdout
    assert "can see 1 earlier turn " in deepctl("chat", "--user", "bob", "hello").ok().stdout
    refused = deepctl("chat", "--user", "bob", "read ../../alice/workspace/notes/a.txt").ok().stdout
    assert "outside the workspace" in refused
    assert "1\thello" not in refused


def test_the_answer_is_all_there_is_on_stdout_and_the_notice_is_on_stderr(deepctl: InProcess) -> None:
    result = deepctl("chat", "write a.txt: hello\nread a.txt").ok()
    assert result.stdout == "Wrote 1 line to a.txt\n     1\thello\n"
    assert "not an LLM" in result.stderr
    assert "--model" in result.stderr


def test_the_offline_model_answers_in_words_that_a_newcomer_understands(deepctl: InProcess, home: Path) -> None:
    assert deepctl("chat", "write a.txt: one").ok().stdout == "Wrote 1 line to a.txt\n"
    (home / "profiles/default/workspace/b c.txt").write_text("hers\n")
    assert "one" in deepctl("chat", "read @a.txt").ok().stdout
    assert deepctl("chat", "recall").ok().stdout == "Memory is empty.\n"
    assert "hers" in deepctl("chat", 'read @"b c.txt"').ok().stdout
    assert deepctl("chat", "write @two.txt:").ok().stdout == "Wrote 0 lines to two.txt\n"
    assert "two.txt" in deepctl("chat", "list @./").ok().stdout


def test_tools_run_in_the_order_of_the_prompt(deepctl: InProcess, home: Path) -> None:
    lines = [line for n in range(10) for line in (f"write a.txt: {n}", "read a.txt")]
    result = deepctl("chat", "--json", "\n".join(lines)).ok()
    reads = [e["content"] for e in result.events if e["type"] == "tool_result" and e["name"] == "read_file"]
    assert [read.split("\t")[1] for read in reads] == [str(n) for n in range(10)]
    assert (home / "profiles/default/workspace/a.txt").read_text() == "9"


def test_json_is_one_event_a_line_and_ends_in_the_result(deepctl: InProcess) -> None:
    result = deepctl("chat", "--json", "--user", "alice", "write a.txt: hello").ok()
    events = result.events
    assert result.stderr == ""
    assert events[0] == {
        "type": "start",
        "profile": "alice",
        "session": "main",
        "project": None,
        "model": "offline",
        "sandbox": "bubblewrap",
        "network": False,
        "questions": "denied",
        "notice": None,
    }
    assert [event["type"] for event in events if event["type"] != "text"] == [
        "start",
        "checkpoint",
        "tool_call",
        "tool_result",
        "checkpoint",
        "checkpoint",
        "result",
    ]
    kept = [event for event in events if event["type"] == "checkpoint"]
    assert [event["kind"] for event in kept] == ["turn", "tool", "turn"]
    assert events[-1]["checkpoint"] == kept[-1]["id"]
    call, returned = (next(e for e in events if e["type"] == kind) for kind in ("tool_call", "tool_result"))
    assert (call["name"], call["args"]) == ("write_file", {"path": "a.txt", "content": "hello"})
    assert (returned["id"], returned["ok"]) == (call["id"], True)
    assert events[-1]["output"] == "".join(e["delta"] for e in events if e["type"] == "text") == "Wrote 1 line to a.txt"
    assert events[-1]["usage"]["requests"] == 2
    assert set(events[-1]) == {"type", "output", "session", "checkpoint", "usage", "cost", "context", "finish"}


def test_json_ends_in_an_error_event_when_it_fails(deepctl: InProcess) -> None:
    result = deepctl("chat", "--json", "--model", "nonsense", "hello")
    assert result.code == 2
    assert result.stderr == ""
    assert result.events[-1]["type"] == "error"
    assert result.events[-1]["code"] == "unknown_model"
    assert set(result.events[-1]) == {"type", "code", "message", "hint", "exit_code", "retryable"}


def test_piped_stdin_is_the_prompt_and_beside_a_prompt_its_context(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", stdin=b"write a.txt: from stdin\n").ok()
    assert (home / "profiles/default/workspace/a.txt").read_text() == "from stdin"
    deepctl("chat", "remember this", stdin=b"write b.txt: only context\n").ok()
    assert not (home / "profiles/default/workspace/b.txt").exists()
    asked = deepctl("sessions", "show", "--json").ok().json["messages"][4]["message"]["parts"][0]["content"][-1]
    assert asked == "remember this\n\n<stdin>\nwrite b.txt: only context\n\n</stdin>"
    listed = deepctl("checkpoints", "list", "--json").ok().json["checkpoints"]
    assert {one["prompt"] for one in listed} == {"", "write a.txt: from stdin", "remember this"}


def test_without_a_prompt_or_a_terminal_it_says_so(deepctl: InProcess, home: Path) -> None:
    for arguments, stdin in ((("chat",), b""), (("chat", ""), b" \n"), (("chat", "--json"), b"")):
        result = deepctl(*arguments, stdin=stdin)
        assert result.code == 2, arguments
        assert "prompt" in result.stderr + result.stdout
    assert not home.exists()


def test_sessions_are_begun_continued_and_listed(deepctl: InProcess) -> None:
    deepctl("chat", "one").ok()
    deepctl("chat", "--session", "work", "two").ok()
    deepctl("chat", "three").ok()  # the latest
    deepctl("chat", "four", "--new").ok()
    deepctl("chat", "--new", "named", "five").ok()
    deepctl("chat", "--session", "MAIN", "six").ok()
    listed = deepctl("sessions", "list", "--json").ok().json["sessions"]
    assert [(s["name"], s["turns"], s["title"]) for s in listed] == [
        ("main", 2, "one"),
        ("named", 1, "five"),
        ("session-3", 1, "four"),
        ("work", 2, "two"),
    ]
    taken = deepctl("chat", "--new=Work", "x")
    assert taken.code == 6
    assert deepctl("chat", "--new", "--session", "work", "x").code == 2
    assert set(listed[0]) == {"name", "created_at", "updated_at", "turns", "message_count", "head", "title"}


def test_show_is_a_transcript_and_an_unknown_session_is_exit_3(deepctl: InProcess) -> None:
    deepctl("chat", "write a.txt: hello").ok()
    shown = deepctl("sessions", "show").ok().stdout
    assert "> write a.txt: hello" in shown
    assert "→ write_file" in shown
    assert "Wrote 1 lines" in shown
    missing = deepctl("sessions", "show", "nope", "--json")
    assert (missing.code, missing.error["code"]) == (3, "session_not_found")


def test_a_bad_model_creates_no_profile(deepctl: InProcess, home: Path) -> None:
    for model in ("nonsense", "nobody:x", "", "openai"):
        assert deepctl("chat", "--user", "alice", "--model", model, "hello").code == 2
    missing_key = deepctl("chat", "--user", "alice", "--model", "anthropic:claude-sonnet-4-6", "hello")
    assert missing_key.code == 7
    assert "ANTHROPIC_API_KEY" in missing_key.stderr
    assert not home.exists()


def test_a_provider_that_is_not_installed_is_named_with_its_extra(deepctl: InProcess) -> None:
    result = deepctl("chat", "--model", "groq:llama", "hello")
    assert result.code == 2
    assert "'pydantic-ai-slim[groq]==" in result.stderr


def test_commands_outside_a_sandbox_need_a_yes(deepctl: InProcess, home: Path) -> None:
    workspace = home / "profiles/default/workspace"
    asked = deepctl("chat", "--sandbox", "none", "run touch done").ok()
    assert "did not run" in asked.stdout
    never = deepctl("chat", "--sandbox", "none", "--approve", "never", "run touch done").ok()
    assert "did not run" in never.stdout
    assert not (workspace / "done").exists()
    deepctl("chat", "--sandbox", "none", "--approve", "auto", "run touch done").ok()
    assert (workspace / "done").exists()


def test_a_denied_command_does_not_run_after_what_follows_it(deepctl: InProcess, home: Path) -> None:
    result = deepctl("chat", "--json", "--sandbox", "none", "run rm -f a.txt\nwrite a.txt: kept").ok()
    assert [e["name"] for e in result.events if e["type"] == "tool_result"] == ["execute", "write_file"]
    assert (home / "profiles/default/workspace/a.txt").read_text() == "kept"


def test_commands_see_no_variable_of_deepctls_environment(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-canary-1234567890")
    monkeypatch.setenv("MY_SECRET", "canary")
    output = deepctl("chat", "--sandbox", "none", "--approve", "auto", "run env").ok().stdout
    assert "canary" not in output
    assert f"HOME={home}/profiles/default/cache/home" in output
    assert not (home / "profiles/default/cache/home").exists()
    names = {line.split("=")[0] for line in output.splitlines() if "=" in line}
    assert names <= {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "HOME", "PWD", "SHLVL", "_", "OLDPWD"}


def test_a_turn_that_takes_too_long_is_stopped_and_kept(process: Command) -> None:
    sleep = f"sleep 31.{os.getpid()}"
    began = time.monotonic()
    prompt = f"write a.txt: x\nrun {sleep}"
    result = process("chat", "--json", "--timeout", "3", "--sandbox", "none", "--approve", "auto", prompt)
    assert (result.code, result.events[-1]["code"]) == (124, "timeout")
    assert time.monotonic() - began < 20
    kinds = [e["message"]["kind"] for e in process("sessions", "show", "--json").ok().json["messages"]]
    assert kinds[:3] == ["request", "response", "request"]
    assert processes.with_command(*sleep.split()) == []
    assert process("chat", "hello").code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGHUP, -1)])
def test_an_interrupted_turn_keeps_what_is_complete_and_ends_its_command(
    process: Command, number: signal.Signals, code: int
) -> None:
    sleep = f"sleep 4{number.value}.{os.getpid()}"
    prompt = f"write a.txt: x\nrun {sleep}"
    running = process.start("chat", "--json", "--sandbox", "none", "--approve", "auto", prompt)
    assert running.stdout is not None
    for line in running.stdout:
        if json.loads(line)["type"] == "tool_result":
            break
    time.sleep(0.3)
    running.send_signal(number)
    out, err = running.communicate(timeout=20)
    assert running.returncode == code
    assert b"Traceback" not in err
    if number == signal.SIGINT:
        assert json.loads(out.splitlines()[-1])["code"] == "interrupted"
    assert processes.with_command(*sleep.split()) == []
    messages = process("sessions", "show", "--json").ok().json["messages"]
    assert messages[2]["message"]["parts"][0]["content"] == "Wrote 1 lines to a.txt"
    assert "can see 1 earlier turn " in process("chat", "hello").ok().stdout


def test_a_second_chat_on_the_same_profile_is_exit_4_and_names_the_first(process: Command) -> None:
    slow = ("chat", "--sandbox", "none", "--approve", "auto", "--json")
    first = process.start(*slow, "--user", "alice", "run sleep 30")
    assert first.stdout is not None
    assert json.loads(first.stdout.readline())["type"] == "start"
    began = time.monotonic()
    second = process("chat", "--user", "alice", "--json", "hello")
    assert time.monotonic() - began < 10
    assert (second.code, second.events[-1]["code"]) == (4, "locked")
    assert f"pid {first.pid}, `deepctl chat`" in second.events[-1]["message"]
    assert process("chat", "--user", "bob", "hello").code == 0, "another profile runs beside it"
    readers = [("memory", "show"), ("sessions", "list"), ("sessions", "show"), ("config", "show")]
    for reader in [("profiles", "list"), *((*reader, "--user", "alice") for reader in readers)]:
        assert process(*reader).code == 0, reader
    waited = process("chat", "--user", "alice", "--wait", "0.5", "hello")
    assert waited.code == 4
    first.kill()
    first.communicate()
    assert process("chat", "--user", "alice", "hello").code == 0, "a killed holder leaves no lock"


def test_two_at_once_that_wait_both_get_their_turn(process: Command) -> None:
    running = [process.start("chat", "--wait", "30", f"remember fact {n}") for n in range(4)]
    for one in running:
        one.communicate(timeout=60)
        assert one.returncode == 0
    noted = process("memory", "show").ok().stdout
    assert sorted(noted.splitlines()) == [f"- fact {n}" for n in range(4)]
    assert process("sessions", "list", "--json").ok().json["sessions"][0]["turns"] == 4


def test_a_ten_megabyte_prompt_is_a_prompt(process: Command) -> None:
    prompt = b"remember the end " + b"x" * 10_000_000
    process("chat", stdin=prompt).ok()
    shown = process("sessions", "list", "--json").ok().json["sessions"][0]
    assert len(shown["title"]) == 80
    assert process("chat", "hello").code == 0


def test_stdin_that_is_not_utf8_is_refused_whole(deepctl: InProcess, home: Path) -> None:
    result = deepctl("chat", stdin=b"hello \xff world")
    assert result.code == 2
    assert "0xff at offset 6" in result.stderr
    assert not home.exists()


def test_a_mark_of_byte_order_is_no_part_of_a_prompt(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", stdin="\ufeffwrite a.txt: b".encode()).ok()
    assert (home / "profiles/default/workspace/a.txt").read_text() == "b"


def test_a_reader_that_leaves_early_loses_nothing(process: Command) -> None:
    prompt = "\n".join(f"write f{n}.txt: {n}" for n in range(30))
    running = process.start("chat", "--json", prompt)
    assert running.stdout is not None
    running.stdout.readline()
    running.stdout.close()
    assert running.stderr is not None
    assert running.stderr.read() == b""
    assert running.wait(60) == 0
    shown = process("sessions", "show", "--json").ok().json["messages"]
    assert shown[-1]["message"]["kind"] == "response"
    assert len(shown[2]["message"]["parts"]) == 30


def test_a_command_whose_reader_leaves_early_is_quiet_and_exits_0(process: Command) -> None:
    process("chat", stdin=b"remember tea\nwrite big.txt: " + b"long " * 50_000).ok()
    for n in range(3):
        process("profiles", "create", f"p{n}").ok()
    commands = (
        ("profiles", "list"),
        ("sessions", "show"),
        ("sessions", "show", "--json"),
        ("memory", "show"),
        ("--help",),
    )
    for arguments in commands:
        for reader in ("head -c 5", "true"):
            script = f"set -o pipefail; {' '.join((*process.argv, *arguments))} | {reader}"
            done = subprocess.run(["bash", "-c", script], capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, b""), script


def test_closed_standard_streams_are_survived(process: Command, home: Path) -> None:
    command = " ".join(process.argv)
    for script, code in (
        (f"{command} chat hello <&-", 0),
        (f"{command} chat hello >&- </dev/null", 8),
        (f"{command} chat hello 2>&- </dev/null", 0),
        (f"{command} chat hello <&- >&- 2>&-", 8),
        (f"{command} profiles list >&-", 8),
    ):
        done = subprocess.run(["bash", "-c", script], capture_output=True, check=False)
        assert done.returncode == code, (script, done)
        assert b"Traceback" not in done.stderr
    assert process("sessions", "list", "--json").ok().json["sessions"][0]["turns"] >= 2
    lock = home / "locks" / "default"
    assert lock.read_bytes() == b"", "nothing was printed into a file that took a closed stream's number"


def test_a_stdout_that_is_full_is_exit_8(process: Command) -> None:
    process("profiles", "create", "alice").ok()
    with open("/dev/full", "wb") as full:
        for command in (("profiles", "list"), ("chat", "--user", "alice", "hello")):
            running = process.start(*command, stdout=full)
            _, err = running.communicate(timeout=60)
            assert running.returncode == 8, command
            assert err.decode().count("Error:") == 1
            assert b"Traceback" not in err


def test_arguments_that_are_not_utf8_or_not_numbers_are_exit_2(process: Command, home: Path) -> None:
    argv = [os.fsencode(part) for part in process.argv]
    done = subprocess.run(
        [*argv, b"chat", b"remember a\xffb"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"UTF-8" in done.stderr
    for option, value in (
        ("--timeout", "nan"),
        ("--timeout", "inf"),
        ("--wait", "nan"),
        ("--wait", "-1"),
        ("--timeout", "0"),
    ):
        assert process("chat", "hi", option, value).code == 2, (option, value)
    assert not home.exists()


def test_usage_errors_of_chat_json_are_events_too(deepctl: InProcess) -> None:
    result = deepctl("chat", "--json", "--bogus", "hello")
    assert (result.code, result.stderr) == (2, "")
    assert result.events[-1]["code"] == "usage"


def test_new_says_that_it_took_the_prompt_as_its_name(deepctl: InProcess) -> None:
    for arguments in (("--new", "hello"), ("--new", "what is up")):
        result = deepctl("chat", *arguments)
        assert result.code == 2
        assert "before --new" in result.stderr
    assert "quotes" in deepctl("chat", "hello", "there").stderr


def test_ctrl_c_while_waiting_for_the_lock_is_exit_130_and_an_event(process: Command) -> None:
    busy = process.start("chat", "--json", "--sandbox", "none", "--approve", "auto", "run sleep 30")
    assert busy.stdout is not None
    busy.stdout.readline()
    waiting = process.start("chat", "--json", "--wait", "60", "hello")
    time.sleep(3)
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, err) == (130, b"")
    assert json.loads(out.splitlines()[-1])["code"] == "interrupted"


def test_nobody_reading_stderr_stops_nothing(process: Command, home: Path) -> None:
    command = " ".join(process.argv)
    chat = f"{command} chat 'write a.txt: x' </dev/null 2>&1 >/dev/null"
    script = f"( sleep 0.3; {chat}; echo $? >&7 ) 7>{home.parent}/code | true"
    subprocess.run(["bash", "-c", script], check=False)
    assert (home.parent / "code").read_text() == "0\n"
    assert (home / "profiles/default/workspace/a.txt").exists()
    with open("/dev/full", "wb") as full:
        for arguments, code in ((("chat", "hello"), 0), (("profiles", "show", "nobody"), 3)):
            running = process.start(*arguments, stderr=full)
            running.communicate(timeout=60)
            assert running.returncode == code


def test_a_root_that_was_moved_goes_on(process: Command, home: Path) -> None:
    process("chat", "write a.txt: x").ok()
    moved = home.rename(home.parent / "moved")
    assert "can see 1 earlier turn " in process("chat", "hello", env={"DEEPCTL_HOME": str(moved)}).ok().stdout


def test_a_context_file_that_changed_does_not_take_the_prompts_place(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", "write f: hello").ok()
    (home / "profiles/default/workspace/AGENTS.md").write_text("Be nice.")
    assert deepctl("chat", "read f").ok().stdout == "     1\thello\n"
    assert "can see 2 earlier turns" in deepctl("chat", "hm").ok().stdout


def test_a_workspace_that_vanishes_in_mid_turn_is_exit_8(deepctl: InProcess) -> None:
    prompt = 'run rm -rf "$PWD"\nwrite a.txt: x'
    result = deepctl("chat", "--sandbox", "none", "--approve", "auto", prompt)
    assert result.code == 8
    assert "does not exist" in result.stderr
    deepctl("chat", "write a.txt: x").ok()


def test_what_lies_about_among_the_sessions_is_passed_over(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", "hello").ok()
    sessions = home / "profiles/default/sessions"
    (sessions / "b b").mkdir()
    (sessions / "b b" / "x").write_text("x")
    (sessions / "notes.txt").write_text("x")
    assert "1 earlier turn " in deepctl("chat", "hello").ok().stdout
    assert [s["name"] for s in deepctl("sessions", "list", "--json").ok().json["sessions"]] == ["main"]


def test_an_empty_name_for_a_new_session_is_refused(deepctl: InProcess) -> None:
    assert deepctl("chat", "--new=", "hello").code == 2
    assert deepctl("chat", "hello", "--new", "").code == 2


@pytest.mark.parametrize("delay", [0.06, 0.09, 0.2, 0.4])
@pytest.mark.parametrize("command", [("profiles", "list"), ("chat", "hello")])
def test_ctrl_c_while_starting_shows_no_traceback(process: Command, command: tuple[str, ...], delay: float) -> None:
    process.forked = False
    running = process.start(*command)
    time.sleep(delay)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    if b"Exception ignored in" in err:
        # It came in the callback of a weak reference, where Python can raise nothing: it says so, and goes on.
        assert running.returncode in (0, 130, -signal.SIGINT)
        return
    # On a busy machine the signal may come before Python has come as far as our first lines, which see to it.
    is_ours = re.search(rb"deepctl/(?!__init__|__main__)", err.partition(b"Traceback")[2])
    assert not is_ours, err
    assert b"Traceback" in err or running.returncode in (0, 130, -signal.SIGINT)


def test_stdin_that_cannot_be_read_is_no_prompt(process: Command) -> None:
    script = f"{' '.join(process.argv)} chat hello 0>/dev/null"
    assert subprocess.run(["bash", "-c", script], capture_output=True, check=False).returncode == 0
