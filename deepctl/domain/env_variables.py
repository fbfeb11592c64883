"""The environment variables for requests: keys, headers, addresses, proxies, certificates.

This is the one module that reads and checks them. Blanks around a value are removed, because they come from copying. An
invalid value is refused by the name of its variable before anything is sent, because the clients of providers would
blame the network, the server or the disk. A key that is set but empty is invalid, unless the provider has another key;
an empty address, proxy or path counts as not set. Messages show at most one character of a key or an address.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, MutableMapping
from typing import NamedTuple
from urllib.parse import urlsplit

from deepctl.domain import provider_keys
from deepctl.domain.addresses import address_problem, header_problem
from deepctl.errors import UsageError

ADDRESSES: dict[str, tuple[str, ...]] = {
    "anthropic": ("ANTHROPIC_BASE_URL",),
    "azure": ("AZURE_OPENAI_ENDPOINT",),
    "cohere": ("CO_BASE_URL",),
    "gateway": ("PYDANTIC_AI_GATEWAY_BASE_URL", "PAIG_BASE_URL"),
    "github-copilot": ("GITHUB_COPILOT_BASE_URL", "COPILOT_API_URL", "GITHUB_COPILOT_API_BASE"),
    "google": ("GOOGLE_GEMINI_BASE_URL",),
    "google-cloud": ("GOOGLE_VERTEX_BASE_URL",),
    "groq": ("GROQ_BASE_URL",),
    "heroku": ("HEROKU_INFERENCE_URL",),
    "moonshotai": ("MOONSHOTAI_BASE_URL",),
    "ollama": ("OLLAMA_BASE_URL",),
    "openai": ("OPENAI_BASE_URL",),
    "sambanova": ("SAMBANOVA_BASE_URL",),
    "vllm": ("VLLM_BASE_URL",),
}
"""By provider: the variable with the address of its server, if it is not the usual one. Source: pydantic-ai's providers
and their clients.
"""

_HEADERS: dict[str, tuple[str, ...]] = {
    "anthropic": ("ANTHROPIC_AUTH_TOKEN",),
    "azure": ("AZURE_OPENAI_AD_TOKEN",),
    "ollama": ("OLLAMA_API_KEY",),
    "openai": ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"),
    "openrouter": ("OPENROUTER_APP_URL", "OPENROUTER_APP_TITLE"),
    "vllm": ("VLLM_API_KEY",),
}
_LINES_OF_HEADERS: dict[str, tuple[str, ...]] = {
    "anthropic": ("ANTHROPIC_CUSTOM_HEADERS",),
    "openai": ("OPENAI_CUSTOM_HEADERS",),
}
_OTHER_CLIENTS = ("anthropic", "bedrock", "cohere", "google", "google-cloud", "groq", "huggingface", "mistral", "xai")
"""Providers with a client of their own. OpenAI's client serves the others, and also reads its headers for them."""
_NO_HEADERS = ("AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS")
"""Variables in the place of a key that contain a name or a path."""

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""Each also in lower case, which takes precedence."""
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")

_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_OTHER_CERTIFICATES: dict[str, tuple[str, ...]] = {
    "bedrock": ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"),
    "google-cloud": ("REQUESTS_CA_BUNDLE",),
}
"""By provider: clients that do not use the HTTP client of the others."""

OTHERS = frozenset(
    (
        *(variable for variables in ADDRESSES.values() for variable in variables),
        *(form for variable in (*PROXIES, *_CERTIFICATES) for form in (variable, variable.lower())),
        "NO_PROXY",
        "OLLAMA_HOST",
        *(variable for variables in _LINES_OF_HEADERS.values() for variable in variables),
    )
)
"""Variables of requests that are no keys."""

OLLAMA = "http://127.0.0.1:11434"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class VariableProblem(NamedTuple):
    """A variable with an invalid value: the problem, the remedy, and the code of the error."""

    variable: str
    problem: str
    hint: str
    code: str

    def error(self) -> UsageError:
        """The same as an error of a command."""
        return UsageError(f"${self.variable} cannot be used: it {self.problem}.", self.hint, code=self.code)


def prepare(environment: MutableMapping[str, str], provider: str | None, *, has_key: bool = False) -> None:
    """Prepare the variables of a provider, and of every request, for its client. Raises `UsageError` for an invalid
    one.

    Blanks around a value are removed. A value that is empty then is unset, because clients would use it. `None` stands
    for no provider: only the variables of every request. `has_key` means that the key comes from a reference, and not
    from a variable.
    """
    for amiss in problems(environment, provider, has_key=has_key):
        raise amiss.error()
    for variable in (*(ADDRESSES.get(provider or "", ()) if has_key else _stripped(provider)), *_proxies()):
        if variable not in environment:
            continue
        value = environment[variable].strip()
        if not value:
            del environment[variable]
        elif value != environment[variable]:
            environment[variable] = value


def value(environment: Mapping[str, str], variable: str) -> str | None:
    """The value of a variable without the blanks around it; `None` if it is empty."""
    return environment.get(variable, "").strip() or None


def problems(
    environment: Mapping[str, str], provider: str | None, *, has_key: bool = False
) -> Iterator[VariableProblem]:
    """The problems of the variables of a provider, and of the variables of every request.

    `has_key` means that the key comes from a reference, so that the variables of keys and headers do not count.
    """
    name = provider or ""
    if not has_key:
        yield from _key_problems(environment, name)
    for variable in (*ADDRESSES.get(name, ()), *(("OLLAMA_HOST",) if name == "ollama" else ())):
        address = ollama_address(environment) if variable == "OLLAMA_HOST" else value(environment, variable)
        if address is not None and (problem := address_problem(address)) is not None:
            yield VariableProblem(
                variable, problem, "It must be an address such as http://127.0.0.1:8000/v1.", "bad_address"
            )
    if not has_key and "GOOGLE_APPLICATION_CREDENTIALS" in provider_keys.VARIABLES.get(name, ()):
        yield from _file(environment, "GOOGLE_APPLICATION_CREDENTIALS", "Set it to the path of the key file.")
    yield from _proxy_problems(environment)
    yield from _certificate_problems(environment, _OTHER_CERTIFICATES.get(name, ()))


def _key_problems(environment: Mapping[str, str], name: str) -> Iterator[VariableProblem]:
    """The problems of the variables with keys and headers of a provider."""
    yield from _empty_key(environment, name)
    for variable in (*provider_keys.VARIABLES.get(name, ()), *_headers(_HEADERS, name)):
        if variable in ADDRESSES.get(name, ()) or variable in _NO_HEADERS:
            continue
        text = environment.get(variable, "").strip()
        is_quoted = len(text) > 1 and text[0] in "\"'" and text[0] == text[-1]
        problem = "is in quotation marks" if is_quoted else header_problem(text)
        if problem is not None:
            hint = "Copy it again, without quotation marks or other extra characters."
            yield VariableProblem(variable, problem, hint, "bad_key")
    for variable in _headers(_LINES_OF_HEADERS, name):
        for line in environment.get(variable, "").split("\n"):
            problem = header_problem(line)
            name_of_header = line.partition(":")[0].strip()
            if problem is None and ":" in line and not _TOKEN.fullmatch(name_of_header):
                problem = "has a line without a valid header name"
            if problem is not None:
                yield VariableProblem(variable, problem, "Each line must be a header: NAME: VALUE.", "bad_key")


def _empty_key(environment: Mapping[str, str], provider: str) -> Iterator[VariableProblem]:
    """The key of a provider, if it is set but empty and no other variable has one."""
    key = provider_keys.look(provider, environment)
    if key is None or key.set_names:
        return
    for variable in key.names:
        if variable in environment and variable not in ADDRESSES.get(provider, ()):
            yield VariableProblem(variable, "is set but empty", "Set it to a value, or unset it.", "bad_key")
            return


def ollama_address(environment: Mapping[str, str]) -> str:
    """The address of Ollama. `$OLLAMA_HOST` may be a host, a port after a colon, both, or an address."""
    if (address := value(environment, "OLLAMA_BASE_URL")) is not None:
        return address.rstrip("/").removesuffix("/v1")
    host = (value(environment, "OLLAMA_HOST") or "").rstrip("/")
    if not host:
        return OLLAMA
    address = host if "://" in host else f"http://{host if not host.startswith(':') else '127.0.0.1' + host}"
    # The address on which it listens is not an address to connect to.
    address = address.replace("//0.0.0.0", "//127.0.0.1", 1)
    try:
        has_port = urlsplit(address).port is not None or "://" in host
    except ValueError:
        has_port = True
    return address if has_port else f"{address}:11434"


def _stripped(provider: str | None) -> tuple[str, ...]:
    name = provider or ""
    variables = (*provider_keys.VARIABLES.get(name, ()), *_headers(_HEADERS, name), *ADDRESSES.get(name, ()))
    return tuple(variable for variable in variables if variable not in _NO_HEADERS)


def _headers(table: Mapping[str, tuple[str, ...]], provider: str) -> tuple[str, ...]:
    """The variables that become headers of a provider's requests."""
    clients = ("openai",) if provider not in ("", "openai", *_OTHER_CLIENTS) else ()
    return tuple(variable for name in (provider, *clients) for variable in table.get(name, ()))


