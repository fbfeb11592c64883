"""Errors of settings: on the command line of `config`, and in the files that any command reads."""

from __future__ import annotations

import os

from tests.errors.situation import Situation, case

ANY = "any command"


@case("config get", "the setting does not exist")
def _(s: Situation) -> list[str]:
    return ["config", "get", "weather"]


@case("config get", "the name of the setting is misspelled")
def _(s: Situation) -> list[str]:
    return ["config", "get", "modle"]


@case("config get", "the setting is in a table, and the table is missing")
def _(s: Situation) -> list[str]:
    return ["config", "get", "temperature"]


@case("config set", "the provider in `model` is misspelled")
def _(s: Situation) -> list[str]:
    return ["config", "set", "model", "openai_chat:tiny"]


@case("config get", "the setting has no value and no default")
def _(s: Situation) -> list[str]:
    return ["config", "get", "base_url"]


@case("config set", "the setting does not exist")
def _(s: Situation) -> list[str]:
    return ["config", "set", "weather", "fine"]


@case("config set", "the setting is a key of a provider")
def _(s: Situation) -> list[str]:
    return ["config", "set", "keys.OPENAI_API_KEY", "sk-not-stored"]


@case("config set", "the value is empty")
def _(s: Situation) -> list[str]:
    return ["config", "set", "instructions", ""]


@case("config set", "the value is not UTF-8")
def _(s: Situation) -> list[str]:
    return ["config", "set", "instructions", "caf\udce9"]


@case("config set", "the value is not one of the allowed values")
def _(s: Situation) -> list[str]:
    return ["config", "set", "sandbox", "cardboard"]


@case("config set", "the value is not a whole number")
def _(s: Situation) -> list[str]:
    return ["config", "set", "limits.seconds", "soon"]


@case("config set", "the value is not a sum in USD")
def _(s: Situation) -> list[str]:
    return ["config", "set", "max_cost", "little"]


@case("config set", "the value is not a percentage")
def _(s: Situation) -> list[str]:
    return ["config", "set", "compact_at", "100"]


@case("config set", "the value is not a size")
def _(s: Situation) -> list[str]:
    return ["config", "set", "limits.memory", "2GB"]


@case("config set", "the number is too small")
def _(s: Situation) -> list[str]:
    return ["config", "set", "limits.memory", "1K"]


@case("config set", "the number is too large")
def _(s: Situation) -> list[str]:
    return ["config", "set", "limits.memory", "2000000G"]


@case("config set", "the number is not within its bounds")
def _(s: Situation) -> list[str]:
    return ["config", "set", "model_settings.temperature", "11"]


@case("config set", "the value is not a list of texts")
def _(s: Situation) -> list[str]:
    return ["config", "set", "model_settings.stop_sequences", "END"]


@case("config set", "the value is not a table")
def _(s: Situation) -> list[str]:
    return ["config", "set", "model_settings.extra_body", "[1]"]


@case("config set", "`extra_body` contains a field of deepctl")
def _(s: Situation) -> list[str]:
    return ["config", "set", "model_settings.extra_body", '{"messages": []}']


@case("config set", "`thinking_tags` are not two texts")
def _(s: Situation) -> list[str]:
    return ["config", "set", "model_profile.thinking_tags", '["<think>"]']


@case("config set", "the value is not a list of tool names")
def _(s: Situation) -> list[str]:
    return ["config", "set", "disabled_tools", "read file"]


@case("config set", "`base_url` is not an address")
def _(s: Situation) -> list[str]:
    return ["config", "set", "base_url", "localhost:8080"]


@case("config set", "`model` is not the name of a model")
def _(s: Situation) -> list[str]:
    return ["config", "set", "model", "gpt-5"]


@case("config set", "a pattern of `snapshot.exclude` is invalid")
def _(s: Situation) -> list[str]:
    return ["config", "set", "snapshot.exclude", "!"]


@case("config set", "a path of `read_only_paths` or `protected` is invalid")
def _(s: Situation) -> list[str]:
    return ["config", "set", "protected", "../x"]


@case("chat", "a path of `read_only_paths` is missing, or must not be seen by commands")
def _(s: Situation) -> list[str]:
    s.configure('read_only_paths = ["/proc"]\n')
    return ["chat", "hello"]


@case("config set", "`default_user` is not a valid name")
def _(s: Situation) -> list[str]:
    return ["config", "set", "default_user", "a/b"]


@case("config set", "the setting cannot be set for one profile")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["config", "set", "default_user", "alice", "--user", "alice"]


@case("config set", "another process is changing `config.toml`")
def _(s: Situation) -> list[str]:
    from deepctl.cli import config

    s.until_the_end(config._lock(None, "config set", 0.0))
    return ["config", "set", "model", "offline"]


@case("config unset", "the setting is not in the file")
def _(s: Situation) -> list[str]:
    return ["config", "unset", "model"]


@case("config unset", "the setting does not exist")
def _(s: Situation) -> list[str]:
    return ["config", "unset", "weather"]


