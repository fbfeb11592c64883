"""The table of all settings: their names, meanings, kinds and defaults; and the values of each kind.

A value has a text, a form in a settings file, and a value for Python. The text is for the command line, for `config
show` and for comparisons. Lists of texts and tables are JSON, because a text in them can contain any character.
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any, NamedTuple

from deepctl import layout
from deepctl.domain import permissions
from deepctl.domain.addresses import address_problem, without_passwords
from deepctl.errors import BadSetting
from deepctl.files import gitignore
from deepctl.sandbox.policy import PROTECTED

SANDBOXES = ("auto", "bubblewrap", "docker", "none")
APPROVALS = ("ask", "auto", "never")
NETWORK = ("off", "on")
SWITCH = ("off", "on")
WEB = ("off", "ask", "auto")
NOTIFY = ("auto", "bell", "off")
CHECKPOINTS = ("every_tool", "every_turn", "manual_only")
TOOLS = ("full", "lean")
THINKING = ("off", "minimal", "low", "medium", "high", "xhigh", "max", "on")
"""Levels of thinking; `on` leaves the effort to the provider."""
SERVICE_TIERS = ("auto", "default", "flex", "priority")


_SPENDING = "it limits the cost of a turn"
_BUDGET = "it limits the cost of a day or a month"
_LIMIT = "it limits how much of this machine commands may use"
_ANSWERS = "it changes the answers of the model, and what they cost"
_PROFILE = "it changes what the model is sent, and how its answers are read"
_TOOLS = "it decides which tools the agent has"
_WAITING = "it decides how long deepctl waits for an answer"
_FLAG = ("true", "false")
_NO_PATHS = "none"
"""The text of an empty list of paths: it differs from the default."""
EDITING_MODES = ("emacs", "vi")
"""The names of prompt_toolkit."""
_TRACES = "names of models and tools, token counts and times are sent to the collector that OTEL_… variables name"


class Setting(NamedTuple):
    """One setting: its purpose, its default, its allowed values, and its environment variable.

    `kind` is the meaning of its text: `text`, `patterns` (several, separated by commas), `count` (a whole number),
    `seconds`, `size` (bytes, or a number with K, M or G for 1024-fold units), or `cost` (USD, up to six places). A
    `percent` is a whole number from 10 to 95, or `never`. `paths` are several, separated by commas, or `none`. `names`
    are several tool names, separated by commas; `skills` several names of skills; `kinds` several kinds of commands;
    `profiles` several names of profiles; `flag` is true or false; `integer` and `decimal` are numbers within `bounds`;
    `texts` is a JSON list of texts; `table` is a JSON object. A `directory` is an absolute path, or begins with `~`.
    `risk` is the possible consequence of a value that another person chose.
    """

    help: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    kind: str = "text"
    variable: str | None = None
    in_profile: bool = True
    risk: str = ""
    bounds: tuple[float, float] = (0, 0)
    """The smallest and the largest value of an `integer` or a `decimal`."""
    in_config: bool = True
    """Whether it may be in config.toml, which is for all profiles."""


def _of_model(
    help: str, kind: str = "text", bounds: tuple[float, float] = (0, 0), choices: tuple[str, ...] = ()
) -> Setting:
    """A setting that is sent with every request."""
    return Setting(help, None, choices, kind, risk=_ANSWERS, bounds=bounds)


def _flag(help: str) -> Setting:
    return Setting(help, None, _FLAG, "flag", risk=_PROFILE)


# The names, the types and the meanings are those of pydantic-ai's ModelProfile and OpenAIModelProfile. Keys for
# structured output, native tools, audio output and batches are left out, because deepctl does not use these features.
_MODEL_PROFILE: dict[str, Setting] = {
    "supports_tools": _flag("whether the model can call tools"),
    "supports_image_input": _flag("whether the model takes pictures"),
    "supports_document_input": _flag("whether the model takes documents such as PDF files"),
    "supports_audio_file_input": _flag("whether the model takes audio files"),
    "supports_video_input": _flag("whether the model takes videos"),
    "supports_inline_system_prompts": _flag("whether a system message may stand between other messages"),
    "supports_thinking": _flag("whether the thinking setting is sent"),
    "thinking_always_enabled": _flag("whether the model cannot answer without thinking"),
    "thinking_enabled_by_default": _flag("whether the model thinks without a thinking setting"),
    "thinking_tags": Setting("the two tags around thinking in a text, as a JSON list", kind="texts", risk=_PROFILE),
    "ignore_streamed_leading_whitespace": _flag("whether blanks at the start of an answer are dropped"),
    "mimics_assistant_message_formatting": _flag("whether the model copies the markup of earlier answers"),
    "supports_cache": _flag("whether the provider needs markers to cache a prompt"),
    "supports_auto_cache": _flag("whether the provider can place the cache markers itself"),
    "tool_call_id_length": Setting(
        "exact length of the ids of tool calls", None, (), "integer", risk=_PROFILE, bounds=(1, 1000)
    ),
    "openai_system_prompt_role": Setting(
        "role of the system message", None, ("system", "developer", "user"), risk=_PROFILE
    ),
    "openai_chat_supports_multiple_system_messages": _flag("whether there may be several system messages"),
    "openai_supports_strict_tool_definition": _flag("whether tools may have the field strict"),
    "openai_unsupported_model_settings": Setting(
        "model settings that are not sent, as a JSON list", kind="texts", risk=_PROFILE
    ),
    "openai_chat_thinking_field": Setting("field of a message with the thinking", risk=_PROFILE),
    "openai_chat_send_back_thinking_parts": Setting(
        "how earlier thinking is sent again", None, ("auto", "tags", "field", "false"), risk=_PROFILE
    ),
    "openai_chat_thinking_requires_field_on_tool_calls": _flag("whether tool calls must have the thinking field"),
    "openai_chat_thinking_false_body": Setting(
        "fields that switch thinking off, as a JSON object", kind="table", risk=_PROFILE
    ),
    "openai_supports_reasoning": _flag("whether the model is a reasoning model of OpenAI's kind"),
    "openai_supports_reasoning_effort_none": _flag("whether reasoning_effort may be none"),
    "openai_supports_minimal_reasoning_effort": _flag("whether reasoning_effort may be minimal"),
    "openai_chat_supports_max_reasoning_effort": _flag("whether reasoning_effort may be max"),
    "openai_supports_encrypted_reasoning_content": _flag("whether the Responses API encrypts thinking"),
    "openai_chat_streaming_requires_finish_reason": _flag("whether an answer without a finish reason is incomplete"),
    "openai_chat_supports_max_completion_tokens": _flag("whether max_tokens is sent as max_completion_tokens"),
    "openai_chat_audio_input_encoding": Setting("form of audio files", None, ("base64", "uri"), risk=_PROFILE),
    "openai_chat_supports_file_urls": _flag("whether a document may be an address"),
    "openai_chat_supports_document_input": _flag("whether the Chat Completions API takes documents"),
    "openai_supports_prompt_cache_breakpoints": _flag("whether messages may have OpenAI's cache markers"),
    "openai_responses_requires_function_call_status_none": _flag("whether tool calls must not have a status"),
    "openai_responses_requires_store_false": _flag("whether the field store must be false"),
}


SETTINGS: dict[str, Setting] = {
    "default_user": Setting(
        "profile for commands without --user", "default", variable="DEEPCTL_USER", in_profile=False
    ),
    "project": Setting(
        "directory in which the agent works, instead of its private workspace",
        kind="directory",
        risk="the agent reads and changes the files in this directory of yours",
        in_config=False,
    ),
    "model": Setting("model, as provider:name", "offline", variable="DEEPCTL_MODEL"),
    "base_url": Setting(
        "address of an OpenAI-compatible server, for openai-chat: and openai: models",
        risk="conversations and the key for them are sent to this address",
    ),
    "instructions": Setting("instructions for the agent at the start of every conversation"),
    "context_window": Setting("context window of the model in tokens, if it is unknown or wrong", kind="count"),
    "compact_at": Setting(
        "percentage of the context window at which a conversation is summarised, or never",
        "80",
        kind="percent",
    ),
    "approve": Setting(
        "answer to approval requests",
        "ask",
        APPROVALS,
        risk="auto approves every approval request, even for unsandboxed commands",
    ),
    "allowed_commands": Setting(
        "kinds of commands that need no approval, such as git log, separated by commas",
        kind="kinds",
        risk="commands of these kinds run without approval requests, also unsandboxed",
    ),
    "sandbox": Setting(
        "where the agent's commands run",
        "auto",
        SANDBOXES,
        risk="none runs the agent's commands unsandboxed, with your rights",
    ),
    "checkpoints": Setting(
        "when automatic checkpoints are made",
        "every_tool",
        CHECKPOINTS,
        risk="with fewer checkpoints, there are fewer points to rewind to",
    ),
    "snapshot.exclude": Setting(
        "files that checkpoints leave out, with patterns as in a .gitignore, separated by commas",
        kind="patterns",
        risk="no checkpoint contains these files, and no rewind restores them",
    ),
    "network": Setting(
        "whether the agent's commands have the network",
        "off",
        NETWORK,
        risk="with the network, the agent's commands can send your files to others",
    ),
    "protected": Setting(
        "paths of a project that the agent's commands cannot change or create, separated by commas, or none",
        ",".join(PROTECTED),
        kind="paths",
        risk="your programs obey these files, so what the agent writes there can run with your rights",
    ),
    "read_only_paths": Setting(
        "files and directories of this machine that the agent's commands can read, separated by commas, or none",
        kind="paths",
        risk="the agent's commands can read these files",
    ),
    "snapshot.include": Setting(
        "files of a project that checkpoints contain although git ignores them, with patterns as in a .gitignore, "
        "separated by commas",
        kind="patterns",
        risk="checkpoints and exports contain these files, such as .env with its passwords",
    ),
    "snapshot.max_file": Setting(
        "size of a file of a project above which checkpoints leave it out",
        "100M",
        kind="size",
        risk="no checkpoint contains larger files, and no rewind restores them",
    ),
    "docker.image": Setting(
        "image of the container of the docker sandbox",
        "python:3.12-slim",
        risk="the agent's commands run in this image, which Docker fetches",
    ),
    "max_requests": Setting("maximum number of requests to the model in a turn", "100", kind="count", risk=_SPENDING),
    "max_tokens": Setting("maximum number of tokens that a turn sends and receives", kind="count", risk=_SPENDING),
    "max_cost": Setting("maximum cost of a turn, in USD", kind="cost", risk=_SPENDING),
    "max_cost_day": Setting(
        "maximum cost of a day, in USD: of the profile, or in config.toml of all profiles", kind="cost", risk=_BUDGET
    ),
    "max_cost_month": Setting(
        "maximum cost of a month, in USD: of the profile, or in config.toml of all profiles", kind="cost", risk=_BUDGET
    ),
    "max_tokens_day": Setting(
        "maximum number of tokens of a day: of the profile, or in config.toml of all profiles",
        kind="count",
        risk=_BUDGET,
    ),
    "tools": Setting(
        "tools of the agent: all, or only those for files, commands and memory", "full", TOOLS, risk=_TOOLS
    ),
    "search_sessions": Setting(
        "whether the agent can search the sessions of the profile",
        "off",
        SWITCH,
        risk="the agent reads earlier conversations, also those in other directories",
    ),
    "ask_user": Setting("whether the agent can ask the user questions at the terminal", "off", SWITCH, risk=_TOOLS),
    "subagents": Setting(
        "whether the agent can give tasks to sub-agents", "off", SWITCH, risk="a turn can send more requests"
    ),
    "web": Setting(
        "whether the agent can fetch and search web pages: not, after an approval, or freely",
        "off",
        WEB,
        risk="with the web, the agent can send your files to others",
    ),
    "web_domains": Setting(
        "domains whose pages need no approval with web = ask, separated by commas",
        kind="patterns",
        risk="the agent can send your files to these domains",
    ),
    "disabled_tools": Setting("tools that the agent does not have, separated by commas", kind="names", risk=_TOOLS),
    "disabled_skills": Setting("skills that the agent does not have, separated by commas", kind="skills", risk=_TOOLS),
    "memory.read": Setting(
        "profiles whose notebooks the agent reads, separated by commas; each must name this profile in memory.readers",
        kind="profiles",
        in_config=False,
        risk="the agent reads the notebooks of these profiles if they agree, and can give them to others",
    ),
    "memory.readers": Setting(
        "profiles whose agents may read the notebooks of this profile, separated by commas",
        kind="profiles",
        in_config=False,
        risk="the agents of these profiles can read the notebooks of this one",
    ),
    "first_answer_timeout": Setting(
        "maximum time until the first part of an answer, in seconds", "600", kind="seconds", risk=_WAITING
    ),
    "idle_timeout": Setting(
        "maximum time between two parts of an answer, in seconds", "120", kind="seconds", risk=_WAITING
    ),
    "title_model": Setting(
        "model that writes the titles of sessions that a chat begins, as provider:name",
        risk="the first prompt of each session, and the start of its answer, are sent to this model",
    ),
    "notify": Setting(
        "how a chat tells of the end of a long turn and of approval requests: bell and notification, bell, or not",
        "auto",
        NOTIFY,
    ),
    "notify_after": Setting(
        "seconds of a turn after which its end is told",
        "10",
        kind="seconds",
        risk="it decides when the terminal rings or shows a notification",
    ),
    "retries": Setting("number of retries when the provider is busy or failing", "3", kind="count", risk=_SPENDING),
    "editing_mode": Setting(
        "keys of the input line of a chat", "emacs", EDITING_MODES, risk="it changes what your keys do in a chat"
    ),
    "otel": Setting("whether turns are traced with OpenTelemetry", "false", _FLAG, risk=_TRACES),
    "limits.seconds": Setting("maximum time of a command, in seconds", "600", kind="seconds", risk=_LIMIT),
    "limits.memory": Setting("maximum memory of a command", "2G", kind="size", risk=_LIMIT),
    "limits.processes": Setting("maximum number of processes of a command", "256", kind="count", risk=_LIMIT),
    "limits.tmp": Setting("size of /tmp in a sandbox", "256M", kind="size", risk=_LIMIT),
    "limits.disk": Setting(
        "maximum size of what a command writes to the file system of the workspace", "10G", kind="size", risk=_LIMIT
    ),
    "limits.checkpoints": Setting("size of the checkpoints above which chats warn", "5G", kind="size", risk=_LIMIT),
    "model_settings.temperature": _of_model("randomness of the answers", "decimal", (0, 10)),
    "model_settings.top_p": _of_model("share of the most probable tokens that are considered", "decimal", (0, 1)),
    "model_settings.top_k": _of_model("number of the most probable tokens that are considered", "integer", (1, 10**6)),
    "model_settings.max_tokens": _of_model("maximum number of tokens of one answer", "integer", (1, 10**9)),
    "model_settings.thinking": _of_model("effort of the model's thinking", choices=THINKING),
    "model_settings.seed": _of_model("start value of the random numbers", "integer", (-(1 << 63), (1 << 63) - 1)),
    "model_settings.presence_penalty": _of_model("penalty for tokens that occurred already", "decimal", (-2, 2)),
    "model_settings.frequency_penalty": _of_model("penalty for tokens that occur often", "decimal", (-2, 2)),
    "model_settings.stop_sequences": _of_model("texts at which the answer ends, as a JSON list", "texts"),
    "model_settings.parallel_tool_calls": _of_model(
        "whether one answer may have several tool calls", "flag", choices=_FLAG
    ),
    "model_settings.service_tier": _of_model("service level of the provider", choices=SERVICE_TIERS),
    "model_settings.extra_body": Setting(
        "further fields of every request, as a JSON object",
        kind="table",
        risk="these fields are added to every request; the provider decides what they do",
    ),
    **{f"model_profile.{name}": setting for name, setting in _MODEL_PROFILE.items()},
}


_SIZE = re.compile(r"([0-9]{1,12})([KMG]?)")
_LARGEST = 1 << 50
_SMALLEST = {
    "limits.memory": 16 << 20,
    "limits.tmp": 1 << 20,
    "limits.disk": 1 << 20,
    "limits.processes": 4,
    "retries": 0,
    "context_window": 1000,
}
_PERCENT = range(10, 96)
_COST = re.compile(r"(0|[1-9][0-9]{0,5})(\.[0-9]{1,6})?")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_DECIMAL = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SKILL_NAME = re.compile(r"[a-z0-9-]{1,64}")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
TYPED = ("flag", "integer", "decimal", "texts", "table")
"""Kinds whose values are usually no text in a settings file."""
_OWN_FIELDS = frozenset({"input", "messages", "model", "stream", "tools"})
"""Fields of a request that `extra_body` may not replace, because the turn depends on them."""


def check(key: str, setting: Setting, value: str, place: str) -> str:
    """`value` if it is valid for the setting. Raises `BadSetting`; `place` is ` in FILE`, or empty."""
    hint = _problem(key, setting, value)
    if hint is not None:
        raise BadSetting(f"Setting {key!r}{place} cannot be {without_passwords(value)!r}.", hint)
    if setting.kind == "patterns":
        _check_patterns(key, value, place)
    if key == "base_url":
        value = value.strip()
        if (problem := address_problem(value)) is not None:
            raise BadSetting(
                f"Setting {key!r}{place} cannot be {without_passwords(value)!r}: it {problem}.",
                "It must be an address such as http://127.0.0.1:8000/v1.",
            )
    return value


def _problem(key: str, setting: Setting, value: str) -> str | None:
    """The rule that an invalid value breaks, as a hint."""
    kind = setting.kind
    if setting.choices and value not in setting.choices:
        return f"It must be one of: {', '.join(setting.choices)}."
    if kind == "cost" and not (_COST.fullmatch(value) and value.strip("0.")):
        return "It must be a sum in USD above 0 and below 1000000, such as 0.50."
    if kind == "percent" and value not in ("never", *map(str, _PERCENT)):
        return f"It must be a percentage from {_PERCENT.start} to {_PERCENT.stop - 1}, or never."
    if kind == "paths":
        return _paths_problem(key, value)
    if kind in ("count", "seconds", "size"):
        return _number_problem(key, kind, value)
    if kind in ("integer", "decimal"):
        return _bounds_problem(setting, value)
    if kind == "names" and not (patterns(value) and all(map(_TOOL_NAME.fullmatch, patterns(value)))):
        return "It must be names of tools, separated by commas."
    if kind == "names" and (unknown := permissions.unknown_tool(patterns(value))) is not None:
        return f"There is no tool {unknown!r}. {permissions.tool_hint(unknown)}"
    if kind == "kinds":
        return _kinds_problem(value)
    if kind == "skills" and not (patterns(value) and all(map(_SKILL_NAME.fullmatch, patterns(value)))):
        return "It must be names of skills, separated by commas."
    if kind == "profiles" and not (patterns(value) and all(map(layout.is_good_name, patterns(value)))):
        return "It must be names of profiles, separated by commas."
    if kind == "directory" and not value.startswith(("/", "~")):
        return "It must be an absolute path, or begin with ~/. `deepctl config set` also takes a relative path."
    if kind == "texts" and not _is_texts(_json(value)):
        return """It must be a list of texts that are not empty, such as '["END", "STOP"]'."""
    if key == "model_profile.thinking_tags" and len(_json(value)) != 2:
        return """It must be two texts, such as '["<think>", "</think>"]'."""
    if kind == "table":
        table = _json(value)
        if not isinstance(table, dict):
            return """It must be a JSON object without null, such as '{"min_p": 0.1}'."""
        if own := sorted(_OWN_FIELDS & table.keys()):
            return f"deepctl sets {own[0]!r} itself. Remove it."
    return None


def _kinds_problem(value: str) -> str | None:
    from deepctl.domain.commands.kinds import KINDS  # most profiles do not use it

    if patterns(value) and set(patterns(value)) <= set(KINDS):
        return None
    return f"It must be kinds of commands, separated by commas. Kinds are: {', '.join(KINDS)}."


def _number_problem(key: str, kind: str, value: str) -> str | None:
    try:
        number = size(value) if kind == "size" else size(value, units="")
    except ValueError:
        if kind == "size":
            return "It must be a number of bytes, optionally followed by K, M or G."
        return "It must be a whole number."
    least = _SMALLEST.get(key, 1)
    if number < least:
        return f"It must be at least {_shortest_number(least, kind)}."
    return None if number < _LARGEST else f"It must be less than {_shortest_number(_LARGEST, kind)}."


def _bounds_problem(setting: Setting, value: str) -> str | None:
    least, largest = setting.bounds
    if setting.kind == "integer":
        number: float = int(value) if _INTEGER.fullmatch(value) else math.nan
    else:
        # `float` also takes digits of other scripts, and underscores.
        number = float(value) if _DECIMAL.fullmatch(value) else math.nan
    kind = "whole number" if setting.kind == "integer" else "number"
    return None if least <= number <= largest else f"It must be a {kind} from {least} to {largest}."


def _paths_problem(key: str, value: str) -> str | None:
    absolute = key == "read_only_paths"
    if value == _NO_PATHS:
        return None
    for path in patterns(value):
        parts = path.rstrip("/").split("/")
        start = parts.pop(0) if absolute else ""
        is_usable = start in ("", "~") and all(part not in ("", ".", "..") and part.isprintable() for part in parts)
        if not is_usable or (absolute and not parts) or parts[0] == ".git":
            break
    else:
        return None if patterns(value) else "It must not be empty."
    if absolute:
        return "It must be absolute paths, or paths that begin with ~/, without `..`, separated by commas, or none."
    return "It must be paths in a project, relative to it and without `..`, separated by commas, or none."


def paths(value: str | None) -> list[str]:
    """The values of a setting of kind `paths`."""
    return [] if value == _NO_PATHS else patterns(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


def _json(text: str) -> Any:
    """The value of a JSON text; `None` for a text that is not JSON, or contains a value that TOML or UTF-8 lacks."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        value = json.loads(text, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return None if _has_null(value) else value


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_null, value.values()))
    return any(map(_has_null, value)) if isinstance(value, list) else value is None


