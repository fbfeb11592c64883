"""Redaction: every shape of a key goes, wherever it stands; ordinary text stays as it is."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import time

import pytest
from pydantic_ai import messages

from deepctl.redaction import REDACTED, Redaction, redact

A, H = "Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2Yz3", "0123456789abcdef" * 4
"""Letters and digits, and hex digits, to make keys of. None of these is a key of anybody's."""

KEYS = {
    "OpenAI": f"sk-{A}",
    "OpenAI project": f"sk-proj-{A}_{A[:20]}-x",
    "Anthropic": f"sk-ant-api03-{A}-{A[:10]}_AA",
    "Stripe": f"sk_live_{A[:24]}",
    "GitHub": f"ghp_{A[:36]}",
    "GitHub OAuth": f"gho_{A[:36]}",
    "GitHub server": f"ghs_{A[:36]}",
    "GitHub fine-grained": f"github_pat_11{A[:20]}_{A}",
    "GitLab": f"glpat-{A[:20]}",
    "AWS": "AKIA" + "ABCDEFGH12345678",
    "AWS session": "ASIA" + "ABCDEFGH12345678",
    "Slack bot": f"xoxb-123456789012-123456789012-{A[:24]}",
    "Slack app": f"xoxa-2-{A}",
    "Slack user": f"xoxp-{A}",
    "Google": f"AIza{A[:35]}",
    "Google OAuth": f"ya29.{A}",
    "Hugging Face": f"hf_{A[:34]}",
    "Groq": f"gsk_{A}",
    "npm": f"npm_{A[:36]}",
    "PyPI": f"pypi-AgEIcHlwaS5vcmc{A}",
    "JWT": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{A}",
}
PRIVATE = f"-----BEGIN RSA PRIVATE KEY-----\n{H}\n{H}\n-----END RSA PRIVATE KEY-----"
AROUND = ["{}", "key={}", "'{}'", '{{"key": "{}"}}', "({}),", "a {} b", "x\n{}\ny", "https://x.org/?token={}&a=b"]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", KEYS)
def test_a_key_goes_and_what_is_around_it_stays(name: str, around: str) -> None:
    redaction = Redaction({})
    assert redaction.text(around.format(KEYS[name])) == around.format(REDACTED)
    assert redaction.secrets == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"Authorization: Bearer {A}", f"Authorization: Bearer {REDACTED}"),
        (f"authorization: bearer {KEYS['JWT']}", f"authorization: bearer {REDACTED}"),
        ("Authorization: Basic dXNlcjpwYXNzMTIzNDU2Nzg=", f"Authorization: Basic {REDACTED}"),
        ("https://bob:s3cret@example.org/x", f"https://bob:{REDACTED}@example.org/x"),
        ("postgresql+psycopg://u:p@ss:word@db:5432/x", f"postgresql+psycopg://u:{REDACTED}@db:5432/x"),
        ("redis://:hunter2@cache", f"redis://:{REDACTED}@cache"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzzzzz", f"aws_secret_access_key = {REDACTED}"),
        (f"a\n{PRIVATE}\nb", f"a\n{REDACTED}\nb"),
        (json.dumps({"key": PRIVATE}), json.dumps({"key": REDACTED})),
        (f"-----BEGIN PRIVATE KEY-----\n{H}\n{H}\n", f"{REDACTED}\n"),
        (PRIVATE.replace("RSA ", "OPENSSH "), REDACTED),
        (PRIVATE.replace("RSA PRIVATE KEY", "PGP PRIVATE KEY BLOCK"), REDACTED),
    ],
)
def test_what_stands_beside_a_secret_stays(text: str, wanted: str) -> None:
    assert Redaction({}).text(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "550e8400-e29b-41d4-a716-446655440000",
        "01a2074d-e3ca-745b-a725-e7f3a5503c9f",
        "d41d8cd98f00b204e9800998ecf8427e",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "call_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8 toolu_01A09q90qw90lq917835lq9 offline_907bc7aec903",
        "risk-assessment-of-the-2026-budget, task-12345678901234567890, desk-top",
        "sk-learn-something-very-long-indeed-here",
        "the bearer of good news, Bearer authentication, basic understanding of 12345678901234567890",
        "https://example.org:8080/a@b http://localhost:3000 git@github.com:a/b.git ssh://git@github.com/a/b",
        "a@b.org: see http://x/ and mailto:bob@example.org",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "A file begins with -----BEGIN PRIVATE KEY----- and goes on.",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE5 bob@host",
        "/workspace/.deep/home/x /usr/home /homes/x https://example.org/home/bob ./home/bob ~/home/bob",
        "AKIA is how they begin; AKIAABCDEFGH123456789 is too long",
        "x = eyJ + 1; gh_pages; hf_hub; xoxo-hugs",
        "日本語 \udcff \x00",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    redaction = Redaction({"HOME": "/nobody", "PATH": "/usr/bin:/bin", "EDITOR": "vim-or-so"})
    assert redaction.text(text) == text
    assert (redaction.secrets, redaction.homes) == (0, 0)


def test_a_picture_stays() -> None:
    for seed in range(20):
        picture = base64.b64encode(bytes((seed * 7 + number * number) % 256 for number in range(20_000))).decode()
        assert Redaction({}).text(picture) == picture


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/home/alice/notes.md", "~/notes.md"),
        ("in /home/alice.", "in ~."),
        ("/Users/Bob Smith", "~ Smith"),
        ("file:///home/alice/x", "file://~/x"),
        ('{"path": "/home/a-b_c/x"}', '{"path": "~/x"}'),
        ("cd /srv/me; ls /srv/me/x /srv/meander /srv/me", "cd ~; ls ~/x /srv/meander ~"),
        ("C:\\Users\\Bob\\x and C:\\\\Users\\\\Bob\\\\x", "~\\x and ~\\\\x"),
    ],
)
def test_homes_become_tildes(text: str, wanted: str) -> None:
    redaction = Redaction({"HOME": "/srv/me/"})
    assert redaction.text(text) == wanted
    assert redaction.homes == wanted.count("~")


