"""The environment variables of a provider's key. Only whether they are set is checked, never their value.

Source of the names: pydantic-ai's providers, with which a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

OFFLINE = "offline"

VARIABLES: dict[str, tuple[str, ...]] = {
    "alibaba": ("ALIBABA_API_KEY", "DASHSCOPE_API_KEY"),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "azure": ("AZURE_OPENAI_API_KEY",),
    "bedrock": ("AWS_BEARER_TOKEN_BEDROCK", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"),
    "cerebras": ("CEREBRAS_API_KEY",),
    "cohere": ("CO_API_KEY",),
    "crusoe": ("CRUSOE_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "fireworks": ("FIREWORKS_API_KEY",),
    "gateway": ("PYDANTIC_AI_GATEWAY_API_KEY", "PAIG_API_KEY"),
    "github": ("GITHUB_API_KEY",),
    "github-copilot": ("GITHUB_COPILOT_API_KEY", "GITHUB_COPILOT_API_TOKEN", "COPILOT_GITHUB_TOKEN"),
    "google": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    "google-cloud": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_API_KEY", "GEMINI_API_KEY"),
    "groq": ("GROQ_API_KEY",),
    "heroku": ("HEROKU_INFERENCE_KEY",),
    "huggingface": ("HF_TOKEN",),
    "meta": ("META_API_KEY",),
    "mistral": ("MISTRAL_API_KEY",),
    "moonshotai": ("MOONSHOTAI_API_KEY",),
    "nebius": ("NEBIUS_API_KEY",),
    "ollama": ("OLLAMA_BASE_URL",),
    "openai": ("OPENAI_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY",),
    "ovhcloud": ("OVHCLOUD_API_KEY",),
    "sambanova": ("SAMBANOVA_API_KEY",),
    "snowflake": ("SNOWFLAKE_TOKEN",),
    "together": ("TOGETHER_API_KEY",),
    "vercel": ("VERCEL_AI_GATEWAY_API_KEY", "VERCEL_OIDC_TOKEN"),
    "vllm": ("VLLM_BASE_URL",),
    "xai": ("XAI_API_KEY",),
    "zai": ("ZAI_API_KEY",),
}
"""By provider: any one of these is enough."""

CLIENTS = {
    "bedrock": "boto3",
    "cohere": "cohere",
    "google": "google-genai",
    "groq": "groq",
    "huggingface": "huggingface-hub",
    "mistral": "mistralai",
    "xai": "xai-sdk",
}
"""Packages that come with the extras of deepctl, by provider and extra."""

ELSEWHERE = ("bedrock", "google-cloud")
"""Providers whose clients also find keys in their own files."""

OPENAI = ("openai", "openai-chat", "openai-responses")

HEADER_NAMES: dict[str, tuple[str, ...]] = {"openai": ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")}
"""By provider: variables for headers beside the key, for which `[keys]` may have references too."""
_ALSO: dict[str, tuple[str, ...]] = {
    "anthropic": ("ANTHROPIC_AUTH_TOKEN",),
    "azure": ("AZURE_OPENAI_AD_TOKEN",),
    "ollama": ("OLLAMA_API_KEY",),
    "system-one": ("SYSTEM_ONE_API_KEY",),
    "typesafe": ("TYPESAFE_API_KEY",),
    "vllm": ("VLLM_API_KEY",),
}
"""By provider: further variables of keys, which are not needed."""
_NOT_HANDED_OVER = frozenset(
    {
        "ANTHROPIC_AUTH_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AZURE_OPENAI_AD_TOKEN",
        "GOOGLE_APPLICATION_CREDENTIALS",
    }
)
"""Names that belong to a provider, but that its class in pydantic-ai does not take as a key."""
_SAME = {"azure-responses": "azure", "bedrock-mantle": "bedrock", "openai-decisions": "openai"}


_LONGEST = 100
"""Characters of a provider's name that are compared with others."""


class KeyVariables(NamedTuple):
    """The variables of a provider's key, and those that have a value."""

    names: tuple[str, ...]
    set_names: tuple[str, ...]


def provider(model: str) -> str:
    """The provider of a model: the part before the colon; `openai` for all forms of it."""
    prefix = model.partition(":")[0].partition("/")[0]
    return "openai" if prefix in OPENAI else prefix


def names_of(provider: str) -> tuple[str, ...]:
    """The names in `[keys]` that belong to a provider, those of its key first; empty for an unknown provider.

    `provider` is the part of a model's name before the colon.
    """
    name = _family(provider)
    variables = (variable for variable in VARIABLES.get(name, ()) if not variable.endswith("_BASE_URL"))
    return (*variables, *_ALSO.get(name, ()), *HEADER_NAMES.get(name, ()))


def header_names(provider: str) -> tuple[str, ...]:
    """The names among `names_of` that are of further headers."""
    return HEADER_NAMES.get(_family(provider), ())


def _family(provider: str) -> str:
    name = provider.partition("/")[0]
    return "openai" if name in OPENAI else _SAME.get(name, name)


def all_names() -> list[str]:
    """The names in `[keys]` that belong to any provider, in alphabetical order."""
    return sorted({name for provider in VARIABLES for name in names_of(provider)})


def is_handed_over(name: str) -> bool:
    """Whether a name of a provider is that of a key which its client takes."""
    return name not in _NOT_HANDED_OVER and not any(name in names for names in HEADER_NAMES.values())


def near(model: str) -> str | None:
    """`model` with the provider that is probably meant; `None` if its provider exists, or is similar to none."""
    from difflib import get_close_matches

    prefix, colon, name = model.partition(":")
    names = (*OPENAI, *VARIABLES)
    if not colon or "/" in prefix or prefix in names or len(prefix) > _LONGEST:
        return None
    matches = get_close_matches(prefix.lower().replace("_", "-"), names, 1, 0.85)
    return f"{matches[0]}:{name}" if matches else None


def look(provider: str, environment: Mapping[str, str]) -> KeyVariables | None:
    """The variables with the key of a provider; `None` for an unknown provider."""
    variables = VARIABLES.get(provider)
    if variables is None:
        return None
    return KeyVariables(variables, tuple(name for name in variables if environment.get(name, "").strip()))
