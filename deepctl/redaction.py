"""Removing secrets from output (`redact`), and secrets and home directories from exports.

There are two ways to recognise a secret: it is the value of an environment variable with a secret's name, or it has the
shape of a key of a known service. A short value (below 8 characters) is recognised only if the variable is an API key
such as `OPENAI_API_KEY`, and only as a whole word, because other short values, such as a password `root`, are words in
ordinary text. Below 4 characters nothing is a key. Placeholders for servers without keys, such as `none` or `ollama`,
are not keys either. Only shapes that ordinary text does not have are listed, so a hash, a UUID or a picture in base64
is not a secret. A password that is an ordinary word cannot be recognised.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

_SECRET_VARIABLE = re.compile(
    r"(^|_)([A-Z]*(KEY|TOKEN|SECRET|PASSWORD|PASSWD)|PAT|PASS|CREDENTIAL)S?(_|$)", re.IGNORECASE
)
_IN_ADDRESS = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
_API_KEY = re.compile(r"(^|_)(API_?(KEY|TOKEN)|AUTH_TOKEN)S?$", re.IGNORECASE)
_SHORTEST = 8
_SHORTEST_API_KEY = 4
_NO_KEYS = frozenset(("dummy", "empty", "fake", "local", "no-key", "nokey", "none", "null", "ollama", "test", "unused"))

REDACTED = "[redacted]"

_TOKENS = {
    # Their beginnings, and the following characters.
    "sk-ant-": r"[A-Za-z0-9_-]{16,}",  # Anthropic
    "sk-": r"(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}",  # OpenAI and the like; words with dashes have no digits
    **dict.fromkeys(("sk_live_", "sk_test_", "rk_live_", "rk_test_"), r"[A-Za-z0-9]{16,}"),  # Stripe
    "whsec_": r"[A-Za-z0-9+/]{24,}",
    **dict.fromkeys(("ghp_", "gho_", "ghr_", "ghs_", "ghu_"), r"[A-Za-z0-9]{20,}"),  # GitHub
    "github_pat_": r"[A-Za-z0-9_]{20,}",
    **dict.fromkeys(("glpat-", "gldt-", "glrt-", "glptt-", "glcbt-"), r"[A-Za-z0-9_.-]{20,}"),  # GitLab
    **dict.fromkeys(("AKIA", "ASIA"), r"[A-Z0-9]{16}(?![A-Za-z0-9])"),  # AWS; its second part is below
    **dict.fromkeys(("xoxa-", "xoxb-", "xoxe-", "xoxp-", "xoxr-", "xoxs-"), r"[A-Za-z0-9-]{10,}"),  # Slack
    "xapp-": r"[0-9]-[A-Za-z0-9-]{10,}",
    "AIza": r"[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])",  # Google
    "ya29.": r"[A-Za-z0-9_-]{20,}",
    "GOCSPX-": r"[A-Za-z0-9_-]{20,}",
    "hf_": r"[A-Za-z0-9]{20,}",  # Hugging Face
    "gsk_": r"[A-Za-z0-9]{20,}",  # Groq
    "xai-": r"[A-Za-z0-9]{20,}",
    "r8_": r"[A-Za-z0-9]{20,}",  # Replicate
    "npm_": r"[A-Za-z0-9]{30,}",
    "pypi-": r"[A-Za-z0-9_-]{30,}",
    "dop_v1_": r"[a-f0-9]{40,}",  # DigitalOcean
    "SG.": r"[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",  # SendGrid
    "eyJ": r"[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]+){0,2}",  # JWT
}
_BEGINNINGS = tuple(_TOKENS)
# An escape of JSON or source code for a character; its last letter is not part of the following word.
_ESCAPED = r"(?<=\\[abefnrtv0])|(?<=\\u[0-9A-Fa-f]{4})|(?<=\\x[0-9A-Fa-f]{2})|(?<=\\[0-7]{3})"
_TOKEN = re.compile(
    rf"(?=[{''.join(sorted({key[0] for key in _TOKENS}))}])(?:(?<![A-Za-z0-9_-])|{_ESCAPED})"
    rf"(?:{'|'.join(re.escape(key) + rest for key, rest in _TOKENS.items())})"
)
_AFTER = re.compile(
    # The value after a word that names its meaning; the word stays.
    rf"(?i)((?=[ab])(?:\b|{_ESCAPED})"
    r"(?:bearer\s+|authorization\\{0,3}[\"']?\s*[:=]\s*\\{0,3}[\"']?(?:basic|token)\s+))"
    r"(?=[A-Za-z._~+/=-]*[0-9])[A-Za-z0-9._~+/=-]{16,}"
    rf"|((?=a)(?:\b|{_ESCAPED})aws_?(?:secret_?(?:access_?)?key|session_?token)"
    r"\\{0,3}[\"']?\s*[:=]\s*\\{0,3}[\"']?)[A-Za-z0-9/+=]{40,}"
)
_PASSWORD = re.compile(
    r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{0,31}://[^\s/:@\"'<>\\\[]{0,256}):"
    r"(?!\[\w+\]@)[^\s/\"'<>\\]{1,512}@"  # a name in brackets has been redacted already
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    # Complete, or cut off: then as far as the shape matches. Its lines may end in an escaped newline.
    r"(?:(?:(?!-----BEGIN)[\s\S]){0,32768}?-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:(?:\s|\\[nr])*[A-Za-z0-9+/=]{16,})+)"
)
# Not `/workspace/.deep/home/x`, and not a path of a web page.
_HOME = re.compile(rf"(?=/)(?:(?<![\w.~-])|{_ESCAPED})/(?:home|Users)/[\w@+-](?:[\w.@+-]*[\w@+-])?(?!\w)")
_HOME_ELSEWHERE = re.compile(
    rf"(?=[A-Za-z]:)(?:(?<![A-Za-z0-9])|{_ESCAPED})"
    r"[A-Za-z]:(?:\\{1,4}|/)Users(?:\\{1,4}|/)[\w@+-](?:[\w.@+-]*[\w@+-])?"
)
# Terminal sequences for colours, erasing and links; the raw sequence, or its escape in JSON and source code.
_CONTROL = re.compile(
    r"(?:\x1b|\\(?:u001[bB]|x1[bB]|033|e)|\^\[)"
    r"(?:\[[0-?]{0,64}[ -/]{0,4}[@-~]|\][^\x07\x1b\\\s]*(?:\x07|\x1b\\|\\u0007|\\u001[bB]\\\\)|[()*+][0-9A-Z])"
    r"|\[(?:[0-9;]{1,64}m(?:\[K)?|m\[K)"  # the rest of a sequence without its first character
)
_MARK = "\ufdd0"
"""A character that occurs in no text (it is not a Unicode character), and is not part of a word."""

# fmt: off
_KINDS = frozenset((
    "request", "response", "user-prompt", "system-prompt", "text", "thinking", "tool-call", "tool-return",
    "retry-prompt", "file", "compaction", "speech", "builtin-tool-call", "builtin-tool-return", "instruction",
    "instruction-baseline", "instruction-delta", "instruction-digest", "retry-feedback", "model-settings-delta",
    "tool-availability-delta", "binary", "image-url", "audio-url", "video-url", "document-url", "uploaded-file",
    "cache-point", "text-content", "structured-content", "web", "document", "content", "marker",
))
# fmt: on
"""The names that Pydantic AI uses for messages, their parts, and the fields in these."""


_KEYS_IN_USE: dict[str, str] = {}
"""The keys that this process has read by reference, and their names. They are in no variable."""


def remember(name: str, value: str) -> None:
    """Remove the key `value` from all output of this process from now on; `name` takes its place."""
    if len(value) >= _SHORTEST_API_KEY and value.lower() not in _NO_KEYS:
        _KEYS_IN_USE.setdefault(value, name)


def looks_like_key(text: str) -> bool:
    """Whether a text contains a key by its form, as far as forms of keys are known."""
    return any(pattern.search(text) for pattern in (_TOKEN, _AFTER, _PASSWORD, _PRIVATE_KEY))


def redact(text: str, environment: Mapping[str, str]) -> str:
    """`text` with keys in use and the values of secret variables replaced by their names."""
    for secret, name in _secret_values(tuple(environment.items()), tuple(_KEYS_IN_USE.items())):
        text = name.join(secret.split(text))
    return text


@lru_cache(maxsize=4)
def _secret_values(
    variables: tuple[tuple[str, str], ...], keys: tuple[tuple[str, str], ...]
) -> list[tuple[re.Pattern[str], str]]:
    """What to look for, and what to put in its place. It is asked for with every result of a tool."""
    values: list[tuple[int, re.Pattern[str], str]] = []
    for variable, value in variables:
        for password in _IN_ADDRESS.findall(value):
            values.append((len(password) + 2, re.compile(re.escape(f":{password}@")), f":[{variable}]@"))
        # Blanks around a key in a variable are not sent.
        value = value.strip()
        if _is_secret(variable, value):
            values.append((len(value), re.compile(_word(value)), f"[{variable}]"))
    values += [(len(key), re.compile(_word(key)), f"[{name}]") for key, name in keys]
    # The longest first, because one may be the start of another.
    values.sort(key=lambda item: -item[0])
    return [(pattern, name) for _, pattern, name in values]


def _is_secret(variable: str, value: str) -> bool:
    if len(value) >= _SHORTEST:
        return _SECRET_VARIABLE.search(variable) is not None
    is_key = len(value) >= _SHORTEST_API_KEY and value.lower() not in _NO_KEYS
    return is_key and _API_KEY.search(variable) is not None


def _word(secret: str) -> str:
    """A regular expression for a secret; a short one must be a whole word."""
    pattern = re.escape(secret)
    return pattern if len(secret) >= _SHORTEST else rf"(?:(?<![A-Za-z0-9])|{_ESCAPED}){pattern}(?![A-Za-z0-9])"


class Redaction:
    """Removes secrets and home directories from text; `secrets` and `homes` count the removals.

    A secret of a variable becomes the variable's name in brackets, another one `[redacted]`, a home directory `~`.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.secrets = 0
        self.homes = 0
        self._names = {form: name for name, value in _secrets(environment) for form in _forms(value)}
        forms = sorted(self._names, key=len, reverse=True)
        self._known = re.compile("|".join(map(_word, forms))) if forms else None
        home = environment.get("HOME", "").rstrip("/")
        self._home = home if len(home) > 1 else None
        self._looks = tuple(self._all_looks())

    def _all_looks(self) -> Iterator[_SecretForm]:
        """The patterns, in this order."""
        if self._known is not None:
            names = self._names
            yield _SecretForm(
                lambda text: any(form in text for form in names), self._known, lambda match: f"[{names[match[0]]}]"
            )
        yield _SecretForm(lambda text: "-----BEGIN" in text, _PRIVATE_KEY, lambda match: REDACTED)
        yield _SecretForm(lambda text: "://" in text, _PASSWORD, lambda match: f"{match[1]}:{REDACTED}@")
        yield _SecretForm(_may_say, _AFTER, lambda match: f"{match[1] or match[2]}{REDACTED}")
        yield _SecretForm(lambda text: any(start in text for start in _BEGINNINGS), _TOKEN, lambda match: REDACTED)
        if self._home is not None:
            home = self._home
            home_pattern = re.compile(rf"(?={re.escape(home[0])})(?:(?<![\w.~-])|{_ESCAPED}){re.escape(home)}(?![\w-])")
            yield _SecretForm(lambda text: home in text, home_pattern, _tilde)
        yield _SecretForm(lambda text: "/home/" in text or "/Users/" in text, _HOME, _tilde)
        yield _SecretForm(lambda text: "Users" in text, _HOME_ELSEWHERE, _tilde)

    def text(self, text: str) -> str:
        """`text` without them."""
        has_colour = _CONTROL.search(text) is not None
        plain = _CONTROL.sub("", text) if has_colour else text
        for look in self._looks:
            # Colours may split a secret, or be the only separator between it and a word.
            if has_colour and look.may_be_in(plain):
                text = self._counted(look, text, _without_colours)
            # Searching for the beginnings first takes a tenth of the time, because nearly all text has none.
            if look.may_be_in(text):
                text = self._counted(look, text, _with_marks) if has_colour else text
                text = self._counted(look, text, re.Pattern.subn)
        return text

    def _counted(self, look: _SecretForm, text: str, replace: _Replaced) -> str:
        text, count = replace(look.pattern, look.by, text)
        if look.by is _tilde:
            self.homes += count
        else:
            self.secrets += count
        return text

    def value(self, value: Any) -> Any:
        """A JSON value without them in every string, keys included; keys that become equal get a number."""
        if isinstance(value, str):
            # A key in JSON that is inside a string names its secret only inside that string.
            return self.text(self._inside(value))
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if not isinstance(value, dict):
            return value
        result: dict[str, Any] = {}
        numbers: dict[str, int] = {}
        for key, item in value.items():
            plain = new_key = self.text(key)
            while new_key in result or (new_key != key and new_key in value):
                numbers[plain] = numbers.get(plain, 1) + 1
                new_key = f"{plain} ({numbers[plain]})"
            result[new_key] = item if key in ("kind", "part_kind") and _is_kind(item) else self.value(item)
        return result

    def _inside(self, text: str) -> str:
        """`text` without them if it is an object or array in JSON; unchanged if it contains none."""
        if text.lstrip()[:1] not in ("{", "["):
            return text
        before = self.secrets, self.homes
        try:
            value = json.loads(text)
            result = self.value(value)
            return text if (self.secrets, self.homes) == before else _dumped_like(text, value, result)
        except (ValueError, RecursionError):
            self.secrets, self.homes = before
            return text


