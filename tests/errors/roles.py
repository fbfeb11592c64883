"""Errors of roles."""

from __future__ import annotations

from pathlib import Path

from tests.errors.situation import Situation, case
from tests.support.command import Result


def _own(s: Situation, text: str | None = "", name: str = "ours") -> Path:
    """A role of the user."""
    place = s.home / "roles" / name
    place.mkdir(parents=True)
    if text is not None:
        (place / "role.toml").write_text(text)
    return place


def _theirs(s: Situation, text: str = "", name: str = "theirs") -> Path:
    """A directory to import."""
    place = s.place / name
    place.mkdir()
    (place / "role.toml").write_text(text)
    return place


SHOW = ["roles", "show", "ours"]


@case("profiles create", "`--like` names no role")
def _(s: Situation) -> list[str]:
    return ["profiles", "create", "bob", "--like", "reviwer"]


@case("profiles create", "`--like` names a damaged role")
def _(s: Situation) -> list[str]:
    _own(s, "x =")
    return ["profiles", "create", "bob", "--like", "ours"]


@case("roles show", "the role does not exist")
def _(s: Situation) -> list[str]:
    return SHOW


@case("roles show", "the name is invalid")
def _(s: Situation) -> list[str]:
    return ["roles", "show", "a/b"]


@case("roles show", "the role is a symbolic link")
def _(s: Situation) -> list[str]:
    _own(s, name="other")
    (s.home / "roles" / "ours").symlink_to("other")
    return SHOW


@case("roles show", "the role has no `role.toml`")
def _(s: Situation) -> list[str]:
    _own(s, None)
    return SHOW


@case("roles show", "a later deepctl made the role")
def _(s: Situation) -> list[str]:
    _own(s, "version = 9\n")
    return SHOW


@case("roles show", "a setting of the role has an invalid value")
def _(s: Situation) -> list[str]:
    _own(s, 'approve = "maybe"\n')
    return SHOW


@case("roles show", "the description has several lines")
def _(s: Situation) -> list[str]:
    _own(s, 'description = "a\\nb"\n')
    return SHOW


CREATE = ["roles", "create", "ours", "--from", "alice"]


@case("roles create", "the profile does not exist")
def _(s: Situation) -> list[str]:
    return CREATE


@case("roles create", "`--from` is missing")
def _(s: Situation) -> list[str]:
    return ["roles", "create", "ours"]


@case("roles create", "the description has several lines")
def _(s: Situation) -> list[str]:
    s.alice()
    return [*CREATE, "--description", "a\nb"]


@case("roles create", "you have a role of this name")
def _(s: Situation) -> list[str]:
    s.alice()
    _own(s, name="Ours")
    return CREATE


@case("roles create", "a notebook is too large")
def _(s: Situation) -> list[str]:
    s.alice()
    memory = s.workspace / ".deep" / "memory" / "main"
    memory.mkdir(parents=True)
    (memory / "MEMORY.md").write_bytes(b"x" * ((1 << 20) + 1))
    return CREATE


@case("roles create", "a notebook is a symbolic link")
def _(s: Situation) -> list[str]:
    s.alice()
    memory = s.workspace / ".deep" / "memory" / "main"
    memory.mkdir(parents=True)
    (memory / "MEMORY.md").symlink_to("/etc/passwd")
    return CREATE


@case("roles import", "the directory does not exist")
def _(s: Situation) -> list[str]:
    return ["roles", "import", "nowhere"]


@case("roles import", "the directory has no `role.toml`")
def _(s: Situation) -> list[str]:
    return ["roles", "import", str(s.place)]


@case("roles import", "the `role.toml` is a symbolic link")
def _(s: Situation) -> list[str]:
    theirs = _theirs(s)
    (theirs / "role.toml").rename(s.place / "moved")
    (theirs / "role.toml").symlink_to(s.place / "moved")
    return ["roles", "import", str(theirs)]


@case("roles import", "the name of the directory is not a valid name")
def _(s: Situation) -> list[str]:
    return ["roles", "import", str(_theirs(s, name="a b"))]


@case("roles import", "the `role.toml` is not TOML")
def _(s: Situation) -> list[str]:
    return ["roles", "import", str(_theirs(s, "x ="))]


@case("roles import", "the settings are nested too deeply")
def _(s: Situation) -> list[str]:
    deep = "{ a = " * 40 + "1" + " }" * 40
    return ["roles", "import", str(_theirs(s, f"[model_settings]\nextra_body = {deep}\n"))]


@case("roles import", "you have a role of this name")
def _(s: Situation) -> list[str]:
    _own(s, name="Theirs")
    return ["roles", "import", str(_theirs(s))]


@case("roles export", "the directory exists")
def _(s: Situation) -> list[str]:
    return ["roles", "export", "writer", str(_theirs(s))]


@case("roles export", "the directory above it does not exist")
def _(s: Situation) -> list[str]:
    return ["roles", "export", "writer", str(s.place / "nowhere" / "writer")]


@case("roles export", "the directory would be inside deepctl's own state")
def _(s: Situation) -> list[str]:
    _own(s)
    return ["roles", "export", "writer", str(s.home / "roles" / "writer")]


@case("roles delete", "the role ships with deepctl")
def _(s: Situation) -> list[str]:
    return ["roles", "delete", "writer", "--yes"]


@case("roles delete", "there is no terminal for the confirmation")
def _(s: Situation) -> list[str]:
    _own(s)
    return ["roles", "delete", "ours"]


@case("roles delete", "the answer is no", only="text")
def _(s: Situation) -> Result:
    _own(s)
    terminal = s.terminal("roles", "delete", "ours")
    terminal.expect("[y/N]")
    terminal.type("no\r")
    return s.left(terminal, terminal.wait())
