"""Errors of keys: `deepctl keys`, and references in `[keys]`."""

from __future__ import annotations

import sys

from tests.errors.situation import Situation, case
from tests.support.command import Result
from tests.support.keyring_in_memory import LockedKeyring, MemoryKeyring, installed


def _alice_with(s: Situation, reference: str) -> None:
    """Alice's profile with a line in `[keys]`."""
    s.alice()
    s.settings.write_text(f"{s.settings.read_text()}\n[keys]\n{reference}\n")


@case("keys set", "the profile does not exist")
def _(s: Situation) -> list[str]:
    return ["keys", "set", "OPENAI_API_KEY", "--user", "nobody"]


@case("keys set", "NAME is not in capital letters")
def _(s: Situation) -> list[str]:
    return ["keys", "set", "openai_api_key", "--user", "alice"]


@case("keys set", "NAME cannot be a name; it may be the key itself")
def _(s: Situation) -> list[str]:
    return ["keys", "set", "sk-canary-0123456789", "--user", "alice"]


@case("keys set", "NAME is the variable of an address")
def _(s: Situation) -> list[str]:
    return ["keys", "set", "OPENAI_BASE_URL", "--user", "alice"]


@case("keys set", "NAME is similar to that of a provider's key")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["keys", "set", "OPENAI_APIKEY", "--user", "alice"]


@case("keys set", "`profile.toml` has a reference of that name")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'OPENAI_API_KEY = { env = "ALICE_OPENAI" }')
    return ["keys", "set", "OPENAI_API_KEY", "--user", "alice"]


@case("keys set", "the key is empty")
def _(s: Situation) -> Result:
    s.alice()
    return s.run("keys", "set", "OPENAI_API_KEY", "--user", "alice", "--store", "file", stdin=b"\n")


@case("keys set", "the key has several lines")
def _(s: Situation) -> Result:
    s.alice()
    return s.run("keys", "set", "OPENAI_API_KEY", "--user", "alice", "--store", "file", stdin=b"sk-canary\nsk-canary\n")


@case("keys set", "the key contains a control character")
def _(s: Situation) -> Result:
    s.alice()
    return s.run("keys", "set", "OPENAI_API_KEY", "--user", "alice", "--store", "file", stdin=b"sk-\x1bcanary\n")


@case("keys set", "the input is not UTF-8")
def _(s: Situation) -> Result:
    s.alice()
    return s.run("keys", "set", "OPENAI_API_KEY", "--user", "alice", "--store", "file", stdin=b"sk-\xe9\n")


@case("keys set", "the input is larger than 64 KiB")
def _(s: Situation) -> Result:
    s.alice()
    return s.run("keys", "set", "OPENAI_API_KEY", "--user", "alice", "--store", "file", stdin=b"x" * (1 << 17))


@case("keys set", "`--store keyring` without the extra `keyring`")
def _(s: Situation) -> list[str]:
    s.alice()
    s.patch.setitem(sys.modules, "keyring", None)
    return ["keys", "set", "OPENAI_API_KEY", "--user", "alice", "--store", "keyring"]


@case("keys set", "`--store keyring`, and there is no keyring")
def _(s: Situation) -> list[str]:
    s.alice()
    s.patch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    installed(s.patch, None)
    return ["keys", "set", "OPENAI_API_KEY", "--user", "alice", "--store", "keyring"]


@case("keys set", "the keyring cannot be unlocked")
def _(s: Situation) -> Result:
    s.alice()
    installed(s.patch, LockedKeyring())
    return s.run("keys", "set", "OPENAI_API_KEY", "--user", "alice", stdin=b"sk-canary\n")


@case("keys set", "another process is working on the profile")
def _(s: Situation) -> Result:
    s.alice()
    s.lock()
    return s.run("keys", "set", "OPENAI_API_KEY", "--user", "alice", "--store", "file", stdin=b"sk-canary\n")


@case("keys unset", "the profile has no key of that name")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["keys", "unset", "OPENAI_API_KEY", "--user", "alice"]


@case("keys unset", "the key is in `config.toml`")
def _(s: Situation) -> list[str]:
    s.alice()
    s.configure('[keys]\nOPENAI_API_KEY = { env = "ALICE_OPENAI" }\n')
    return ["keys", "unset", "OPENAI_API_KEY", "--user", "alice"]


@case("keys unset", "there is no terminal for the confirmation, and no `--yes`")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'OPENAI_API_KEY = { env = "ALICE_OPENAI" }')
    return ["keys", "unset", "OPENAI_API_KEY", "--user", "alice"]


@case("keys list", "`[keys]` is not a table")
def _(s: Situation) -> list[str]:
    s.alice()
    s.settings.write_text(f'keys = "sk-canary"\n{s.settings.read_text()}')
    return ["keys", "list", "--user", "alice"]


@case("keys list", "the name of the table is misspelt")
def _(s: Situation) -> list[str]:
    s.alice()
    s.settings.write_text(f'{s.settings.read_text()}\n[key]\nOPENAI_API_KEY = {{ env = "X" }}\n')
    return ["keys", "list", "--user", "alice"]


@case("keys list", "a key is in the place of a reference")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'OPENAI_API_KEY = "sk-canary-0123456789"')
    return ["keys", "list", "--user", "alice"]


@case("keys list", "a name in `[keys]` is invalid")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'openai_api_key = { env = "ALICE_OPENAI" }')
    return ["keys", "list", "--user", "alice"]


