"""Errors of models and their providers."""

from __future__ import annotations

from tests.errors.situation import Situation, case
from tests.support.loopback import Broken, Raw, Status, ToolCalls, stopped

HELLO = ["chat", "hello", "--user", "alice"]


@case("chat", "no such model")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "nonsense"]


@case("chat", "a model's name without its provider")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "gpt-4o"]


@case("chat", "`$DEEPCTL_MODEL` is no model")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_MODEL", "nonsense")
    return HELLO


@case("chat", "no such provider of models")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "nobody:large"]


@case("chat", "the model's name is empty")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", ""]


@case("chat", "the address of the model's server is no URL")
def _(s: Situation) -> list[str]:
    s.patch.setenv("OPENAI_API_KEY", "sk-nothing")
    s.patch.setenv("OPENAI_BASE_URL", "http://someone:hunter2@[::1")
    return [*HELLO, "--model", "openai-chat:gpt-4o"]


@case("chat", "the provider's client is not installed")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "groq:llama"]


@case("chat", "the provider's key is not set")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "anthropic:claude-sonnet-4-6"]


@case("chat", "the provider's key is set but empty")
def _(s: Situation) -> list[str]:
    s.patch.setenv("OPENAI_API_KEY", "")
    return [*HELLO, "--model", "openai:gpt-5"]


@case("chat", "the provider's key is blank")
def _(s: Situation) -> list[str]:
    s.patch.setenv("OPENAI_API_KEY", " \n")
    return [*HELLO, "--model", "openai:gpt-5"]


@case("chat", "the key of OpenAI, or of a server like it, is not set")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "openai:gpt-5"]


@case("chat", "the provider refuses the key", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Status(401, "bad key"), repeat_last=True)]


@case("chat", "the provider limits the rate of requests", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Status(429, "slow down"), repeat_last=True)]


@case("chat", "the provider fails", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Status(500, "oops"), repeat_last=True)]


@case("chat", "the provider refuses the request", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Status(400, "nonsense"), repeat_last=True)]


@case("chat", "the conversation is too long for the model", prints=True)
def _(s: Situation) -> list[str]:
    said = "This model's maximum context length is 8 tokens."
    return [*HELLO, *s.provider(Status(400, said), repeat_last=True)]


@case("chat", "nobody answers at the provider's address", prints=True)
def _(s: Situation) -> list[str]:
    options = s.provider(Status(500))
    s.patch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    s.configure("retries = 0\n")
    return [*HELLO, *options]


@case("chat", "the connection breaks in the middle of an answer", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Broken("cut"), repeat_last=True)]


@case("chat", "the answer stops without an end", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Broken("clean"), repeat_last=True)]


@case("chat", "the answer is not JSON", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Broken("json"), repeat_last=True)]


@case("chat", "the provider's content filter stops the answer", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(stopped("content_filter"), repeat_last=True)]


@case("chat", "the answer is cut off before it has any text", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(stopped("length"), repeat_last=True)]


@case("chat", "the answer cannot be read", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Raw(b"garbage", headers={"Content-Encoding": "gzip"}), repeat_last=True)]


@case("chat", "the provider asks to wait for long", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Status(429, "slow down", {"Retry-After": "90"}), repeat_last=True)]


def _limited(s: Situation, setting: str, calls: ToolCalls, model: str = "openai-chat:loopback") -> list[str]:
    s.configure(f"{setting}\n")
    s.provider(calls, repeat_last=True)
    return [*HELLO, "--model", model]


_LIST = [("ls", {"path": "."})]


@case("chat", "the model goes on calling tools", prints=True)
def _(s: Situation) -> list[str]:
    return _limited(s, "max_requests = 2", ToolCalls(_LIST))


@case("chat", "the turn has used its tokens", prints=True)
def _(s: Situation) -> list[str]:
    return _limited(s, "max_tokens = 20", ToolCalls(_LIST))


@case("chat", "the turn has cost what it may", prints=True)
def _(s: Situation) -> list[str]:
    return _limited(s, "max_cost = 0.000001", ToolCalls(_LIST), "openai-chat:gpt-4o")


@case("chat", "the provider does not say what a turn takes, which is limited", prints=True)
def _(s: Situation) -> list[str]:
    return _limited(s, "max_tokens = 1000", ToolCalls(_LIST, used=None))


@case("chat", "money is limited, and nobody knows the model's price")
def _(s: Situation) -> list[str]:
    return _limited(s, "max_cost = 0.50", ToolCalls(_LIST))
