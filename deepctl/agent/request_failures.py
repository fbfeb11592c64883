"""The kinds of failed requests to a model, by the exceptions of the clients and the texts of the servers.

Retries, compaction and the choice of pictures depend on the kind. `deepctl.agent.provider_errors` has the errors that
users see.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic_ai import exceptions

from deepctl.agent.response_recorder import LastResponse, error_text, is_page

PASSING = (
    exceptions.ModelRateLimitError,
    exceptions.ModelUnavailableError,
    exceptions.ModelServerError,
    exceptions.ModelConnectionError,
)
"""Failures that may not happen again with the same request."""
_PASSING_STATUS = (408, 409, 425)
PAGE = "a web page"
"""The text in place of HTML."""

# Error texts of servers. Sources: their own source code and API references.
SetupProblem = Literal["tool flags", "jinja", "tools", "not loaded", "no model"]
_SETUP: dict[SetupProblem, re.Pattern[str]] = {
    "tool flags": re.compile(r"--enable-auto-tool-choice|--tool-call-parser", re.IGNORECASE),  # vLLM
    "jinja": re.compile(r"--jinja", re.IGNORECASE),  # llama.cpp
    "tools": re.compile(
        r"does not support (tool|function)|tools?[ _-](use|calling|choice)\W* is not supported|support tool use"
        r"|(tool|function)s? (is|are) not supported|not support (tools|tool use|function calling)",
        re.IGNORECASE,
    ),
    "not loaded": re.compile(r"no models? (is |are )?(currently )?loaded", re.IGNORECASE),  # LM Studio
    "no model": re.compile(
        r"model\b.{0,200}?\b(not found|not exist|n't exist|no longer available|not a valid model)"
        r"|not a valid model|(unknown|invalid|no such) model\b|model_not_found|could not find.{0,80}model"
        r"|^model: \S+$",  # Anthropic
        re.IGNORECASE | re.DOTALL,
    ),
}
_NO_PICTURES = re.compile(
    r"\b(images?|vision|image input|image content block|multi-?modal)\b.{0,40}(\bnot|n't) (be )?(supported|enabled)"
    r"|(\bnot|n't) (support|accept) (the )?(images?|vision|multi-?modal)|not a multi-?modal model|mmproj"
    r"|missing data required for image|support image input|only supported by certain models"
    r"|unsupported content part type|expected `text`|allowed values: \['text'\]",
    re.IGNORECASE,
)
_BAD_PICTURE = re.compile(
    r"(unsupported|invalid|valid|load|process|parse|decode|identify|provided|input) (input )?image"
    r"|image_(parse|format)|invalid_image|image_too|image(_url)?\.source|image dimensions|image exceeds"
    r"|image(_url)?:? (unknown|invalid)|image (data|format|media type|file|type|size|url)|unsupported mime type"
    r"|only image types|(at most|too many|up to|exceeds?|maximum).{0,40}\bimages?\b",
    re.IGNORECASE,
)
_ANY_ARGUMENT = re.compile(r"^request contains an invalid argument", re.IGNORECASE)  # Gemini, for unknown formats
_OVERFLOW = re.compile(
    # OpenAI (Chat Completions), vLLM, OpenRouter: "This model's maximum context length is 8192 tokens. However, you
    # requested 9100 tokens". vllm-project/vllm issues 965, 20409; refly-ai/refly issue 1177.
    r"maximum context length|max_model_len|longer than the maximum model length"
    # OpenAI (Responses): "Your input exceeds the context window of this model." dyad-sh/dyad issue 1672.
    r"|context_length_exceeded|exceeds? the (model's )?context (window|limit)|context (window|length) exceeded"
    # Anthropic: "prompt is too long: 208310 tokens > 200000 maximum"; "input length and `max_tokens` exceed context
    # limit: 178959 + 64000 > 200000". anthropics/claude-code issue 12186, docker/docker-agent issue 569.
    r"|prompt is too long|exceed context limit|model_context_window_exceeded|request_too_large"
    # llama.cpp: "the request exceeds the available context size, try increasing it"; in a stream: "Context size has
    # been exceeded." ggml-org/llama.cpp pull request 15780, issue 17284.
    r"|exceed_context_size_error|available context size|context size has been exceeded"
    # llama-cpp-python: "Requested tokens (2285) exceed context window of 2048". abetlen/llama-cpp-python issue 416.
    r"|exceed context window of"
    # Ollama: "the input length exceeds the context length"; "prompt too long; exceeded max context length by 4 tokens".
    # nano-step/nano-brain issue 208; server/prompt.go of ollama/ollama.
    r"|input length exceeds the context length|prompt too long|exceeded max context length"
    # LM Studio: "Trying to keep the first 10136 tokens when context the overflows. However, the model is loaded with
    # context length of only 7866 tokens"; "Cannot truncate prompt with n_keep (15028) >= n_ctx (7424)".
    # lmstudio-ai/lmstudio-bug-tracker issues 237, 546; anomalyco/opencode issue 11141.
    r"|tokens when context( the)? overflows|context length of only|greater than the context length"
    r"|truncate prompt with n_keep"
    # Gemini: "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575)". pydantic-ai.
    r"|input token count.{0,40}exceeds|maximum number of tokens allowed"
    # Bedrock: "Input is too long for requested model." pydantic-ai.
    r"|input is too long|input tokens exceed"
    # LiteLLM: "litellm.ContextWindowExceededError: …", before the text of the provider. Its docs/exception_mapping.md.
    r"|ContextWindowExceededError"
    # Groq: "Please reduce the length of the messages or completion."; Together, SGLang: "The input (516368 tokens) is
    # longer than the model's context length (262144 tokens)."; xAI: "This model's maximum prompt length is 131072".
    r"|reduce the length of the (input )?messages|longer than the model's context length|maximum prompt length is",
    re.IGNORECASE | re.DOTALL,
)
_MALFORMED = re.compile(r"illegal|malformed|invalid|too many|too large|unsupported", re.IGNORECASE)
_ALERT = r"\x15\x03"
"""The first bytes of an alert of TLS, in the notation of exceptions."""


class SilentModel(exceptions.ModelAPIError):
    """An answer did not begin, or did not continue, within `seconds`."""

    def __init__(self, model_name: str, seconds: float, *, has_begun: bool) -> None:
        super().__init__(model_name, f"no answer for {seconds:g} s")
        self.seconds = seconds
        self.has_begun = has_begun


def is_temporary(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, exceptions.ModelHTTPError) and error.provider_retry_hint is False:
        return False
    if refused_pictures(error) is not None:
        return False  # llama.cpp and Ollama report it with status 500
    if is_overflow(error):
        return False
    if unreadable(error) is not None:
        return False
    if isinstance(error, exceptions.ModelAPIError) and setup_problem(error) is not None:
        return False
    return isinstance(error, PASSING) or (
        isinstance(error, exceptions.ModelHTTPError) and error.status_code in _PASSING_STATUS
    )


def refused_pictures(error: BaseException) -> Literal["all", "some", "size"] | None:
    """Which pictures of a request a provider refuses, if this is the reason of a failure.

    `all`: the model accepts none. `some`: one of them, or their number. `size`: the request is too large.
    Sources: the wordings of OpenAI, Anthropic, Gemini, Bedrock, llama.cpp, Ollama, vLLM, LM Studio and OpenRouter, in
    their references, their source code and reports of users.
    """
    if not isinstance(error, exceptions.ModelAPIError) or isinstance(
        error,
        (
            exceptions.ModelConnectionError,
            exceptions.ModelRateLimitError,
            exceptions.ModelAuthenticationError,
            exceptions.ModelContextWindowExceededError,
        ),
    ):
        return None
    if status_of(error) in (401, 402, 403, 429):
        return None
    text = detail_of(error)
    if _NO_PICTURES.search(text):
        return "all"
    if _BAD_PICTURE.search(text) or _ANY_ARGUMENT.search(text):
        return "some"
    return "size" if status_of(error) == 413 else None


def is_overflow(error: BaseException, last: LastResponse | None = None) -> bool:
    """Whether a server refuses a request because it is longer than the context window of the model.

    A limit of tokens per minute (HTTP 429) does not count: a shorter request helps only until the next one. `last` is
    used for answers without a status of an error.
    """
    if isinstance(error, exceptions.ModelContextWindowExceededError) or status_of(error) == 413:
        return True
    if isinstance(error, exceptions.ModelAPIError) and not isinstance(
        error,
        (
            exceptions.ModelConnectionError,
            exceptions.ModelRateLimitError,
            exceptions.ModelQuotaExceededError,
            exceptions.ModelAuthenticationError,
        ),
    ):
        body = getattr(error, "body", None)
        # OpenRouter has the text of the provider that it asked in there.
        inner = body.get("metadata") if isinstance(body, dict) else None
        words = (detail_of(error), error.provider_error_code, error.provider_error_type, inner)
        return any(_OVERFLOW.search(str(word)) for word in words if word)
    answer = last.error() if last is not None and isinstance(error, exceptions.UnexpectedModelBehavior) else None
    return answer is not None and _OVERFLOW.search(answer) is not None


def setup_problem(error: exceptions.ModelAPIError) -> SetupProblem | None:
    """What a server, or the model, lacks for the request, if the server reports that this is the reason."""
    if isinstance(error, (exceptions.ModelConnectionError, exceptions.ModelRateLimitError)):
        return None
    if isinstance(error, exceptions.ModelHTTPError) and error.status_code in (401, 403):
        return None
    return setup_problem_in(detail_of(error))


def setup_problem_in(text: str) -> SetupProblem | None:
    """The same for the text of a server's error."""
    return next((problem for problem, pattern in _SETUP.items() if pattern.search(text)), None)