@case(ANY, "a settings file is not TOML")
def _(s: Situation) -> list[str]:
    s.configure("model = \n")
    return ["config", "get", "model"]


@case(ANY, "a settings file has the format of a later deepctl")
def _(s: Situation) -> list[str]:
    s.configure("version = 99\n")
    return ["config", "get", "model"]


@case(ANY, "the version of a settings file is invalid")
def _(s: Situation) -> list[str]:
    s.configure('version = "one"\n')
    return ["config", "get", "model"]


@case(ANY, "there is no permission to read a settings file")
def _(s: Situation):  # type: ignore[no-untyped-def]
    s.configure("")
    os.chmod(s.config, 0)
    return s.confined("config", "get", "model", unprivileged=True)


@case(ANY, "a value in a settings file is not text")
def _(s: Situation) -> list[str]:
    s.configure("model = 5\n")
    return ["config", "get", "model"]


@case(ANY, "a value in a settings file is not one of the allowed values")
def _(s: Situation) -> list[str]:
    s.configure('sandbox = "cardboard"\n')
    return ["config", "get", "sandbox"]


@case(ANY, "a value in a settings file must be a table and is not")
def _(s: Situation) -> list[str]:
    s.configure("limits = 5\n")
    return ["config", "get", "limits.seconds"]


@case(ANY, "a number in a settings file is too small")
def _(s: Situation) -> list[str]:
    s.configure("[limits]\nseconds = 0\n")
    return ["config", "get", "limits.seconds"]


@case(ANY, "a value in a settings file must be a number and is not")
def _(s: Situation) -> list[str]:
    s.configure('[limits]\nseconds = "soon"\n')
    return ["config", "get", "limits.seconds"]


@case(ANY, "a pattern in a settings file is invalid")
def _(s: Situation) -> list[str]:
    s.configure('[snapshot]\nexclude = ["!"]\n')
    return ["config", "get", "snapshot.exclude"]


@case("config show", "a key of `[model_settings]` or `[model_profile]` is misspelled")
def _(s: Situation) -> list[str]:
    s.configure("[model_settings]\ntemprature = 1\n")
    return ["config", "show"]


@case("config show", "the name of the table `[model_settings]` or `[model_profile]` is misspelled")
def _(s: Situation) -> list[str]:
    s.configure("[model-settings]\nseed = 1\n")
    return ["config", "show"]


@case("chat", "settings of `[model_profile]` exclude each other")
def _(s: Situation) -> list[str]:
    s.configure('[model_profile]\nopenai_chat_send_back_thinking_parts = "field"\n')
    s.patch.setenv("OPENAI_API_KEY", "sk-test")
    return ["chat", "hello", "--model", "openai-chat:m"]


RULES = "sandbox show"


def _rules(s: Situation, text: str) -> list[str]:
    s.alice()
    with s.settings.open("a") as file:
        file.write(text)
    return ["sandbox", "show", "--user", "alice"]


@case(RULES, "`permissions` is misspelled")
def _(s: Situation) -> list[str]:
    return _rules(s, "[permission]\n")


@case(RULES, "`permissions` is not a table")
def _(s: Situation) -> list[str]:
    return _rules(s, "permissions = 5\n")


@case(RULES, "the operation does not exist")
def _(s: Situation) -> list[str]:
    return _rules(s, '[permissions]\nfly = "ask"\n')


@case(RULES, "the action does not exist")
def _(s: Situation) -> list[str]:
    return _rules(s, '[permissions]\nread = "perhaps"\n')


@case(RULES, "the value of an operation is neither an action nor a table")
def _(s: Situation) -> list[str]:
    return _rules(s, "[permissions]\nread = 5\n")


@case(RULES, "the rules are not a list")
def _(s: Situation) -> list[str]:
    return _rules(s, '[permissions.read]\nrules = "all"\n')


@case(RULES, "a rule is not a table")
def _(s: Situation) -> list[str]:
    return _rules(s, '[permissions.read]\nrules = ["all"]\n')


@case(RULES, "a rule has no pattern")
def _(s: Situation) -> list[str]:
    return _rules(s, '[permissions.read]\nrules = [{ action = "deny" }]\n')


@case(RULES, "the description of a rule is not text")
def _(s: Situation) -> list[str]:
    return _rules(s, '[permissions.read]\nrules = [{ pattern = "**", action = "deny", description = 5 }]\n')


@case(RULES, "a rule has an unknown key")
def _(s: Situation) -> list[str]:
    return _rules(s, '[permissions.read]\nrules = [{ pattern = "**", acton = "deny" }]\n')


@case(RULES, "the pattern of a rule cannot match anything")
def _(s: Situation) -> list[str]:
    return _rules(s, '[permissions.read]\nrules = [{ pattern = "../secrets", action = "deny" }]\n')


@case(RULES, "a character class in a pattern is invalid")
def _(s: Situation) -> list[str]:
    return _rules(s, '[permissions.read]\nrules = [{ pattern = "[z-a]", action = "deny" }]\n')


@case("config set", "a profile of `memory.read` is not a valid name")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["config", "set", "memory.read", "team,../bob", "--user", "alice"]
