"""The errors for failed requests to a model: the cause of the failure, and a hint for the user.

The error depends on the place of the failure (the connection, a proxy, the server, its answer), not on the type of the
exception; `deepctl.agent.request_failures` has the texts of servers. A server's own text is shown: on one line,
bounded, without secrets, and never as HTML.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic_ai import exceptions

from deepctl.agent.limits import LARGER_WINDOW, LimitReached
from deepctl.agent.request_failures import (
    PAGE,
    PASSING,
    SilentModel,
    causes_of,
    detail_of,
    is_clients,
    is_overflow,
    is_temporary,
    setup_problem,
    setup_problem_in,
    status_of,
    unreadable,
    words_of,
)
from deepctl.agent.response_recorder import LastResponse
from deepctl.domain import addresses, env_variables, provider_keys
from deepctl.errors import CONTEXT_OVERFLOW, DeepctlError, ModelFailed
from deepctl.redaction import redact

MAX_DETAIL = 300
EMPTY = "the answer is empty"
"""The text of the exception for a test request without an answer."""
_FINAL = (exceptions.ModelQuotaExceededError, exceptions.ModelRequestRejectedError)

_NO_TLS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
_VERSIONED = re.compile(r"/v[0-9]+[a-z0-9]*(/|$)")

_NOT_FOUND = re.compile(r"not found|unknown (url|path|route)|no route", re.IGNORECASE)
_FIELDS = {
    "max_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens"),
    "thinking": ("thinking", "reasoning", "reasoning_effort", "effort", "budget_tokens", "thinkingConfig"),
    "stop_sequences": ("stop_sequences", "stop", "stopSequences"),
    "top_p": ("top_p", "topP"),
    "top_k": ("top_k", "topK"),
    "presence_penalty": ("presence_penalty", "presencePenalty"),
    "frequency_penalty": ("frequency_penalty", "frequencyPenalty"),
}
"""The names of settings in the requests of the providers."""
_PLAIN_TO_TLS = re.compile(r"plain HTTP request was sent to HTTPS port|HTTP request to an HTTPS server", re.IGNORECASE)


class ModelEndpoint(NamedTuple):
    """The target of a request: the model's full name, the address, and the origin of the address.

    `origin` is `base_url` or a variable with its dollar sign; `None` for the provider's own address.
    """

    model: str
    address: str
    origin: str | None
    environment: Mapping[str, str]
    last: LastResponse
    key: str | None = None
    """The reference to the key, in words; `None` if the key comes from the environment."""
    settings: Mapping[str, object] = MappingProxyType({})
    """The values of `[model_settings]` that the requests have."""
    is_own: bool = False
    """Whether the address can be a server of your own."""
    window: int | None = None
    """The context window that the server has reported, in tokens."""
    context_window: int | None = None
    """The setting."""
    tools: str = "full"
    """The setting."""
    has_history: bool = False
    """Whether the request continues a conversation."""
    has_results: bool = False
    """Whether a tool has run in the turn."""
    has_begun: bool = False
    """Whether a part of the answer has arrived."""

    @property
    def place(self) -> str:
        """The host and the port."""
        try:
            return urlsplit(self.address).netloc.rpartition("@")[2]
        except ValueError:
            return ""

    @property
    def named_origin(self) -> str:
        """The origin of the address, as the subject of a sentence."""
        return self.origin or "the address of the provider"


def model_endpoint(
    name: str, base_url: str | None, address: str, environment: Mapping[str, str], last: LastResponse | None
) -> ModelEndpoint:
    """The target of requests to the model called `name`. `base_url` is the setting."""
    provider = provider_keys.provider(name)
    variables = (*env_variables.ADDRESSES.get(provider, ()), *(("OLLAMA_HOST",) if provider == "ollama" else ()))
    origin = next((f"${variable}" for variable in variables if env_variables.value(environment, variable)), None)
    return ModelEndpoint(
        name, address, "base_url" if provider == "openai" and base_url else origin, environment, last or LastResponse()
    )


def _setup_hint(text: str, model: str) -> str | None:
    """A hint about what a server, or the model, lacks, if the text of the server names it."""
    provider, _, name = model.rpartition("/")[2].partition(":")
    match setup_problem_in(text):
        case None:
            return None
        case "tool flags":
            return "Start the server with --enable-auto-tool-choice and the --tool-call-parser of this model."
        case "jinja":
            return "Start llama-server with --jinja; otherwise it accepts no tools."
        case "tools":
            return (
                "The agent needs a model that can call tools: choose one with --model or /model, or set "
                "model_profile.supports_tools to false."
            )
        case "not loaded":
            return "Load the model in the server first; `deepctl models` lists its models."
    if provider == "ollama" or "try pulling it" in text:
        return f"`ollama pull {name}` downloads it; `deepctl models` lists the models of the server."
    return "`deepctl models` lists the models of your own servers; --model or /model selects another model."


def failure(error: BaseException, to: ModelEndpoint) -> DeepctlError | None:
    """The error for a failed run: one line, exit 7, and whether a retry can help; `None` if the model did not fail."""
    if isinstance(error, LimitReached):
        return _at_limit(error, to.model)
    if isinstance(error, exceptions.UsageLimitExceeded):
        return ModelFailed(
            f"The turn was stopped at a limit ({first_sentence(reason(error, to))}).",
            "Tell the agent to continue, or give it a smaller task.",
            code="usage_limit",
        )
    if isinstance(error, SilentModel):
        return _silent(error, to.model)
    if is_overflow(error, to.last):
        return ModelFailed(
            f"The request is longer than the context window of {to.model} ({reason(error, to)}).",
            _overflow_hint(to),
            code=CONTEXT_OVERFLOW,
        )
    if (problem := unreadable(error)) is not None:
        return ModelFailed(
            f"The server of {to.model} at {to.place} answered with {problem}.",
            f"Check {to.origin}: it may name a server of another kind." if to.origin else None,
            code="model_connection",
        )
    if isinstance(error, exceptions.ModelConnectionError):
        return _no_connection(error, to)
    status = status_of(error)
    if isinstance(error, exceptions.ModelAPIError) and setup_problem(error) is not None:
        return _refused(error, to, _setup_hint(detail_of(error), to.model))
    if status == 407:
        return _proxy_refused(to)
    if status is not None and 300 <= status < 400:
        return _redirected(error, to, status)
    if isinstance(error, exceptions.ModelHTTPError) and not error.in_stream and status is not None and status < 500:
        text = detail_of(error)
        if _PLAIN_TO_TLS.search(text):
            return _refused(
                error, to, f"{_sentence(to.named_origin)} begins with http://, but the server needs https://."
            )
        if status in (404, 405, 501) or text == PAGE:
            return _refused(error, to, _address_hint(to))
    if isinstance(error, exceptions.ModelAuthenticationError):
        return ModelFailed(
            f"The provider of {to.model} refused the key ({reason(error, to)}).",
            _key_hint(to),
            code="model_key_refused",
        )
    if isinstance(error, exceptions.ModelRateLimitError):
        return ModelFailed(
            f"The provider of {to.model} limits the rate of requests ({reason(error, to)}).{_wait(error)}",
            "Try again later.",
            code="model_rate_limited",
            retryable=True,
        )
    if is_temporary(error) or isinstance(error, PASSING):
        return ModelFailed(
            f"The provider of {to.model} failed ({reason(error, to)}).{_wait(error)}",
            "Try again later.",
            code="model_provider_failed",
            retryable=True,
        )
    if isinstance(error, _FINAL) or (status is not None and 400 <= status < 500):
        return _refused(error, to, _setting_hint(error, to))
    # Clients treat every response as an answer, and can raise any exception for other content.
    if isinstance(error, exceptions.AgentRunError) or is_clients(error) or to.last.is_no_answer:
        return _unusable(error, to)
    return None


def _overflow_hint(to: ModelEndpoint) -> str | None:
    """What makes requests fit. Settings that have no effect, or have this value already, are left out."""
    steps = []
    if to.is_own:
        window_now = f", which is {to.window} tokens now" if to.window is not None else ""
        steps.append(f"Start the server with a larger window{window_now} ({LARGER_WINDOW}).")
    if to.context_window is not None:
        steps.append(f"If context_window ({to.context_window}) is more than the window of the model, lower it.")
    elif to.window is None:
        steps.append("Set context_window to the window of the model, so that conversations are summarised in time.")
    if to.tools != "lean":
        steps.append("`deepctl config set tools lean` makes requests shorter.")
    if to.has_history:
        steps.append("`deepctl sessions compact` shortens this conversation; `--new` starts another one.")
    return " ".join(steps) or None


def _silent(error: SilentModel, model: str) -> ModelFailed:
    if error.has_begun:
        return ModelFailed(
            f"The answer of {model} did not continue for {error.seconds:g} s and was stopped (idle_timeout).",
            "Tell the agent to continue, or set idle_timeout to more seconds.",
            code="idle_timeout",
            retryable=True,
        )
    return ModelFailed(
        f"{model} has not begun to answer for {error.seconds:g} s (first_answer_timeout).",
        "Check the server. If it needs longer to load the model or to think, set first_answer_timeout to more seconds.",
        code="idle_timeout",
        retryable=True,
    )


def _refused(error: BaseException, to: ModelEndpoint, hint: str | None) -> ModelFailed:
    return ModelFailed(
        f"The provider of {to.model} refused the request ({reason(error, to)}).", hint, code="model_request_refused"
    )


def _setting_hint(error: BaseException, to: ModelEndpoint) -> str | None:
    """A hint about a setting of `[model_settings]` that the provider names in its error."""
    text = detail_of(error)
    for key, value in to.settings.items():
        body = value if isinstance(value, dict) else ()
        names = [*_FIELDS.get(key, (key,)), *body]
        if any(re.search(rf"(?<![a-z]){re.escape(name)}(?![a-z])", text, re.IGNORECASE) for name in names):
            option = " (or --thinking)" if key == "thinking" else ""
            return f"The request has {key} from [model_settings]{option}: change or remove model_settings.{key}."
    return None


def _address_hint(to: ModelEndpoint) -> str | None:
    """A hint about a probably wrong address, at which the requested path does not exist."""
    if to.origin is None:
        return None
    path = urlsplit(to.address).path.rstrip("/")
    provider = to.model.partition(":")[0]
    for end in ("/chat/completions", "/completions", "/responses", "/messages"):
        if path.endswith(end):
            return f"{_sentence(to.origin)} ends in {end}, which deepctl adds itself. Remove it."
    if provider == "anthropic":
        return (
            f"Check {to.origin}: it must be the address of the server, without /v1."
            if _VERSIONED.search(path)
            else (f"Check {to.origin}.")
        )
    whole = addresses.without_passwords(to.address).rstrip("/")
    lacks = "" if _VERSIONED.search(path) else f"{_sentence(to.origin)} probably lacks /v1: {whole}/v1. "
    if provider in ("openai", "openai-responses"):
        return (
            f"{lacks}Most local servers do not have the Responses API. Choose "
            f"openai-chat:{to.model.partition(':')[2]}, which uses the Chat Completions API."
        )
    return lacks.strip() or f"Check {to.origin}{'' if path.endswith('/v1') else ': its path is usually /v1'}."


def _sentence(text: str) -> str:
    return f"The setting {text}" if text == "base_url" else text[:1].upper() + text[1:]


def _key_hint(to: ModelEndpoint) -> str:
    if to.key is not None:
        return f"Check the API key: {to.key}."
    names = provider_keys.VARIABLES.get(provider_keys.provider(to.model), ())
    present = [f"${name}" for name in names if env_variables.value(to.environment, name)]
    if present:
        return f"Check the API key in {' and '.join(present)}."
    return f"Set {' or '.join(f'${name}' for name in names)}." if names else "Check the API key."


def _redirected(error: BaseException, to: ModelEndpoint, status: int) -> ModelFailed:
    responses = [getattr(response, "response", None) for response in causes_of(error)]
    location = next((response.headers.get("location", "") for response in responses if response is not None), "")
    where = addresses.without_passwords(shown_text(location, to.environment))
    destination = where or "another address"
    return ModelFailed(
        f"The server of {to.model} at {to.place} redirects to {destination} (HTTP {status}); "
        "redirects are not followed.",
        f"If the server has moved there, change {to.origin}." if to.origin else None,
        code="model_request_refused",
    )


def _proxy_refused(to: ModelEndpoint) -> ModelFailed:
    proxy = env_variables.proxy_of(to.address, to.environment)
    name = f"in ${proxy.variable} ({proxy.place})" if proxy else f"on the way to {to.place}"
    return ModelFailed(
        f"The proxy {name} needs a name and a password (HTTP 407).",
        "Put them into its address: http://NAME:PASSWORD@HOST:PORT.",
        code="model_connection",
    )


def _no_connection(error: exceptions.ModelConnectionError, to: ModelEndpoint) -> ModelFailed:
    """The error for a failed connection: a proxy, the server's certificate, the wrong protocol, or the network."""
    chain = list(causes_of(error))
    tls = next((cause for cause in chain if isinstance(cause, ssl.SSLError)), None)
    proxy = env_variables.proxy_of(to.address, to.environment)
    if proxy is not None and tls is None and _is_proxys(chain):
        if (_said_by_proxy(error) or "").startswith("407"):
            return _proxy_refused(to)
        detail = reason(error, to._replace(address=f"http://{proxy.place}"))
        return ModelFailed(
            f"The connection to the proxy in ${proxy.variable} failed ({detail}).",
            f"Check ${proxy.variable}. Hosts in $NO_PROXY are reached without a proxy.",
            code="model_connection",
            retryable=True,
        )
    hint = f"Check the network{f' and {to.origin}' if to.origin else ''}, or try again later."
    place = ""
    if to.has_begun:
        place = " in the middle of an answer"
        hint = (
            "The part that arrived is kept. Tell the agent to continue, or send the prompt again (in an interactive "
            "chat: /retry)."
        )
    elif addresses.is_loopback(to.address) and any(isinstance(cause, ConnectionRefusedError) for cause in chain):
        is_ollama = to.model.startswith("ollama:")
        server = "Start Ollama (`ollama serve`)" if is_ollama else "Start the server"
        origin = to.origin or ("$OLLAMA_HOST" if is_ollama else None)
        hint = f"No server listens there. {server}{f', or change {origin}' if origin else ''}."
    retryable = True
    if isinstance(tls, ssl.SSLCertVerificationError):
        hint = (
            "Neither the certificate nor its authority is in the file that $SSL_CERT_FILE names."
            if env_variables.value(to.environment, "SSL_CERT_FILE")
            else "If you trust the certificate, set $SSL_CERT_FILE to a file that contains it or its authority."
        )
        retryable = False
    elif tls is not None and any(word in str(tls) for word in _NO_TLS):
        hint = f"{_sentence(to.named_origin)} begins with https://, but the server may need http://."
        retryable = False
    elif to.address.startswith("http://") and any("illegal status line" in str(cause) for cause in chain):
        hint = f"{_sentence(to.named_origin)} begins with http://, but the server may need https://."
        retryable = False
    return ModelFailed(
        f"The connection to the provider of {to.model} failed{place} ({reason(error, to)}).",
        hint,
        code="model_connection",
        retryable=retryable,
    )


