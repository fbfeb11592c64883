"""Rules about commands: what a shell would run for a text, and what rules say of it."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from deepctl.domain.commands.analysis import analyse
from deepctl.domain.commands.rules import judge
from deepctl.domain.commands.syntax import MAX_TEXT
from deepctl.domain.commands.words import literal
from deepctl.domain.permissions import Rule

RULES = [Rule("git push**", "deny"), Rule("rm **", "deny")]
_DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "isolation.md"
_VERDICTS = {"denied": "deny", "asked": "ask", "the default": "allow"}


def _verdict(text: str, *rules: Rule) -> str:
    return judge(rules or RULES, text, otherwise="allow").action


def _documented() -> list[tuple[str, str]]:
    table = _DOCUMENT.read_text().partition("## What rules about commands cover")[2]
    rows = re.findall(r"^\| (`+) ?(.+?) ?\1 \| (.+?) \|$", table, re.MULTILINE)
    return [(command.replace("\\|", "|").replace("⏎", "\n"), _VERDICTS[verdict]) for _, command, verdict in rows]


def test_the_verdicts_in_the_documentation_hold() -> None:
    documented = _documented()
    assert len(documented) >= 60
    assert {action for _, action in documented} == {"deny", "ask", "allow"}
    assert [(command, _verdict(command)) for command, _ in documented] == documented


@pytest.mark.parametrize(
    "rule", [Rule("rm **", "deny"), Rule("rm **", "ask"), Rule("**/rm **", "deny"), Rule("r? *", "ask")]
)
def test_a_rule_covers_a_command_behind_every_prefix(rule: Rule) -> None:
    for prefix in ("env", "nohup", "sudo -u x", "timeout 5", "command", "X=1", "nice -n 5 setsid", "/usr/bin/env"):
        for name in ("rm", "/bin/rm", "\\rm", '"rm"'):
            assert _verdict(f"cd x && {prefix} {name} -rf a/b", rule) == rule.action, (prefix, name)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("git remote -v add x", "deny"),
        ("git -C x remote add y", "deny"),
        ("git remote show add", "allow"),
        ("git -c remote add x", "allow"),
        ("docker --context x compose -f y down", "deny"),
        ("docker compose logs down", "allow"),
        ("rm -v -rf x", "deny"),
        ("rm -v x", "allow"),
    ],
)
def test_options_may_stand_between_the_words_of_a_pattern_and_nothing_else(text: str, action: str) -> None:
    rules = [Rule(pattern, "deny") for pattern in ("git remote add**", "docker compose down**", "rm -rf **")]
    assert _verdict(text, *rules) == action


def test_an_allow_before_a_deny_is_for_that_command_only() -> None:
    rules = [Rule("env ls", "allow"), Rule("env **", "allow"), Rule("rm tmp", "allow"), Rule("rm **", "deny")]
    for text in ("rm tmp", "cd x; rm tmp", "env ls"):
        assert _verdict(text, *rules) == "allow", text
    for text in ("env rm x", "rm tmp x", "rm tmp; rm x", "rm tmp $(rm x)", "env sh -c 'rm x'"):
        assert _verdict(text, *rules) == "deny", text


def test_what_cannot_be_told_is_asked_about_only_where_a_rule_denies_or_asks() -> None:
    for text in ('eval "$x"', "$x", ". file", "echo x | sh", "if", "alias a=b"):
        assert judge([Rule("ls", "allow")], text, otherwise="allow").action == "allow"
        assert judge([Rule("ls", "ask")], text, otherwise="allow").action == "ask"
        assert "cannot be told" in judge([Rule("ls", "deny")], text, otherwise="allow").reason


def test_an_allow_without_stars_answers_what_cannot_be_told() -> None:
    denies = Rule("rm **", "deny")
    for text in (". venv/bin/activate", "sh build.sh"):
        assert _verdict(text, denies, Rule(text, "allow")) == "allow"
        assert _verdict(text, denies, Rule(f"{text}**", "allow")) == "ask"
        assert _verdict(text, Rule("sh **", "deny"), Rule(". **", "deny"), Rule(text, "allow")) == "deny"


def _large(size: int) -> list[str]:
    """Texts of about `size` bytes that are long, deep or broken in many ways."""
    repeated = ["rm v; ", "git x; ", "env ", "eval ", "env -a ", "! ", "cat <<E\n", "x", "&|;<>(){}`\"'$\\\n"]
    repeated += ["(", "$(", '"$(', "$((", "`", "{ ", "if ", "a$(", "${x:-"]
    nested = [("$(", ")"), ("(", ")"), ("a$(", ")"), ("${x:-", "}"), ('"$(', ')"')]
    return [
        *(piece * (size // len(piece)) for piece in repeated),
        *(opening * (size // 10) + "x" + closing * (size // 10) for opening, closing in nested),
        "git " + "-a " * (size // 3) + "push",
        "rm '" + "\n" * (size - 4),
        "find . " + "-exec rm {} \\; " * (size // 16),
    ]


def test_a_text_is_judged_in_linear_time_however_deep_it_is() -> None:
    rules = [Rule(f"git {'*a' * 20}**", "deny"), *RULES]

    def seconds(size: int) -> float:
        start = time.process_time()
        for text in _large(size):
            judge(rules, text, otherwise="allow")
        return time.process_time() - start

    seconds(1000)
    assert seconds(16 << 10) < 9 * seconds(4 << 10)  # quadratic time would be 16 times
    assert _verdict("x" * (MAX_TEXT + 1)) == "ask"


def test_the_words_are_those_that_a_shell_passes_on(tmp_path: Path) -> None:
    texts = [
        r"""show a"b"'c'$'d\x41\u00e9\101\n' \e\\ 'it'\''s' "x\"\$\\y\z" "" '' a\ b # c""",
        "show \\\n a  b\tc",
        'show \'a\nb\' "c\nd" "e\\\nf"',
        "show a=b --x=y -- ~x a{b} {} ! @ %",
        "X=1 show >/dev/null a 2>&1 b </dev/null c",
        "show $'a\\0b'c \"  x  \"",
    ]
    show = tmp_path / "show"
    show.write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >&3\n')
    show.chmod(0o755)
    for text in texts:
        (command,) = analyse(text).commands
        ran = subprocess.run(
            [shutil.which("bash") or "bash", "-c", f"exec 3>words\n{text}"],
            cwd=tmp_path,
            env={"PATH": str(tmp_path), "LC_ALL": "C.UTF-8"},
        )
        assert ran.returncode == 0
        assert [literal(word) for word in command.words[1:]] == (tmp_path / "words").read_text().split("\0")[:-1], text


