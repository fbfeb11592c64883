"""Errors of models and their providers."""

from __future__ import annotations

import sys

from tests.errors.situation import Situation, case
from tests.support.loopback import Broken, Raw, Stalled, Status, Text, ToolCalls, stopped

HELLO = ["chat", "hello", "--user", "alice"]


@case("chat", "the model does not exist")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "nonsense"]


@case("chat", "the name of the model lacks its provider")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "gpt-4o"]


@case("chat", "`$DEEPCTL_MODEL` is not the name of a model")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_MODEL", "nonsense")
    return HELLO


@case("chat", "the provider of the model does not exist")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "nobody:large"]


@case("chat", "the name of the model is empty")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", ""]


@case("chat", "the address of the model's server is invalid")
def _(s: Situation) -> list[str]:
    s.patch.setenv("OPENAI_API_KEY", "sk-nothing")
    s.patch.setenv("OPENAI_BASE_URL", "http://someone:hunter2@[::1")
    return [*HELLO, "--model", "openai-chat:gpt-4o"]


@case("chat", "the provider's client is not installed")
def _(s: Situation) -> list[str]:
    return [*HELLO, "--model", "groq:llama"]


@case("chat", "the packages of the setting `otel` are not installed")
def _(s: Situation) -> list[str]:
    s.configure("otel = true\n")
    s.patch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    return HELLO


@case("chat", "the packages of the setting `web` are not installed")
def _(s: Situation) -> list[str]:
    s.configure('web = "auto"\n')
    s.patch.setitem(sys.modules, "markdownify", None)
    return HELLO


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


@case("chat", "the provider reports an error of its own", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Status(500, "oops"), repeat_last=True)]


@case("chat", "the provider refuses the request", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Status(400, "nonsense"), repeat_last=True)]


@case("chat", "the conversation is longer than the context window of the model", prints=True)
def _(s: Situation) -> list[str]:
    said = "This model's maximum context length is 8 tokens."
    return [*HELLO, *s.provider(Status(400, said), repeat_last=True)]


@case("chat", "nothing listens at the address of the provider", prints=True)
def _(s: Situation) -> list[str]:
    options = s.provider(Status(500))
    s.patch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    s.configure("retries = 0\n")
    return [*HELLO, *options]


@case("chat", "Ollama does not run", prints=True)
def _(s: Situation) -> list[str]:
    s.configure("retries = 0\n")
    s.patch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    return [*HELLO, "--model", "ollama:m"]


@case("chat", "the connection breaks in the middle of an answer", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Broken("cut"), repeat_last=True)]


@case("chat", "the answer ends before it is complete", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Broken("clean"), repeat_last=True)]


@case("chat", "the answer is not JSON", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Broken("json"), repeat_last=True)]


@case("chat", "the answer does not begin in time", prints=True)
def _(s: Situation) -> list[str]:
    s.configure("first_answer_timeout = 1\n")
    return [*HELLO, *s.provider(Stalled([]), repeat_last=True)]


@case("chat", "the answer does not continue in time", prints=True)
def _(s: Situation) -> list[str]:
    s.configure("idle_timeout = 1\n")
    return [*HELLO, *s.provider(Stalled(["Half an "]), repeat_last=True)]


@case("chat", "the provider's content filter stops the answer", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(stopped("content_filter"), repeat_last=True)]


@case("chat", "the model refuses to answer", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Text([], refusal="I cannot help with that."), repeat_last=True)]


@case("chat", "the answer reaches its maximum length", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Text(["Half an"], finish="length"), repeat_last=True)]


@case("chat", "the answer reaches its maximum length in a tool call", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(ToolCalls(_LIST, finish="length"), repeat_last=True)]


@case("chat", "the answer fills the context window of the model", prints=True)
def _(s: Situation) -> list[str]:
    s.configure("context_window = 1000\ncompact_at = 'never'\n")
    return [*HELLO, *s.provider(Text(["Half an"], finish="length", used=(990, 10)), repeat_last=True)]


@case("chat", "the answer reaches its maximum length before its text begins", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(stopped("length"), repeat_last=True)]


@case("chat", "the answer cannot be decompressed", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Raw(b"garbage", headers={"Content-Encoding": "gzip"}), repeat_last=True)]


@case("chat", "the provider asks for a long wait", prints=True)
def _(s: Situation) -> list[str]:
    return [*HELLO, *s.provider(Status(429, "slow down", {"Retry-After": "90"}), repeat_last=True)]


def _limited(s: Situation, setting: str, calls: ToolCalls, model: str = "openai-chat:loopback") -> list[str]:
    s.configure(f"{setting}\n")
    s.provider(calls, repeat_last=True)
    return [*HELLO, "--model", model]


_LIST = [("ls", {"path": "."})]


@case("chat", "the turn reaches the limit for requests", prints=True)
def _(s: Situation) -> list[str]:
    return _limited(s, "max_requests = 2", ToolCalls(_LIST))


@case("chat", "the turn reaches the limit for tokens", prints=True)
def _(s: Situation) -> list[str]:
    return _limited(s, "max_tokens = 20", ToolCalls(_LIST))


@case("chat", "the turn reaches the limit for its cost", prints=True)
def _(s: Situation) -> list[str]:
    return _limited(s, "max_cost = 0.000001", ToolCalls(_LIST), "openai-chat:gpt-4o")


@case("chat", "tokens are limited, and the provider does not report their number", prints=True)
def _(s: Situation) -> list[str]:
    return _limited(s, "max_tokens = 1000", ToolCalls(_LIST, used=None))


@case("chat", "the cost is limited, and the price of the model is unknown")
def _(s: Situation) -> list[str]:
    return _limited(s, "max_cost = 0.50", ToolCalls(_LIST))


@case("chat", "the budget of a day is used up", prints=True)
def _(s: Situation) -> list[str]:
    return _limited(s, "max_tokens_day = 30000", ToolCalls(_LIST, used=(30000, 7)))


@case("chat", "the budget of a month is used up", prints=True)
def _(s: Situation) -> list[str]:
    return _limited(s, "max_cost_month = 0.5", ToolCalls(_LIST, used=(900000, 7)), "openai-chat:gpt-4o")


@case("chat", "the next request alone takes more than is left of a budget")
def _(s: Situation) -> list[str]:
    s.story()
    with s.settings.open("a") as settings:
        settings.write("max_cost_day = 0.000001\n")
    s.provider(ToolCalls(_LIST))
    return [*HELLO, "--model", "openai-chat:gpt-4o"]


@case("chat", "the cost of a day is limited, and the price of the model is unknown")
def _(s: Situation) -> list[str]:
    return _limited(s, "max_cost_day = 0.50", ToolCalls(_LIST))