def _proxies() -> Iterator[str]:
    for variable in PROXIES:
        yield variable.lower()
        yield variable


def _proxy_problems(environment: Mapping[str, str]) -> Iterator[VariableProblem]:
    for variable in _proxies():
        address = value(environment, variable)
        if address is None:
            continue
        # The form that the clients accept.
        whole = address if "://" in address else f"http://{address}"
        if (problem := address_problem(whole, _PROXY_SCHEMES)) is not None:
            hint = "It must be an address such as http://127.0.0.1:3128. Unset it to use no proxy."
            yield VariableProblem(variable, problem, hint, "bad_address")


def _certificate_problems(environment: Mapping[str, str], additional: tuple[str, ...]) -> Iterator[VariableProblem]:
    file = "Set it to the path of a file with certificates in PEM format, or unset it."
    if path := environment.get("SSL_CERT_FILE"):
        yield from _file(environment, "SSL_CERT_FILE", file)
        if os.access(path, os.R_OK) and os.path.isfile(path) and not _has_certificates(path):
            yield VariableProblem(
                "SSL_CERT_FILE", f"names a file without certificates in it ({path})", file, "bad_path"
            )
    elif (path := environment.get("SSL_CERT_DIR")) and not os.path.isdir(path):
        hint = "Set it to the path of a directory with certificates, or unset it."
        yield VariableProblem("SSL_CERT_DIR", f"names a path that is not a directory ({path})", hint, "bad_path")
    for variable in additional:
        path = environment.get(variable)
        if path and not os.path.exists(path):
            yield VariableProblem(variable, f"names a file that does not exist ({path})", file, "bad_path")
    if (path := environment.get("SSLKEYLOGFILE")) and not _can_be_written(path):
        yield VariableProblem("SSLKEYLOGFILE", f"names a file that cannot be written ({path})", "Unset it.", "bad_path")