def _is_proxys(chain: list[BaseException]) -> bool:
    """Whether a connection through a proxy failed at the proxy."""
    names = {type(cause).__name__ for cause in chain}
    return bool(names & {"ProxyError", "ConnectError", "ConnectTimeout", "SOCKSError"})


def _empty_hint(to: ModelEndpoint) -> str:
    if not to.settings:
        return "Try again, or choose another model."
    return f"Try again, or choose another model. The request has these [model_settings]: {', '.join(to.settings)}."


def _unusable(error: BaseException, to: ModelEndpoint) -> ModelFailed:
    """An answer that arrived and is not valid."""
    text = words_of(error)
    is_end = isinstance(error, exceptions.UnexpectedModelBehavior) or "without a reason to stop" in text
    if is_end or not isinstance(error, exceptions.ModelHTTPError):
        answer = to.last.error()
        if answer is not None:
            answer_text = shown_text(answer, to.environment)
            hint = _setup_hint(answer, to.model) or (_address_hint(to) if _NOT_FOUND.search(answer) else None)
            return ModelFailed(
                f"The server of {to.model} answered with an error ({answer_text}).", hint, code="model_provider_failed"
            )
        if to.last.is_page:
            return ModelFailed(
                f"The server of {to.model} at {to.place} answered with {PAGE} instead of an answer.",
                _address_hint(to),
                code="model_failed",
            )
        if to.last.is_empty or to.last.is_whole:
            form = "nothing" if to.last.is_empty else "the whole answer at once instead of a stream"
            return ModelFailed(
                f"The server of {to.model} at {to.place} answered with {form}.", _address_hint(to), code="model_failed"
            )
    if text.startswith("Exceeded maximum output retries"):
        return ModelFailed(
            f"The last answer of {to.model} is empty, and so was the answer to a second request.",
            "The results of its tools are stored. Tell it to continue, or choose another model."
            if to.has_results
            else _empty_hint(to),
            code="model_failed",
            retryable=True,
        )
    return ModelFailed(
        f"The answer of {to.model} could not be used ({reason(error, to)}).",
        _empty_hint(to) if text == EMPTY else "Try again.",
        code="model_failed",
        retryable=True,
    )