@pytest.mark.parametrize("home", ["", "/"])
def test_a_home_that_is_everything_or_nothing_is_left_alone(home: str) -> None:
    assert Redaction({"HOME": home}).text("/etc and /") == "/etc and /"


def test_values_of_secret_variables_become_their_names_in_every_spelling() -> None:
    value = 'pass"word\\with/ü'
    secrets = {"MY_PASSWORD": value, "MY_API_KEY": "12345678", "SHORT_TOKEN": "1234"}
    redaction = Redaction({**secrets, "EDITOR": "emacs-nox"})
    for said in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
        assert redaction.text(f"<{said}>") == "<[MY_PASSWORD]>"
    assert redaction.text("x=pass%22word%5Cwith%2F%C3%BC") == "x=[MY_PASSWORD]"
    assert redaction.text("1234 12345678 emacs-nox") == "1234 [MY_API_KEY] emacs-nox"


def test_the_longer_of_two_secrets_is_taken_first() -> None:
    redaction = Redaction({"A_KEY": "abcdefgh", "B_KEY": "abcdefgh-and-more"})
    assert redaction.text("abcdefgh-and-more abcdefgh") == "[B_KEY] [A_KEY]"


def test_every_string_of_a_value_is_redacted_keys_too_and_none_is_lost() -> None:
    value = {
        "/home/a/x": 1,
        "/home/b/x": [KEYS["AWS"], {"deep": KEYS["GitHub"], "n": 1.5, "no": None}],
        "~/x": True,
        "kind": "request",
    }
    assert Redaction({"X_SECRET": "request-"}).value(value) == {
        "~/x (2)": 1,
        "~/x (3)": [REDACTED, {"deep": REDACTED, "n": 1.5, "no": None}],
        "~/x": True,
        "kind": "request",
    }


def test_what_a_message_is_stays_whatever_the_secrets_are() -> None:
    part = {"part_kind": "tool-return", "content": "tool-return"}
    assert Redaction({"A_TOKEN": "tool-return"}).value(part) == {"part_kind": "tool-return", "content": "[A_TOKEN]"}


@pytest.mark.parametrize("key", ["kind", "part_kind"])
def test_nothing_but_what_a_message_can_be_stays_because_of_its_key(key: str) -> None:
    value = {"part_kind": "tool-call", "args": {key: KEYS["GitHub"], "deep": [{key: {"x": "/home/alice"}}]}}
    assert Redaction({}).value(value) == {
        "part_kind": "tool-call",
        "args": {key: REDACTED, "deep": [{key: {"x": "~"}}]},
    }


def test_every_kind_of_part_is_known() -> None:
    """What a part or message is called by default, as Pydantic AI has it."""
    kinds = {
        field.default
        for one in vars(messages).values()
        if dataclasses.is_dataclass(one)
        for field in dataclasses.fields(one)
        if field.name in ("kind", "part_kind") and isinstance(field.default, str)
    }
    assert {"request", "response", "tool-call"} <= kinds
    for kind in kinds:
        assert Redaction({"A_SECRET": kind}).value({"kind": kind, "part_kind": kind}) == {
            "kind": kind,
            "part_kind": kind,
        }


SAID = {
    **KEYS,
    "home": "/home/alice",
    "own home": "/srv/me-at-home",
    "Windows": "C:\\Users\\Bob",
    "bearer": f"Bearer {A}",
}