def unreadable(error: BaseException) -> str | None:
    """A description of unreadable data from a working connection; `None` for another failure, and for a TLS alert."""
    if isinstance(error, exceptions.ModelHTTPError) or not (
        isinstance(error, exceptions.ModelAPIError) or is_clients(error)
    ):
        return None
    for cause in causes_of(error):
        text = words_of(cause)
        if type(cause).__name__ == "DecodingError":
            return "data that cannot be decompressed"
        if type(cause).__name__ == "RemoteProtocolError" and _MALFORMED.search(text):
            if "illegal status line" in text:
                return None if _ALERT in text else "what is not HTTP"
            return "invalid HTTP"
    return None


def status_of(error: BaseException) -> int | None:
    """The HTTP status of a failure; the status of a redirection is only in an exception of the client."""
    for cause in causes_of(error):
        status = getattr(cause, "status_code", None)
        if isinstance(status, int):
            return status
    return None


def is_clients(error: BaseException) -> bool:
    """Whether an exception comes from a provider's client: a failed connection that its adapter did not translate."""
    package = type(error).__module__.partition(".")[0]
    return package in ("openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2", "json", "google", "groq")


def detail_of(error: BaseException) -> str:
    """The server's own text, if there is one; the text of the exception only if the server has sent no body."""
    body = None if isinstance(error, exceptions.UnexpectedModelBehavior) else getattr(error, "body", None)
    if isinstance(body, str) and is_page(body):
        return PAGE
    if (text := error_text(body)) is not None:
        return PAGE if is_page(text) else text
    if isinstance(error, exceptions.ModelHTTPError):
        return str(body) if body and body is not True else ""
    return words_of(error) or type(error).__name__


def words_of(error: BaseException) -> str:
    """The text of an exception."""
    if isinstance(error, exceptions.UnexpectedModelBehavior):
        return error.message  # `str` would add JSON of pydantic-ai
    try:
        return str(error)
    except TypeError:  # the server's message was not a text
        return ""


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes, each once."""
    causes: list[BaseException] = []
    while error not in causes:
        causes.append(error)
        yield error
        error = error.__cause__ or error.__context__ or error