@case("keys list", "a name in `[keys]` is similar to that of a provider's key")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'ANTHROPIC_APIKEY = { env = "ALICE_OPENAI" }')
    return ["keys", "list", "--user", "alice"]


@case("keys list", "the kind of a reference is unknown")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'OPENAI_API_KEY = { comand = "pass show x" }')
    return ["keys", "list", "--user", "alice"]


@case("keys list", "a reference has two kinds")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'OPENAI_API_KEY = { env = "A", file = "/b" }')
    return ["keys", "list", "--user", "alice"]


@case("keys list", "a reference is not a text")
def _(s: Situation) -> list[str]:
    _alice_with(s, "OPENAI_API_KEY = { env = 7 }")
    return ["keys", "list", "--user", "alice"]


@case("keys list", "`env` is not the name of a variable")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'OPENAI_API_KEY = { env = "sk-canary-0123456789" }')
    return ["keys", "list", "--user", "alice"]


@case("keys list", "`file` is a relative path")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'OPENAI_API_KEY = { file = "keys/alice" }')
    return ["keys", "list", "--user", "alice"]


@case("keys list", "a quotation mark in `command` is not closed")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'OPENAI_API_KEY = { command = "pass \'show x" }')
    return ["keys", "list", "--user", "alice"]


@case("keys list", "`command` begins with a relative path")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'OPENAI_API_KEY = { command = "./get key" }')
    return ["keys", "list", "--user", "alice"]


@case("chat", "the variable of a reference is not set")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'OPENAI_API_KEY = { env = "ALICE_OPENAI" }')
    return ["chat", "--user", "alice", *s.provider(), "hello"]


@case("chat", "the file of a reference does not exist")
def _(s: Situation) -> list[str]:
    _alice_with(s, f'OPENAI_API_KEY = {{ file = "{s.place}/nothing" }}')
    return ["chat", "--user", "alice", *s.provider(), "hello"]


@case("chat", "other users can read the file of a reference")
def _(s: Situation) -> list[str]:
    path = s.place / "key"
    path.write_text("sk-canary\n")
    path.chmod(0o644)
    _alice_with(s, f'OPENAI_API_KEY = {{ file = "{path}" }}')
    return ["chat", "--user", "alice", *s.provider(), "hello"]


@case("chat", "the file of a reference is a link")
def _(s: Situation) -> list[str]:
    path = s.place / "key"
    path.write_text("sk-canary\n")
    path.chmod(0o600)
    (s.place / "link").symlink_to(path)
    _alice_with(s, f'OPENAI_API_KEY = {{ file = "{s.place}/link" }}')
    return ["chat", "--user", "alice", *s.provider(), "hello"]


@case("chat", "the command of a reference fails")
def _(s: Situation) -> list[str]:
    script = s.place / "script"
    script.write_text("echo sk-canary\nexit 3\n")
    _alice_with(s, f'OPENAI_API_KEY = {{ command = "sh {script}" }}')
    return ["chat", "--user", "alice", *s.provider(), "hello"]


@case("chat", "the command of a reference prints nothing")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'OPENAI_API_KEY = { command = "true" }')
    return ["chat", "--user", "alice", *s.provider(), "hello"]


@case("chat", "the program of a reference is not installed")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'OPENAI_API_KEY = { command = "no-such-program show x" }')
    return ["chat", "--user", "alice", *s.provider(), "hello"]


@case("chat", "a reference needs the extra `keyring`, which is not installed")
def _(s: Situation) -> list[str]:
    s.patch.setitem(sys.modules, "keyring", None)
    _alice_with(s, 'OPENAI_API_KEY = { keyring = "openai-alice" }')
    return ["chat", "--user", "alice", *s.provider(), "hello"]


@case("chat", "the keyring has no entry for a reference")
def _(s: Situation) -> list[str]:
    installed(s.patch, MemoryKeyring())
    _alice_with(s, 'OPENAI_API_KEY = { keyring = "openai-alice" }')
    return ["chat", "--user", "alice", *s.provider(), "hello"]


@case("chat", "the client of the provider cannot be given the key of a reference")
def _(s: Situation) -> list[str]:
    _alice_with(s, 'ANTHROPIC_AUTH_TOKEN = { env = "ALICE_TOKEN" }')
    return ["chat", "--user", "alice", "--model", "anthropic:m", "hello"]


@case("chat", "the provider refuses a key by reference")
def _(s: Situation) -> list[str]:
    from tests.support.loopback import Status

    s.patch.setenv("ALICE_OPENAI", "sk-canary-0123456789")
    _alice_with(s, 'OPENAI_API_KEY = { env = "ALICE_OPENAI" }')
    return ["chat", "--user", "alice", *s.provider(Status(401, "no")), "hello"]


@case("profiles rename", "a stored key is in a keyring that cannot be unlocked")
def _(s: Situation) -> list[str]:
    s.alice()
    with installed(s.patch, MemoryKeyring()):
        s.run("keys", "set", "OPENAI_API_KEY", "--user", "alice", stdin=b"sk-canary\n")
    installed(s.patch, LockedKeyring())
    return ["profiles", "rename", "alice", "bob"]


@case("wipe", "a stored key is in a keyring that cannot be unlocked")
def _(s: Situation) -> list[str]:
    s.alice()
    with installed(s.patch, MemoryKeyring()):
        s.run("keys", "set", "OPENAI_API_KEY", "--user", "alice", stdin=b"sk-canary\n")
    installed(s.patch, LockedKeyring())
    return ["wipe", "--user", "alice", "--yes"]