def _left(said: str) -> str:
    return f"Bearer {REDACTED}" if said.startswith("Bearer") else "~" if said[0] in "/C" else REDACTED


@pytest.mark.parametrize("before", ["\n", "\t", "\r", "\b", "\f", "é", "x\n", "\x1b", "\x7f"])
@pytest.mark.parametrize("name", SAID)
def test_json_in_a_string_is_redacted(name: str, before: str) -> None:
    said = SAID[name]
    inner = {"content": f"x{before} {said}\n{said}\t", "n": [1, None]}
    left = {"content": f"x{before} {_left(said)}\n{_left(said)}\t", "n": [1, None]}
    for style in ({}, {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False}):
        raw = json.dumps(inner, **style)
        assert Redaction({"HOME": "/srv/me-at-home"}).value({"args": raw}) == {"args": json.dumps(left, **style)}
    twice = json.dumps([json.dumps(inner)])
    assert Redaction({"HOME": "/srv/me-at-home"}).value(twice) == json.dumps([json.dumps(left)])


@pytest.mark.parametrize("before", ["\\n", "\\t", "\\r", "\\\\n", "\\u0001", "\\u00E9", "\\x1f", "\\033"])
@pytest.mark.parametrize("name", SAID)
def test_an_escape_before_a_secret_is_no_part_of_it(name: str, before: str) -> None:
    """In JSON that is cut off or among other text."""
    said = SAID[name]
    assert Redaction({"HOME": "/srv/me-at-home"}).value(f'{{"content": "x{before}{said} ') == (
        f'{{"content": "x{before}{_left(said)} '
    )


def test_what_only_the_key_tells_is_found_in_json_too() -> None:
    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzzzzz"
    raw = json.dumps({"x": "\n/home/a", "aws_secret_access_key": secret, "Authorization": "Basic dXNlcjpwYXNzMTIzNDU2"})
    left = {"x": "\n~", "aws_secret_access_key": REDACTED, "Authorization": f"Basic {REDACTED}"}
    assert Redaction({}).value(raw) == json.dumps(left)
    assert Redaction({}).value(json.dumps(raw)) == json.dumps(json.dumps(left))


@pytest.mark.parametrize(
    "text",
    [
        ' {"a":1.0e5,  "b" : "\\u00e9\\/", "b": []}\n',
        "[1, 2",
        "{not json}",
        "[" * 100_000,
        "[" * 500 + '"x\\ny"' + "]" * 500,
        "[" * 900 + "]" * 900,
        "[1" + "0" * 5_000 + "]",
        "[NaN]",
    ],
    ids=lambda text: text[:12],
)
def test_json_without_a_secret_stays_byte_for_byte(text: str) -> None:
    redaction = Redaction({})
    assert redaction.value(text) == text
    assert (redaction.secrets, redaction.homes) == (0, 0)


def test_a_key_that_is_there_twice_and_json_that_is_too_deep_hide_nothing() -> None:
    assert Redaction({}).value(f'{{"a": "\\n{KEYS["GitHub"]}", "a": "x"}}') == f'{{"a": "\\n{REDACTED}", "a": "x"}}'
    deep = "[" * 900 + f'"\\n{KEYS["GitHub"]}"' + "]" * 900
    redaction = Redaction({})
    assert redaction.value(deep) == deep.replace(KEYS["GitHub"], REDACTED)
    assert redaction.secrets == 1


CONTROLS = [
    "\x1b[m",
    "\x1b[01;31m\x1b[K",
    "\x1b[38;2;1;2;3m",
    "\x1b[2J",
    "\x1b[?25h",
    "\x1b[1A",
    "\x1b(B",
    "\x1b]8;;https://example.org/a\x1b\\",
    "\x1b]8;id=1;https://example.org/a\x07",
    "\\u001b[01;31m\\u001b[K",
    "\\x1b[0m",
    "\\033[1;34m",
    "\\e[0m",
    "^[[01;31m^[[K",
    "[01;31m[K",
]


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
@pytest.mark.parametrize("name", SAID)
def test_colours_hide_no_secret(name: str, control: str) -> None:
    said = SAID[name]
    for before in ("", "a ", "word"):
        redaction = Redaction({"HOME": "/srv/me-at-home"})
        text = f"{before}{control}{{}}{control} b"
        assert redaction.text(text.format(said)) == text.format(_left(said))
        assert redaction.secrets + redaction.homes == 1
    # Shown by a search, which colours a part of it.
    cut = f"a {control}{said[:2]}{control}{said[2:9]}{control}{said[9:]} b"
    assert said[9:] not in Redaction({"HOME": "/srv/me-at-home"}).text(cut)


