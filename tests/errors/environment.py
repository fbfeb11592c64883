"""Errors of variables and settings that requests are made of, and of what servers answer where those are wrong."""

from __future__ import annotations

import importlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from deepctl.store import pack_store
from tests.errors.situation import Situation, case
from tests.support.command import Result
from tests.support.loopback import Answer, Raw, Text, ToolCalls

HELLO = ["chat", "hello", "--user", "alice"]
OPENAI = [*HELLO, "--model", "openai-chat:m"]
ANTHROPIC = [*HELLO, "--model", "anthropic:m"]
OLLAMA = [*HELLO, "--model", "ollama:m"]
JSON = {"Content-Type": "application/json"}
STREAM = {"Content-Type": "text/event-stream"}
PAGE = b"<!DOCTYPE html><html><head><title>Welcome</title></head><body>Hello</body></html>"


def _clean(s: Situation) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        s.patch.delenv(name, raising=False)
        s.patch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "OLLAMA_HOST", "OLLAMA_BASE_URL"):
        s.patch.delenv(name, raising=False)
    s.patch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
    s.patch.setenv("ANTHROPIC_API_KEY", "sk-canary-0123456789abcdef")


def _variable(cause: str, command: list[str], **variables: str) -> None:
    """A variable that is refused before anything is imported or sent."""

    @case("chat", cause)
    def _(s: Situation) -> list[str]:
        _clean(s)
        for name, value in variables.items():
            s.patch.setenv(name, value.replace("PLACE", str(s.place)))
        return command


_variable("a key contains typographic quotation marks", OPENAI, OPENAI_API_KEY="“sk-canary-0123456789abcdef”")
_variable("a key was shortened with `…`", OPENAI, OPENAI_API_KEY="sk-can…cdef")
_variable("a key contains a letter with an accent", OPENAI, OPENAI_API_KEY="clé")
_variable("a key contains a line break", OPENAI, OPENAI_API_KEY="sk-canary\n0123456789abcdef")
_variable("a key is in quotation marks", OPENAI, OPENAI_API_KEY='"sk-canary-0123456789abcdef"')
_variable("a key contains bytes that are not UTF-8", OPENAI, OPENAI_API_KEY="sk-\udce9")
_variable("a key contains an invisible character", OPENAI, OPENAI_API_KEY="\ufeffsk-canary-0123456789abcdef")
_variable("the key of Anthropic contains a character that is not allowed", ANTHROPIC, ANTHROPIC_API_KEY="sk-ant-“x”")
_variable("the token of Anthropic contains a character that is not allowed", ANTHROPIC, ANTHROPIC_AUTH_TOKEN="token–1")
_variable(
    "the key of another provider contains a character that is not allowed",
    [*HELLO, "--model", "groq:m"],
    GROQ_API_KEY="gsk_é",
)
_variable("the organisation id of OpenAI contains a character that is not allowed", OPENAI, OPENAI_ORG_ID="Société")
_variable(
    "a header for Anthropic contains a character that is not allowed",
    ANTHROPIC,
    ANTHROPIC_CUSTOM_HEADERS="X-Team: Größe",
)
_variable("a header for Anthropic has an invalid name", ANTHROPIC, ANTHROPIC_CUSTOM_HEADERS="X Team: a")
_variable("a header for OpenAI contains a character that is not allowed", OPENAI, OPENAI_CUSTOM_HEADERS="X-Team: Größe")
_variable(
    "the organisation id for a provider with OpenAI's client contains a character that is not allowed",
    OLLAMA,
    OPENAI_ORG_ID="Société",
)
_variable("an address has no scheme", OPENAI, OPENAI_BASE_URL="127.0.0.1:8000/v1")
_variable("an address has the scheme `file:`", OPENAI, OPENAI_BASE_URL="file:///etc/passwd")
_variable("the port of an address is invalid", OPENAI, OPENAI_BASE_URL="http://127.0.0.1:99999/v1")
_variable("an address contains a blank", OPENAI, OPENAI_BASE_URL="http://x y/v1")
_variable("an address contains an IPv6 address without brackets", OPENAI, OPENAI_BASE_URL="http://::1:8000/v1")
_variable("an address has no host", OPENAI, OPENAI_BASE_URL="http:///v1")
_variable("an address has an invalid host", OPENAI, OPENAI_BASE_URL="http://a..b/v1")
_variable("an address contains a character that is not allowed", OPENAI, OPENAI_BASE_URL="http://example.com/“v1”")
_variable("an address has a password that contains `@`", OPENAI, OPENAI_BASE_URL="http://me:p@ss@example.com/v1")
_variable("the address of Anthropic is invalid", ANTHROPIC, ANTHROPIC_BASE_URL="example.com")
_variable("the address of Ollama is invalid", OLLAMA, OLLAMA_BASE_URL="localhost:11434")
_variable("the host of Ollama is invalid", OLLAMA, OLLAMA_HOST="127.0.0.1:99999")
_variable("the port of a proxy is invalid", OPENAI, HTTP_PROXY="http://127.0.0.1:99999")
_variable("the scheme of a proxy is invalid", OPENAI, ALL_PROXY="socks4://127.0.0.1:1080")
_variable("the address of a proxy contains a blank", OPENAI, https_proxy="http://the proxy:3128")
_variable("the file with certificates does not exist", OPENAI, SSL_CERT_FILE="PLACE/nothing.pem")
_variable("the file with certificates is a directory", OPENAI, SSL_CERT_FILE="PLACE")
_variable("the file with certificates contains no certificates", OPENAI, SSL_CERT_FILE=__file__)
_variable("the directory with certificates does not exist", OPENAI, SSL_CERT_DIR="PLACE/nothing")
_variable("the log of TLS keys cannot be written", OPENAI, SSLKEYLOGFILE="PLACE/nothing/keys")
_variable(
    "the key file does not exist",
    [*HELLO, "--model", "google-cloud:m"],
    GOOGLE_APPLICATION_CREDENTIALS="PLACE/nothing.json",
)
_variable(
    "the file with certificates of another client does not exist",
    [*HELLO, "--model", "bedrock:m"],
    AWS_CA_BUNDLE="PLACE/nothing",
)