def reason(error: BaseException, to: ModelEndpoint) -> str:
    """The reason of a failed request, on one line and without secrets.

    For a failed connection: the host and port, and the reason, which is only in the causes of the client's exception.
    """
    if isinstance(error, exceptions.ModelConnectionError):
        detail = _cause(error) or shown_text(_said_by_proxy(error) or detail_of(error), to.environment)
        return f"{to.place}: {detail}" if to.place else detail
    text = shown_text(detail_of(error) or to.last.error() or "", to.environment)
    status = status_of(error)
    if status is None or (isinstance(error, exceptions.ModelHTTPError) and error.in_stream):
        return text
    return f"HTTP {status}: {text}" if text else f"HTTP {status}"


def _wait(error: BaseException) -> str:
    seconds = error.retry_after if isinstance(error, exceptions.ModelAPIError) else None
    return f" It asks to wait {seconds:g} s." if seconds and seconds >= 1 else ""


def _at_limit(error: LimitReached, model: str) -> ModelFailed:
    setting, limit = error.place.setting, error.limit
    hint = "Tell the agent to continue."
    if not error.place.is_fixed:
        hint = f"Tell the agent to continue, or raise the limit: {error.place.to_set(error.enough)}"
    if setting == "max_requests":
        message = f"The turn was stopped after {error.used} requests to {model}, the maximum ({setting})."
    elif error.used is None:
        amount = "the number of its tokens" if setting == "max_tokens" else "what it costs"
        message = f"The turn was stopped: {model} does not report {amount}, and the limit is {limit} ({setting})."
        hint = f"Remove the limit to use this model: {error.place.to_unset()}"
    elif setting == "max_tokens":
        message = f"The turn was stopped: it has used {error.used} tokens, and the limit is {limit} ({setting})."
    else:
        message = f"The turn was stopped: it has cost {error.used:.6f} USD, and the limit is {limit} ({setting})."
    return ModelFailed(message, hint, code="usage_limit")


