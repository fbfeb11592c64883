"""What each extension adds to the first request, as the table in docs/models.md says; nothing if it is off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from deepctl.agent.profile_setup import SetupReader
from deepctl.agent.questions import UserQuestion
from deepctl.agent.turn_engine import TurnEngine
from deepctl.domain import settings
from deepctl.layout import Root
from tests.support.loopback import Text, provider
from tests.support.tokens import request_tokens

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
_ROW = re.compile(r"^\| `(\w+) = \"(\w+)\"` \| ([0-9,]+) \|", re.MULTILINE)


def tokens_of(environment: dict[str, str], root: Root, options: Mapping[str, str]) -> int:
    """The tokens of a first request with these settings, with a terminal."""
    from deepctl.agent.chat import EphemeralChat, TurnRunner

    async def answer(question: UserQuestion) -> None:
        raise AssertionError(question)

    in_force = settings.without_files(environment, {"sandbox": "none", "model": "openai-chat:gpt-4o", **options})
    turn_options, _ = SetupReader(in_force, environment, can_ask=True).of_profile(root, root.profile("alice"))
    turn_options = turn_options._replace(spending=None, window_cache=None)
    with provider(Text(["Hello."])) as server:
        turn_options = turn_options._replace(base_url=f"{server.address}/v1")
        with closing(TurnRunner(turn_options, environment=environment, answerer=answer)) as runner:
            assert isinstance(runner.engine, TurnEngine)
            EphemeralChat(runner).turn("hello", lambda event: None)
        (request,) = server.requests
    return sum(request_tokens(request).values())


def test_the_table_has_the_tokens_of_each_extension(deepctl: Any, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    environment = {"OPENAI_API_KEY": "sk-nothing", "DEEPCTL_HOME": str(home)}
    root = Root(str(home))
    base = tokens_of(environment, root, {})
    rows = _ROW.findall(PAGE.read_text())
    measured = {key: tokens_of(environment, root, {key: value}) - base for key, value, _ in rows}
    assert {key: int(number.replace(",", "")) for key, _, number in rows} == measured
    assert {"subagents", "search_sessions", "ask_user", "web"} <= measured.keys()
    off = dict.fromkeys(measured, "off")
    assert tokens_of(environment, root, off) == base


def test_extensions_that_are_off_are_not_imported(deepctl: Any, home: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from deepctl.cli.main import main; main(['chat', 'hello', '--user', 'alice']);"
        "print(*sorted(n for n in sys.modules if n.startswith(("
        "'deepctl.agent.web', 'deepctl.agent.subagents', 'deepctl.agent.questions', 'deepctl.agent.past_sessions',"
        "'pydantic_ai_harness.subagents', 'pydantic_ai_harness.ask_user', 'bs4', 'markdownify', 'ddgs'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "", done.stdout
