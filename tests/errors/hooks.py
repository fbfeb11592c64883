"""Errors of the table of hooks in settings files."""

from __future__ import annotations

from tests.errors.mcp_servers import with_config
from tests.errors.situation import Situation, case


@case("config show", "`[hooks]` is misspelled")
def _(s: Situation) -> list[str]:
    return with_config(s, "[hook]\nturn_end = []")


@case("config show", "`[hooks]` is not a table")
def _(s: Situation) -> list[str]:
    return with_config(s, "hooks = 5")


@case("config show", "the event of a hook is unknown")
def _(s: Situation) -> list[str]:
    return with_config(s, "[hooks]\nbefore = []")


@case("config show", "the hooks of an event are not a list")
def _(s: Situation) -> list[str]:
    return with_config(s, '[hooks]\nturn_end = "x"')


@case("config show", "a hook is not a table")
def _(s: Situation) -> list[str]:
    return with_config(s, '[hooks]\nturn_end = ["x"]')


@case("config show", "a hook has an unknown key")
def _(s: Situation) -> list[str]:
    return with_config(s, '[hooks]\nbefore_tool = [{ command = "x", tool = "y" }]')


@case("config show", "a hook has no command")
def _(s: Situation) -> list[str]:
    return with_config(s, "[hooks]\nturn_end = [{ timeout = 5 }]")


@case("config show", "the tools of a hook are not names")
def _(s: Situation) -> list[str]:
    return with_config(s, '[hooks]\nbefore_tool = [{ command = "x", tools = [] }]')


@case("config show", "the timeout of a hook is invalid")
def _(s: Situation) -> list[str]:
    return with_config(s, '[hooks]\nturn_end = [{ command = "x", timeout = 601 }]')


@case("config show", "the field `sandbox` of a hook is not a boolean")
def _(s: Situation) -> list[str]:
    return with_config(s, '[hooks]\nturn_end = [{ command = "x", sandbox = "no" }]')