@case("chat", "the proxy is a SOCKS proxy, and its package is not installed")
def _(s: Situation) -> list[str]:
    _clean(s)
    s.patch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    importlib.import_module("httpcore2")  # which decides once whether it can speak to such proxies
    s.patch.setitem(sys.modules, "socksio", None)
    return OPENAI


@case("checkpoints save", "the package `backports.zstd` is not installed")
def _(s: Situation) -> list[str]:
    s.alice()
    (s.workspace / "new.txt").write_text("a content that is worth compressing")
    s.patch.setattr(pack_store, "zstd_module", pack_store.zstd_module.__wrapped__)
    s.patch.setitem(sys.modules, "backports.zstd", None)
    s.patch.delattr(importlib.import_module("backports"), "zstd", raising=False)
    return ["checkpoints", "save", "--user", "alice"]


def _without_home(s: Situation, **variables: str) -> Result:
    for name in ("HOME", "DEEPCTL_HOME", "DEEPCTL_CONFIG", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        s.patch.delenv(name, raising=False)
    for name, value in variables.items():
        s.patch.setenv(name, value)
    return s.confined("profiles", "list", unprivileged=True)


@case("any command", "the user is not in the user database, and `$HOME` is not set")
def _(s: Situation) -> Result:
    return _without_home(s)


@case("any command", "the user is not in the user database, and `$HOME` is empty")
def _(s: Situation) -> Result:
    return _without_home(s, HOME="")


@case("any command", "the user is not in the user database, and `$HOME` is a relative path")
def _(s: Situation) -> Result:
    return _without_home(s, HOME="~")


@case("any command", "`$DEEPCTL_HOME` begins with `~NAME`, and the user does not exist")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_HOME", "~nobody-of-this-name/deepctl")
    return ["profiles", "list"]


@case("any command", "`$DEEPCTL_CONFIG` begins with `~NAME`, and the user does not exist")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_CONFIG", "~nobody-of-this-name/config.toml")
    return ["config", "show"]


def _base_url(cause: str, value: str) -> None:
    @case("config set", cause)
    def _(s: Situation) -> list[str]:
        return ["config", "set", "base_url", value]


_base_url("`base_url` contains a blank", "http://x y/")
_base_url("the port of `base_url` is invalid", "http://127.0.0.1:99999/v1")
_base_url("`base_url` has no host", "https:///v1")


@case("chat", "`base_url` in `profile.toml` is not an address")
def _(s: Situation) -> list[str]:
    _clean(s)
    s.alice()
    s.settings.write_text('base_url = "http://127.0.0.1:99999/v1"\n')
    return OPENAI


@case("chat", "`base_url` in `config.toml` is not an address")
def _(s: Situation) -> list[str]:
    _clean(s)
    s.configure('base_url = "localhost:8000"\n')
    return OPENAI


@case("config show", "the port in the address of an MCP server is invalid")
def _(s: Situation) -> list[str]:
    s.configure('[mcp_servers.one]\nurl = "http://127.0.0.1:0/mcp"\n')
    return ["config", "show"]


# What is only found out by a request. `retries` is off so that nothing is waited for.


def _unreachable(cause: str, address: str, **variables: str) -> None:
    @case("chat", cause, prints=True)
    def _(s: Situation) -> list[str]:
        _clean(s)
        s.configure("retries = 0\n")
        s.patch.setenv("OPENAI_BASE_URL", address)
        for name, value in variables.items():
            s.patch.setenv(name, value)
        return OPENAI


_unreachable("the proxy in `$HTTP_PROXY` does not answer", "http://example.com/v1", HTTP_PROXY="http://127.0.0.1:9")
_unreachable("the proxy in `$HTTPS_PROXY` does not answer", "https://example.com/v1", HTTPS_PROXY="127.0.0.1:9")
_unreachable("the SOCKS proxy does not answer", "https://example.com/v1", ALL_PROXY="socks5://127.0.0.1:9")


def _answers(cause: str, *answers: Answer, model: str = "openai-chat:m", path: str = "/v1", more: str = "") -> None:
    """What a server answers to an address with this path; `more` is the end of config.toml."""

    @case("chat", cause, prints=True)
    def _(s: Situation) -> list[str]:
        _clean(s)
        s.configure(f"retries = 0\n{more}")
        s.provider(*answers, repeat_last=True)
        s.patch.setenv("OPENAI_BASE_URL", os.environ["OPENAI_BASE_URL"].replace("/v1", path))
        return [*HELLO, "--model", model]


def _error(status: int, **error: object) -> Raw:
    return Raw(json.dumps({"error": error}).encode(), status, JSON)


_answers("the address of the server lacks `/v1`", Raw(PAGE, 404, {"Content-Type": "text/html"}), path="")
_answers("the address of the server lacks `/v1`, and the server allows no POST there", Raw(b"", 405), path="")
_answers("the address of the server contains the path `/chat/completions`", Raw(b"", 404), path="/v1/chat/completions")
_answers("the path in the address of the server is wrong", Raw(b"404 page not found", 404), path="/api/v2")
_answers("the server has no Responses API", Raw(b'{"detail":"Not Found"}', 404, JSON), model="openai:m")
_answers("the server answers with a web page", Raw(PAGE, 200, {"Content-Type": "text/html"}), path="")
_answers("the answer of the server is empty", Raw(b"", 200, STREAM))
_answers("the server does not support streams", Raw(b'{"choices": []}', 200, JSON))
_answers("the server sends an error with the HTTP status of a success", Raw(b'{"error":"out of credits"}', 200, JSON))
_answers("the server ends its answer with an error", Raw(b'data: {"error":"out of memory"}\n\n', 200, STREAM))
_answers("the server redirects to another address", Raw(b"", 301, {"Location": "https://example.com/v1"}))
_answers("the request is too large for the server", _error(413, message="too large"))
_answers("the proxy needs a name and a password", Raw(b"", 407))
_answers("the server accepts only TLS", Raw(b"Client sent an HTTP request to an HTTPS server.\n", 400))
_answers("the last answer after a tool call is empty", ToolCalls([("ls", {"path": "."})]), Text([""]))
_answers("every answer is empty", Text([""]), more="[model_settings]\ntemperature = 2.0\n")
_answers(
    "the server does not have the model", _error(404, message="The model `m` does not exist.", code="model_not_found")
)
_answers("Ollama does not have the model", _error(404, message='model "m" not found, try pulling it first'))
_answers("no model is loaded", _error(404, message="No models loaded. Please load a model in the developer page."))
_answers(
    "the model cannot call tools", _error(400, message="registry.ollama.ai/library/m:latest does not support tools")
)
_answers(
    "a setting of the model is refused",
    _error(400, message="Unsupported value: 'temperature' does not support 0.5."),
    more="[model_settings]\ntemperature = 0.5\n",
)
_answers(
    "vLLM was started without tools",
    _error(400, message='"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
)
_answers(
    "llama.cpp was started without tools",
    _error(500, code=500, message="tools param requires --jinja flag", type="server_error"),
)


@case("chat", "the server does not support TLS", prints=True)
def _(s: Situation) -> list[str]:
    _clean(s)
    s.configure("retries = 0\n")
    s.provider(Text(["never"]))
    s.patch.setenv("OPENAI_BASE_URL", os.environ["OPENAI_BASE_URL"].replace("http:", "https:"))
    return OPENAI


def _certificate(place: Path, name: str) -> tuple[Path, Path]:
    """A certificate that is signed by itself, and its key."""
    key, certificate = place / "key.pem", place / "certificate.pem"
    made = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = ("-keyout", key, "-out", certificate)
    subject = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run([*made, *files, *subject], check=True, capture_output=True)
    return certificate, key


def _certified(s: Situation) -> str:
    """A server with a certificate that nobody else has signed; returns its address."""
    certificate, key = _certificate(s.place, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listening = s.until_the_end(socket.create_server(("127.0.0.1", 0)))

    def serve() -> None:
        try:
            while True:
                connection, _ = listening.accept()
                with connection:
                    try:
                        context.wrap_socket(connection, server_side=True).close()
                    except OSError:
                        pass  # the client has hung up
        except OSError:
            pass  # the test is over

    threading.Thread(target=serve, daemon=True).start()
    return f"https://127.0.0.1:{listening.getsockname()[1]}/v1"


def _untrusted(cause: str, certificates: Callable[[Path], str | None]) -> None:
    @case("chat", cause, prints=True)
    def _(s: Situation) -> list[str]:
        _clean(s)
        s.configure("retries = 0\n")
        s.patch.setenv("OPENAI_BASE_URL", _certified(s))
        other = s.place / "other"
        other.mkdir()
        if (path := certificates(other)) is not None:
            s.patch.setenv("SSL_CERT_FILE", path)
        return OPENAI


def _another(place: Path) -> str:
    return str(_certificate(place, "other")[0])


_untrusted("the certificate of the server is self-signed", lambda place: None)
_untrusted("the certificate of the server is not in `$SSL_CERT_FILE`", _another)