def test_coloured_text_without_a_secret_stays() -> None:
    text = (
        "\x1b[1mls\x1b[0m \x1b]8;;https://example.org/home/bob\x1b\\a\x1b]8;;\x1b\\ 550e8400\x1b[m-e29b ~\x1b[K \ufdd0"
    )
    redaction = Redaction({"A_KEY": "abcdefgh", "HOME": "/srv/me-at-home"})
    assert redaction.text(text) == text
    assert (redaction.secrets, redaction.homes) == (0, 0)


def test_a_link_of_a_terminal_is_redacted_in_both_its_halves() -> None:
    link = "\x1b]8;;file:///home/bob/x\x1b\\/home/bob/x\x1b]8;;\x1b\\ \x1b]8;;https://u:s3cret@a.org\x07me\x1b]8;;\x07"
    assert Redaction({}).text(link) == link.replace("/home/bob", "~").replace("s3cret", REDACTED)


def test_a_variables_value_in_colours_is_known() -> None:
    assert Redaction({"A_KEY": "abcdefgh"}).text("x\x1b[1mabcd\x1b[0mefgh\x1b[m") == "x\x1b[1m[A_KEY]\x1b[m"


def test_redacted_messages_are_messages() -> None:
    args = json.dumps(
        {"kind": KEYS["GitHub"], "content": f"x\n{KEYS['Anthropic']}\n/home/alice/x"}, separators=(",", ":")
    )
    said: list[messages.ModelMessage] = [
        messages.ModelRequest([messages.UserPromptPart(f"\x1b[1m{KEYS['AWS']}\x1b[m")]),
        messages.ModelResponse([messages.ToolCallPart("write", args, "1")]),
        messages.ModelRequest([messages.ToolReturnPart("write", json.loads(args), "1")]),
    ]
    raw = messages.ModelMessagesTypeAdapter.dump_python(said, mode="json")
    left = messages.ModelMessagesTypeAdapter.validate_python(Redaction({"A_TOKEN": "tool-call"}).value(raw))
    wanted = {"kind": REDACTED, "content": f"x\n{REDACTED}\n~/x"}
    assert [getattr(one.parts[0], "args", None) or getattr(one.parts[0], "content", None) for one in left] == [
        f"\x1b[1m{REDACTED}\x1b[m",
        json.dumps(wanted, separators=(",", ":")),
        wanted,
    ]


def test_redacting_again_changes_nothing() -> None:
    said = "\n".join([*KEYS.values(), PRIVATE, f"Bearer {A}", "https://a:b@c/d /home/alice/x"])
    once = Redaction({}).text(said)
    again = Redaction({})
    assert again.text(once) == once
    assert (again.secrets, again.homes) == (0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN PRIVATE KEY-----" * 8_000,
        "-----BEGIN PRIVATE KEY-----" + "A" * 200_000,
        "a://" * 50_000,
        "x://" + "a" * 200_000,
        "sk-" + "a" * 200_000,
        "sk-a" * 50_000,
        "bearer " * 30_000,
        "bearer " + "a" * 200_000,
        "eyJ" + "a" * 200_000,
        "eyJaaaaaaaaaaaa." * 12_000,
        "/home/" + "a." * 100_000,
        "\\n" * 100_000,
        "aws_secret_access_key" * 10_000,
        "authorization:" + " " * 200_000,
        "\x1b[" * 100_000,
        "\x1b[m" * 60_000,
        "\x1b]8;;" * 40_000,
        "\\u001b]" * 30_000,
        "\x1b]" + "a" * 200_000,
        "\x1b[m" + "a://" * 50_000,
        "\x1b[mghp_a" * 30_000,
        f"\x1b[mghp_{A} " * 4_000,
        "[1;" * 60_000,
        "\\u0000" * 30_000,
        "[" * 200_000,
        json.dumps(["\n/home/alice"] * 12_000),
        json.dumps({f"/home/a{number}": number for number in range(20_000)}),
        functools.reduce(lambda inner, _: json.dumps([inner]), range(14), "a" * 100_000),
    ],
    ids=lambda text: text[:12],
)
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    Redaction({"A_KEY": "abcdefgh", "HOME": "/srv/me"}).value(text)
    assert time.process_time() - began < 2, "ten times what is linear"


def test_errors_name_the_variable_instead_of_its_value() -> None:
    environment = {"OPENAI_API_KEY": "sk-something", "DATABASE_URL": "postgres://u:hidden@db/x", "PATH": "/usr/bin/x"}
    assert redact("sk-something at postgres://u:hidden@db/x in /usr/bin/x", environment) == (
        "[OPENAI_API_KEY] at postgres://u:[DATABASE_URL]@db/x in /usr/bin/x"
    )