def _said_by_proxy(error: BaseException) -> str | None:
    return next((str(cause) for cause in causes_of(error) if type(cause).__name__ == "ProxyError"), None)


def _cause(error: BaseException) -> str | None:
    """The system's error text for a failed connection, if the system reported the failure."""
    text = None
    for cause in causes_of(error):
        if isinstance(cause, ssl.SSLError):
            # Its `errno` is a number of OpenSSL, not of the system.
            if isinstance(cause, ssl.SSLCertVerificationError):
                return f"its certificate is not trusted: {cause.verify_message}"
            return _tls_reason(cause)
        if isinstance(cause, OSError) and cause.errno is not None:
            # asyncio replaces the system's text by its own.
            text = os.strerror(cause.errno) if cause.errno > 0 else cause.strerror
        elif "disconnected without sending a response" in words_of(cause):
            text = "it ended the connection without an HTTP answer"
    return text


def _tls_reason(error: ssl.SSLError) -> str:
    return "it does not speak TLS" if any(word in str(error) for word in _NO_TLS) else f"TLS failed: {error.reason}"


def shown_text(text: str, environment: Mapping[str, str]) -> str:
    """A text from outside in the form for messages: on one line, bounded, without secrets."""
    # Secrets are removed before the cut, so that no half of a key remains at the end.
    return _one_line(redact(text, environment)).removesuffix(".")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_DETAIL else line[: MAX_DETAIL - 1] + "…"


def first_sentence(text: str) -> str:
    """The first sentence of a text."""
    return _one_line(text).partition(". ")[0].rstrip(".")