def _shortest_number(number: int, kind: str) -> str:
    """A number in the shortest form for a setting of this kind."""
    for unit, bits in (("G", 30), ("M", 20), ("K", 10)) if kind == "size" else ():
        if number % (1 << bits) == 0:
            return f"{number >> bits}{unit}"
    return str(number)


def size(value: str, *, units: str = "KMG") -> int:
    """The bytes of a value of kind `size`. Raises `ValueError`."""
    match = _SIZE.fullmatch(value)
    if match is None or match[2] not in units:
        raise ValueError(f"{value!r} is no size")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def _check_patterns(key: str, value: str, place: str) -> None:
    for pattern in patterns(value):
        if pattern == "!" or (pattern.endswith("\\") and not gitignore.parse(os.fsencode(pattern))):
            raise BadSetting(
                f"Setting {key!r}{place} cannot be {without_passwords(value)!r}: "
                f"{without_passwords(pattern)!r} matches nothing."
            )


def patterns(value: str | None) -> list[str]:
    """The values of a setting with several values, separated by commas."""
    return [pattern.strip() for pattern in (value or "").split(",") if pattern.strip()]


def to_text(setting: Setting, value: Any) -> Any:
    """The text of a value in a settings file; the value itself if its type is wrong for the setting."""
    kind = setting.kind
    if kind in ("patterns", "names", "paths", "profiles", "kinds", "skills"):
        is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
        text = ",".join(value) if is_list else value
        return _NO_PATHS if kind == "paths" and value == [] else text
    if isinstance(value, bool):
        if "off" in setting.choices:
            return "on" if value else "off"
        return str(value).lower() if "false" in setting.choices else value
    if kind == "cost" and isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".") if abs(value) < 1e7 else str(value)
    if kind == "decimal" and isinstance(value, float):
        return repr(value)
    if kind in ("texts", "table") and isinstance(value, list | dict):
        try:
            return json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            return value  # a time, which JSON lacks
    return str(value) if kind != "text" and isinstance(value, int) else value


def to_value(setting: Setting, valid_text: str) -> Any:
    """The value of a valid text: a number, a flag, a list, a table or a text."""
    kind = setting.kind
    if kind in ("count", "seconds", "integer") or (kind == "percent" and valid_text != "never"):
        return int(valid_text)
    if kind in ("patterns", "names", "profiles", "kinds", "skills"):
        return patterns(valid_text)
    if kind == "paths":
        return paths(valid_text)
    if kind == "decimal":
        return float(valid_text)
    if kind == "flag" or (valid_text == "false" and setting.choices):
        return valid_text == "true"
    return _json(valid_text) if kind in ("texts", "table") else valid_text