_PIECES = [
    *("mark", "mark v", " ", "\n", ";", "&&", "||", "& ", "(", ")", "{ ", "}", "$(", "`", "'", '"', "\\"),
    *("\\\n", "#", " # ", "<<E\n", "<<'E'\n", "\nE\n", "<<-E\n\t", "E", "if true; then ", "; fi"),
    *("for i in 1; do ", "; done", "while false; do ", "case x in x) ", ";; esac", "echo ", "env ", "x=1 "),
    *("! ", "time ", "coproc ", "$'", "${x:-", "$((", "))", "[[ ", "]]", "sh -c '", "eval ", "eval '", "cat "),
    *("<(", ">(", "> f ", "< /dev/null ", "2>&1 ", "<<< ", "f() { ", "; }; f", "function f ", "true "),
    *("xargs ", "$x", "a=b ", "\t", "!", '$"', '"$(', '")', "=", "[", "]", "a", "$#", "${#x}", "x", "1", "<<"),
    *("$[", "*", "-", "trap '", "' EXIT", "exec ", "command ", "builtin ", "then ", "else ", "do ", "in "),
    *("select i in 1; do ", "until true; do ", "&> f ", ";;", "((", "\r", "~", "{mark,v}", "mar", "k"),
    *("find . -maxdepth 0 -exec ", " \\;", "nohup ", "nice -n 1 ", "timeout 5 ", "$@", "set -- mark; "),
    *("x=mark; ", "alias q=mark\n", "q\n", "printf -v x mark; ", "echo mark | sh", "bash", "-s ", "<<\\E\n"),
    *('<<"E"\n', "E\n", "$\n", "{", "}", "<<E;", "2", "3<<E\n", "{x}>f ", "declare ", "export x=", "local "),
    *("let x=1", "; mark", "\nmark\n", "|", "|& "),
]
_SAMPLES = 300_000 if os.environ.get("DEEPCTL_SOAK") else 2_000


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_no_shell_runs_a_denied_command_that_was_let_through(tmp_path: Path, shell: str) -> None:
    """Texts of pieces that shells and grammars read differently; those that the rule lets through are run."""
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"no {shell}")
    programs, work, log = tmp_path / "bin", tmp_path / "work", tmp_path / "log"
    programs.mkdir()
    (programs / "mark").write_text(f"#!/bin/sh\necho x >> {log}\n")
    (programs / "mark").chmod(0o755)
    for name in ("sh", "bash", "env", "nohup", "nice", "timeout", "xargs", "find", "cat", "echo", "true", "setsid"):
        if (found := shutil.which(name)) is not None:
            (programs / name).symlink_to(found)
    choose = random.Random(f"{shell} 1")
    ran = 0
    for _ in range(_SAMPLES):
        text = "".join(choose.choices(_PIECES, k=choose.randint(1, 14)))
        text += choose.choice(["mark\n", "\nmark", "; mark v", "mark)", "mark'", "mark`", ""])
        if "mar" not in text or _verdict(text, Rule("mark**", "deny")) != "allow":
            continue
        work.mkdir()
        ran += 1
        try:
            subprocess.run(
                [program, "-c", text],
                cwd=work,
                env={"PATH": str(programs)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=10,
            )
        except subprocess.TimeoutExpired:
            continue
        finally:
            shutil.rmtree(work)
        assert not log.exists(), text
    assert ran > 10
