"""Random turns against a provider that counts for itself: the usage is the same. Two processes and one budget."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepctl.agent import model_wrappers
from tests.agent.test_usage import entries, point, until
from tests.support.command import Command, InProcess
from tests.support.loopback import Answer, Broken, Provider, Stalled, Status, Text, ToolCalls, provider

SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
TURNS = 200 if SOAK else 14
MODEL = "openai-chat:gpt-4o"
QUICKLY = {"retry-after-ms": "2"}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_wrappers, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
    monkeypatch.setenv("DEEPCTL_MODEL", MODEL)


class _Bill:
    """The answers of one provider, each with other numbers, and its own count of those that it has sent whole."""

    def __init__(self, server: Provider) -> None:
        self.server = server
        self.whole: Counter[tuple[int, int, int]] = Counter()
        self._numbers = itertools.count(1)
        self._next = server._next
        server._next = self._following  # type: ignore[method-assign]

    def used(self) -> tuple[int, int]:
        number = next(self._numbers)
        return 1000 + number, 100 + number

    def answer(self, *pieces: str) -> Text:
        sent, received = self.used()
        return Text([*pieces], used=(sent, received), cached=sent // 3)

    def calls(self, prompt: str) -> ToolCalls:
        return ToolCalls([("write_file", {"path": "a.txt", "content": prompt})], used=self.used())

    def _following(self) -> Answer:
        answer = self._next()
        if isinstance(answer, Text | ToolCalls) and answer.used is not None:
            cached = answer.cached or 0 if isinstance(answer, Text) else 0
            self.whole[(answer.used[0], cached, answer.used[1])] += 1
        return answer

    def script(self, *answers: Answer) -> None:
        self.server._answers[:] = answers


def _turns(
    deepctl: InProcess, process: Command, bill: _Bill, randomness: random.Random
) -> Iterator[tuple[str, int | None]]:
    """Runs one turn or another command each; yields its name, and the exit code."""
    names = ["answer", "tool", "busy", "refused", "cut", "silent", "cancelled", "killed", "killed later"]
    names += ["rewind", "fork", "compact", "check", "deleted"]
    rounds = itertools.chain.from_iterable(randomness.sample(names, len(names)) for _ in itertools.count())
    forks = itertools.count(1)
    while True:
        name = next(rounds)
        prompt = f"{name} {randomness.random()}"
        chat: tuple[str, ...] = ("chat", "--session", "main", prompt)
        bill.script(*[bill.answer("Spare.") for _ in range(20)])
        match name:
            case "answer":
                bill.script(bill.answer("Yes, ", "of course."))
            case "tool":
                bill.script(bill.calls(prompt), bill.calls("more"), bill.answer("Written."))
            case "busy":
                bill.script(Status(429, "slow", QUICKLY), Broken("reset"), Broken("refused"), bill.answer("At last."))
            case "refused":
                bill.script(bill.calls(prompt), Status(400, "no"))
            case "cut":
                bill.script(bill.calls(prompt), Broken("cut"))
            case "silent":
                bill.script(Text(["No report."], used=None))
            case "cancelled":
                bill.script(bill.calls(prompt), Stalled(["Half"]))
                chat = (*chat, "--timeout", "1")
            case "killed" | "killed later":
                before = len(bill.server.requests)
                stalled = Stalled(["Half"], headers=name == "killed later")
                bill.script(bill.calls(prompt), stalled)
                running = process.start(*chat)
                until(lambda before=before: len(bill.server.requests) == before + 2)
                running.kill()
                yield name, running.wait()
                continue
            case "rewind":
                yield name, deepctl("checkpoints", "rewind", "~1", "--session", "main", "--exact").code
                continue
            case "fork":
                deepctl("checkpoints", "fork", "~0", f"fork{next(forks)}", "--session", "main")
                chat = ("chat", "--session", "main", prompt)
            case "compact":
                chat = ("sessions", "compact", "main")
            case "check":
                chat = ("models", "--check")
            case "deleted":
                deepctl("chat", "--new", "gone", prompt)
                chat = ("sessions", "delete", "gone", "--yes")
        yield name, deepctl(*chat).code


@pytest.mark.timeout(1800 if SOAK else 180)
def test_the_usage_is_the_providers_own_count(
    deepctl: InProcess, process: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    randomness = random.Random(20261130)
    codes: Counter[tuple[str, int | None]] = Counter()
    with provider(Text(["x"])) as server:
        point(server, monkeypatch)
        bill = _Bill(server)
        bill.script(bill.answer("Hello."))
        deepctl("chat", "--session", "main", "hello").ok()
        for turn in itertools.islice(_turns(deepctl, process, bill, randomness), TURNS):
            codes[turn] += 1
            exact = Counter((entry.input, entry.cached, entry.output) for entry in entries(home) if not entry.estimated)
            assert exact == bill.whole, turn
            assert len(entries(home)) == len(server.requests), turn
    total = deepctl("usage", "--json").ok().json["total"]
    estimated = total["estimated"]
    sums = [sum(counts[place] * number for counts, number in bill.whole.items()) for place in range(3)]
    names = ("input_tokens", "cached_tokens", "output_tokens")
    assert [total[name] - estimated[name] for name in names] == sums
    assert total["requests"] == len(server.requests)
    assert estimated["requests"] == len(server.requests) - bill.whole.total()
    by_session = deepctl("usage", "--by", "session", "--json").ok().json
    assert by_session["total"] == total
    assert deepctl("checkpoints", "verify").code == 0
    print(
        f"{TURNS} turns, {len(server.requests)} requests, {bill.whole.total()} of them reported and equal, "
        f"{estimated['requests']} estimated; {sorted(codes.items(), key=str)}"
    )


@pytest.mark.timeout(600)
def test_a_kill_at_any_moment_loses_no_request(process: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    randomness = random.Random(20261202)
    kills = 60 if SOAK else 4
    gaps = 0
    with provider(Text(["x"])) as server:
        point(server, monkeypatch)
        bill = _Bill(server)
        for number in range(kills):
            before, lines = len(server.requests), len(entries(home))
            bill.script(*[bill.calls(str(place)) for place in range(6)], *[bill.answer("Done.")] * 5)
            running = process.start("chat", "--session", "main", f"prompt {number}")
            until(lambda before=before, running=running: len(server.requests) > before or running.poll() is not None)
            time.sleep(randomness.uniform(0, 0.4))
            running.kill()
            running.wait()
            found = entries(home)
            exact = Counter((entry.input, entry.cached, entry.output) for entry in found if not entry.estimated)
            assert exact <= bill.whole, "what is reported was sent"
            # The kill may come between the record and the request.
            assert 0 <= len(found) - lines - (len(server.requests) - before) <= 1
            assert (bill.whole - exact).total() <= number + 1, "a kill makes one estimate at most"
            gaps = (bill.whole - exact).total()
    print(f"{kills} kills, {len(server.requests)} requests, {gaps} whole answers whose record is an estimate")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("setting", ["max_tokens_day", "max_cost_day"])
def test_two_processes_pass_a_budget_by_no_more_than_a_request_each(
    deepctl: InProcess, process: Command, home: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    randomness = random.Random(20261201)
    rounds = 12 if SOAK else 1
    sent, received = 2500, 4000
    tokens = sent + received
    most_passed = 0.0
    for number in range(rounds):
        users = (f"alice{number}", f"bob{number}")
        with provider(ToolCalls([("ls", {"path": "."})], used=(sent, received)), repeat_last=True) as server:
            point(server, monkeypatch)
            for user in users:
                deepctl("profiles", "create", user).ok()
            spent = deepctl("usage", "--all", "--json").ok().json["total"]
            price = 2.5e-6 * sent + 1e-5 * received
            limit = randomness.randrange(8, 14) + randomness.random()
            if setting == "max_tokens_day":
                before = spent["input_tokens"] + spent["output_tokens"]
                value, unit = int(before + limit * tokens), float(tokens)
            else:
                before = spent["cost"]
                value, unit = round(before + limit * price, 6), price
            deepctl("config", "set", setting, str(value)).ok()
            running = [process.start("chat", "--user", user, "--json", "look around") for user in users]
            outs = [one.communicate(timeout=120)[0] for one in running]
            assert [one.returncode for one in running] == [7, 7], outs
            assert all(b'"code": "budget"' in out for out in outs), outs
        after = deepctl("usage", "--all", "--json").ok().json["total"]
        now = after["input_tokens"] + after["output_tokens"] if setting == "max_tokens_day" else after["cost"]
        passed = (now - value) / unit
        most_passed = max(most_passed, passed)
        assert after["estimated"]["requests"] == 0
        assert len(server.requests) == after["requests"] - spent["requests"]
        assert passed <= len(users), f"passed by {passed:.2f} requests"
        assert passed > -2 * (1 + sent / tokens), "the budget was used"
    print(f"{setting}: {rounds} rounds, passed by at most {most_passed:.2f} requests")