_By = Callable[[re.Match[str]], str]
_Replaced = Callable[[re.Pattern[str], _By, str], tuple[str, int]]


class _SecretForm(NamedTuple):
    may_be_in: Callable[[str], bool]
    pattern: re.Pattern[str]
    by: _By


def _tilde(match: re.Match[str]) -> str:
    return "~"


def _may_say(text: str) -> bool:
    lower = text.lower()
    return any(word in lower for word in ("bearer", "authorization", "aws"))


def _is_kind(value: Any) -> bool:
    return isinstance(value, str) and value in _KINDS


def _without_colours(pattern: re.Pattern[str], by: _By, text: str) -> tuple[str, int]:
    """Replace secrets as they are without the colours; colours outside of a secret stay."""
    controls = list(_CONTROL.finditer(text))
    widths = [0, *accumulate(len(match[0]) for match in controls)]
    places = [match.start() - width for match, width in zip(controls, widths, strict=False)]  # in the text without them
    pieces: list[str] = []
    position = count = 0
    for secret in pattern.finditer(_CONTROL.sub("", text)):
        start = secret.start() + widths[bisect_right(places, secret.start())]
        end = secret.end() + widths[bisect_left(places, secret.end())]
        pieces += text[position:start], by(secret)
        position = end
        count += 1
    return "".join([*pieces, text[position:]]), count


