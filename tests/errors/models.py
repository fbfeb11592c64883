"""Errors of models and their providers."""

from __future__ import annotations

from tests.errors.situation import Situation, case
from tests.support.loopback import Broken, Status, ToolCalls

HELLO = ["chat", "hello", "--user", "alice"]


@case("chat", "no such model")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "nonsense"]


@case("chat", "no such provider of models")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "nobody:large"]


@case("chat", "the model's name is empty")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", ""]


@case("chat", "the provider's client is not installed")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "groq:llama"]


@case("chat", "the provider's key is not set")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "anthropic:claude-sonnet-4-5"]


@case("chat", "the provider's key is set but empty")
def _(s: Situation) -> list[str]:
    s.patch.setenv("OPENAI_API_KEY", "")
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


# Fifty requests take their time.
@case("chat", "the model goes on calling tools", only="json")
def _(s: Situation) -> list[str]:
    model = s.provider(ToolCalls([("ls", {"path": "."})]), repeat_last=True)
    return ["chat", "hello", "--ephemeral", *model]