def _file(environment: Mapping[str, str], variable: str, hint: str) -> Iterator[VariableProblem]:
    path = environment.get(variable)
    if not path:
        return
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        yield VariableProblem(variable, f"names a file that does not exist ({path})", hint, "bad_path")
        return
    if not stat.S_ISREG(status.st_mode):
        yield VariableProblem(variable, f"names a path that is not a regular file ({path})", hint, "bad_path")
    elif not os.access(path, os.R_OK):
        yield VariableProblem(
            variable, f"names a file that cannot be read: permission denied ({path})", hint, "bad_path"
        )


def _has_certificates(path: str) -> bool:
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:  # including the contents of the file
        return False
    return True


def _can_be_written(path: str) -> bool:
    if os.path.exists(path):
        return os.path.isfile(path) and os.access(path, os.W_OK)
    return os.access(os.path.dirname(path) or ".", os.W_OK | os.X_OK)


def socks_proxy(environment: Mapping[str, str]) -> str:
    """The variable that names a SOCKS proxy."""
    proxies = [variable for variable in _proxies() if (value(environment, variable) or "").lower().startswith("socks")]
    return next(iter(proxies), "ALL_PROXY")


class Proxy(NamedTuple):
    """The proxy of requests: its variable, host and port."""

    variable: str
    place: str


def proxy_of(address: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy of requests to an address, by the rules of the HTTP client of the providers' clients."""
    try:
        parts = urlsplit(address)
        host = (parts.hostname or "").lower()
    except ValueError:
        return None
    for variable in (f"{parts.scheme.upper()}_PROXY", "ALL_PROXY"):
        for name in (variable.lower(), variable):
            if (proxy := value(environment, name)) is not None:
                if _bypassed(host, environment):
                    return None
                whole = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
                return Proxy(name, whole.netloc.rpartition("@")[2])
    return None


def _bypassed(host: str, environment: Mapping[str, str]) -> bool:
    hosts = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    for entry in (item.strip().lower() for item in hosts.split(",")):
        if entry == "*":
            return True
        name = entry.partition("://")[2] or entry
        name = name.removeprefix("*").strip("[]")
        if not name:
            continue
        if (host == name.lstrip(".") and not name.startswith(".")) or host.endswith(f".{name.lstrip('.')}"):
            return True
    return False