def _with_marks(pattern: re.Pattern[str], by: _By, text: str) -> tuple[str, int]:
    """Replace a secret right after a colour, whose last letter is not part of the word."""
    result, count = pattern.subn(by, _CONTROL.sub(lambda control: control[0] + _MARK, text))
    return (result.replace(_MARK, ""), count) if count else (text, 0)


def _dumped_like(text: str, value: Any, result: Any) -> str:
    """`result` in JSON, written like `value` in `text` as far as possible."""
    body = text.strip()
    for ascii_only in (True, False):
        for indent, separators in ((None, (", ", ": ")), (None, (",", ":")), (2, (",", ": ")), (4, (",", ": "))):
            if json.dumps(value, ensure_ascii=ascii_only, indent=indent, separators=separators) == body:
                return text.replace(
                    body, json.dumps(result, ensure_ascii=ascii_only, indent=indent, separators=separators), 1
                )
    before, _, after = text.partition(body)
    return before + json.dumps(result, ensure_ascii=body.isascii(), indent=2 if "\n" in body else None) + after


def _secrets(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield from ((name, value) for value, name in _KEYS_IN_USE.items())
    for variable, value in environment.items():
        if _is_secret(variable, value.strip()):
            yield variable, value.strip()


def _forms(value: str) -> Iterator[str]:
    """The spellings of a secret: plain, in JSON inside a string, and in an address."""
    from urllib.parse import quote

    yield value
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield quote(value, safe="", errors="surrogateescape")
