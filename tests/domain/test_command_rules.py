"""Rules about commands: what a shell would run for a text, and what rules say of it."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from deepctl.domain.commands.rules import analyse, judge
from deepctl.domain.commands.syntax import MAX_TEXT, literal
from deepctl.domain.permissions import Rule
from tests.domain.command_spellings import HIDDEN, ORDINARY

RULES = [Rule("git push**", "deny"), Rule("rm **", "deny")]
_IS_SOAK = bool(os.environ.get("DEEPCTL_SOAK"))
_DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "isolation.md"
_VERDICTS = {"denied": "deny", "asked": "ask", "the default": "allow"}


def _verdict(text: str, *rules: Rule) -> str:
    return judge(rules or RULES, text, otherwise="allow").action


def _documented() -> list[tuple[str, str]]:
    table = _DOCUMENT.read_text().partition("## Rules about commands")[2]
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
        assert "are unknown" in judge([Rule("ls", "deny")], text, otherwise="allow").reason


def test_a_missing_quote_behind_a_character_of_several_bytes_is_asked_about() -> None:
    for opening in ('"', "'", "$'", '$"', "`", "$(", "${x:-"):
        assert _verdict(f"echo {opening}é") == "ask", opening


def test_an_allow_without_stars_answers_what_cannot_be_told() -> None:
    denies = Rule("rm **", "deny")
    for text in (". venv/bin/activate", "sh build.sh"):
        assert _verdict(text, denies, Rule(text, "allow")) == "allow"
        assert _verdict(text, denies, Rule(f"{text}**", "allow")) == "ask"
        assert _verdict(text, Rule("sh **", "deny"), Rule(". **", "deny"), Rule(text, "allow")) == "deny"


def _large(size: int) -> list[str]:
    """Texts of about `size` bytes that are long, deep or broken in many ways."""
    repeated = ["rm v; ", "git x; ", "env ", "eval ", "env -a ", "! ", "cat <<E\n", "x", "&|;<>(){}`\"'$\\\n"]
    repeated += ["(", "$(", '"$(', "$((", "`", "{ ", "if ", "a$(", "${x:-", "'$(", "${x:-`", "$(')' "]
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
    assert seconds(8 << 10) < 9 * seconds(2 << 10)  # quadratic time would be 16 times
    for text in ("x" * (MAX_TEXT + 1), "sed e|" * 2000):
        assert judge(rules, text, otherwise="allow").may_be_denied


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


def test_ordinary_commands_are_not_asked_about() -> None:
    assert len(ORDINARY) >= 80
    for rules in (RULES, RULES[:1], RULES[1:]):
        asked = [(text, judge(rules, text, otherwise="allow").reason) for text in ORDINARY]
        assert not [(text, reason) for text, reason in asked if reason]


def test_spellings_that_hide_a_command_are_denied_or_asked_about() -> None:
    assert len(HIDDEN) >= 60
    assert not [text for text in HIDDEN if _verdict(text) == "allow"]


def test_an_allow_without_stars_answers_what_may_be_a_command() -> None:
    text = "choom -n 0 rm v"
    assert _verdict(text, Rule("rm **", "deny"), Rule(text, "allow")) == "allow"
    assert _verdict(text, Rule("rm **", "deny"), Rule("choom **", "allow")) == "ask"
    assert _verdict(text, Rule("rm v", "allow"), Rule("rm **", "deny")) == "allow"


_PROGRAMS = {"choom", "start-stop-daemon", "i386", "linux64", "setarch", "setpriv", "prlimit", "taskset", "chrt"}
_PROGRAMS |= {"ionice", "script", "flock", "perl", "python3", "awk", "tar", "ed"}


def _run(text: str, shell: str, directory: Path) -> bool:
    """Whether a shell runs `git push` or `rm` for a text."""
    shutil.rmtree(directory, ignore_errors=True)
    programs = directory / "bin"
    programs.mkdir(parents=True)
    made = directory / "made"
    for name, body in (
        ("git", f'case " $* " in *" push "*) echo x > "{made}";; esac'),
        ("rm", f'echo x > "{made}"'),
        ("git-push", f'echo x > "{made}"'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    (programs / "realgit").symlink_to(shutil.which("git") or "git")
    (directory / "startup").write_text("rm v\n")
    subprocess.run(
        [shell, "-c", text],
        cwd=directory,
        env={"PATH": f"{programs}:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(directory)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    return made.exists()


def test_those_spellings_run_the_command(tmp_path: Path) -> None:
    shells = [shell for shell in map(shutil.which, ("bash", "dash")) if shell is not None]
    missing = [name for name in _PROGRAMS if shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin") is None]
    for text in HIDDEN if _IS_SOAK else HIDDEN[::12]:
        if len(shells) == 2 and not any(name in text for name in missing):
            assert any(_run(text, shell, tmp_path / "work") for shell in shells), text


_BEFORE = ["", "X=1 ", "env ", "env -u X ", "nice -n 1 ", "command ", "timeout 5 ", "setsid -w ", "! ", "time -p "]
_BEFORE += ["choom -n 0 -- ", "choom -n 0 ", "setarch x86_64 ", "setpriv --no-new-privs ", "i386 ", "prlimit -n100 "]
_SPELLED = ["mark v", "m''ark v", "'mark' v", '"mark" "v"', "ma\\rk v", "bin/mark v", '"$PWD"/bin/mark v', "$'mark' v"]
_SPELLED += ["bin/m[a]rk v", "bin/m?rk v", "mark  v", "mark >o v", "mark \\\n v", "\\mark v", '"$PWD/bin/"m"ark" v']
_AROUND = ["%s", "(%s)", "{ %s; }", "if true; then %s; fi", "true && %s", "false || %s", "true | { %s; }", "x=$(%s)"]
_AROUND += ['echo "$(%s)"', "for i in 1; do %s; done", "case x in x) %s;; esac", "f() { %s; }; f", "cat <<E\n$(%s)\nE"]
_AROUND += ["while %s; do break; done", "true\n%s", ": ${x:-$(%s)}", "%s &\nwait"]
_AROUND += ["echo ${x:-`%s`}", 'y="${x:-`%s`}"', "y=x; : ${y%%$(%s)}", 'y=x; : "${y#a$(%s)}"', "[[ -v 'a[$(%s)]' ]]"]
_AROUND += ["echo \"${x:-'$(%s)'}\"", "cat <<E\n${x:-`%s`}\nE", "a['$(%s)']=1", 'r=$"$(%s)"', "y=x; : ${y/`%s`/}"]
_QUOTED = ["sh -c %s", "bash -ec %s", "eval %s", "trap %s EXIT", "choom -n 0 sh -c %s", "env -i PATH=$PATH sh -c %s"]
_QUOTED += ["echo %s | xargs -I{} sh -c '{}'", "setarch x86_64 bash -c %s", "timeout 5 sh -c %s", "x=%s; eval $x"]


def test_a_command_in_any_composition_is_denied_or_asked_about(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "mark").write_text("#!/bin/sh\necho x >> made\n")
    (programs / "mark").chmod(0o755)
    choose = random.Random(1)
    ran = 0
    for number in range(20_000 if _IS_SOAK else 500):
        text = choose.choice(_BEFORE) + choose.choice(_SPELLED)
        for _ in range(choose.randint(0, 3)):
            if choose.random() < 0.3:
                text = choose.choice(_BEFORE[:-6]) * choose.randint(0, 1) + choose.choice(_QUOTED) % shlex.quote(text)
            else:
                text = choose.choice(_AROUND).replace("%s", text)
        assert _verdict(text, Rule("mark v**", "deny")) != "allow", text
        if number % 50 == 0:
            subprocess.run(
                ["bash", "-c", text],
                cwd=tmp_path,
                env={"PATH": f"{programs}:/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=60,
            )
            ran += (tmp_path / "made").exists()
            (tmp_path / "made").unlink(missing_ok=True)
    assert ran > 3


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
_SAMPLES = 300_000 if _IS_SOAK else 2_000


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
