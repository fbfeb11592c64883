"""Budgets: which hold, when they refuse, when they warn."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import pytest

from deepctl.domain import budgets, settings
from deepctl.domain.budgets import Budget, Spending
from deepctl.errors import BadSetting, BudgetReached, Locked
from deepctl.layout import ProfilePaths, Root
from deepctl.store import usage_log, usage_sums
from deepctl.store.usage_log import UsageEntry
from tests.support.command import InProcess

TOKENS = Budget("max_tokens_day", 1000, "alice")
MONEY = Budget("max_cost_day", Decimal("2.00"), None)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(str(tmp_path / "root"))
    os.makedirs(root.locks)
    for name in ("alice", "bob"):
        os.makedirs(root.profile(name).directory)
    return root


def entry(tokens: int, cost: float | None = 0.0, *, day: str | None = None) -> UsageEntry:
    at = f"{day or usage_sums.today()}T12:00:00Z"
    return UsageEntry(usage_log.new_id(), at, None, 1, "m", "answer", tokens, 0, 0, cost, estimated=True)


def spend(spending: Spending, tokens: int, cost: float | None = 0.0) -> list[str]:
    """Send a request, which costs what was estimated; returns the settings of warnings."""
    request = entry(tokens, cost)
    spending.begin(request)
    return [state.budget.setting for state in spending.end(request)]


def test_both_files_have_budgets_and_both_hold(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "max_cost_day", "5").ok()
    deepctl("config", "set", "max_cost_day", "1.50", "--user", "alice").ok()
    deepctl("config", "set", "max_tokens_day", "100000", "--user", "alice").ok()
    in_force = settings.load(os.environ, Root(str(home)).profile("alice"))
    assert set(budgets.of_settings(in_force, "alice")) == {
        Budget("max_cost_day", Decimal("1.50"), "alice"),
        Budget("max_tokens_day", 100_000, "alice"),
        Budget("max_cost_day", Decimal(5), None),
    }
    for value in ("0", "-1", "much", "1e3"):
        assert deepctl("config", "set", "max_cost_month", value).code == 2
    (home / "profiles/alice/profile.toml").write_text('max_tokens_day = "many"\n')
    with pytest.raises(BadSetting, match="max_tokens_day"):
        budgets.of_settings(settings.load(os.environ, Root(str(home)).profile("alice")), "alice")


def test_a_request_that_would_reach_the_limit_is_refused_and_not_recorded(root: Root) -> None:
    paths = root.profile("alice")
    spending = Spending(root, paths, [TOKENS])
    assert spend(spending, 700) == []
    with pytest.raises(BudgetReached, match="the next request takes at least 300 tokens") as refused:
        spending.begin(entry(300))
    assert (refused.value.code, refused.value.exit_code) == ("budget", 7)
    assert "config set max_tokens_day 2000 --user alice" in (refused.value.hint or "")
    assert len(usage_log.read(paths).entries) == 1
    assert spend(spending, 299) == ["max_tokens_day"]
    with pytest.raises(BudgetReached):
        spending.begin(entry(1))


def test_a_budget_of_all_counts_every_profile_and_a_budget_of_one_only_its_own(root: Root) -> None:
    alice = Spending(root, root.profile("alice"), [MONEY, TOKENS])
    bob = Spending(root, root.profile("bob"), [MONEY])
    spend(bob, 5000, 1.0)
    assert spend(alice, 500, 0.5) == []
    with pytest.raises(BudgetReached, match=r"all profiles together have spent 1\.50 USD today"):
        alice.begin(entry(1, 0.5))
    assert [round(state.spent, 6) for state in alice.states()] == [1.5, 500]
    assert spend(bob, 5000, 0.4) == ["max_cost_day"]
    with pytest.raises(BudgetReached):
        bob.begin(entry(1, 0.2))


def test_a_new_day_and_a_new_month_begin_anew(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    month = Budget("max_cost_month", Decimal(3), "alice")
    spending = Spending(root, root.profile("alice"), [month, Budget("max_cost_day", Decimal(2), "alice")])
    monkeypatch.setattr(usage_sums, "today", lambda: "2026-11-29")
    spend(spending, 1, 1.9)
    with pytest.raises(BudgetReached, match=r"today.*max_cost_day"):
        spending.begin(entry(1, 0.5))
    monkeypatch.setattr(usage_sums, "today", lambda: "2026-11-30")
    spend(spending, 1, 0.5)
    with pytest.raises(BudgetReached, match=r"this month.*max_cost_month") as refused:
        spending.begin(entry(1, 0.9))
    assert "with the next month" in (refused.value.hint or "")
    monkeypatch.setattr(usage_sums, "today", lambda: "2026-12-01")
    spend(spending, 1, 1.0)


def test_a_warning_comes_once_a_day_also_after_a_restart(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = root.profile("alice")
    spending = Spending(root, paths, [TOKENS])
    assert [spend(spending, tokens) for tokens in (790, 20, 20)] == [[], ["max_tokens_day"], []]
    assert spend(Spending(root, paths, [TOKENS]), 20) == []
    higher = TOKENS._replace(limit=1001)
    assert spend(Spending(root, paths, [higher]), 20) == ["max_tokens_day"], "another limit is another warning"
    monkeypatch.setattr(usage_sums, "today", lambda: "2099-01-01")
    assert [spend(spending, tokens) for tokens in (100, 800)] == [[], ["max_tokens_day"]]


def test_a_budget_holds_where_nothing_can_be_written(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = root.profile("alice")
    spending = Spending(root, paths, [TOKENS])
    spend(spending, 100)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(usage_log, "append", full)
        spend(spending, 600)
        assert spending.problem is not None
        assert "the disk is full" in spending.problem
        with pytest.raises(BudgetReached):
            spending.begin(entry(400))
    spend(spending, 100)
    assert spending.problem is None
    assert [one.input for one in usage_log.read(paths).entries] == [100, 600, 100]


def test_a_usage_that_cannot_be_read_lets_no_request_through_a_budget(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object) -> None:
        raise Locked("Another process has it.")

    monkeypatch.setattr(usage_log, "lock", locked)
    spending = Spending(root, root.profile("alice"), [TOKENS])
    with pytest.raises(Locked):
        spending.begin(entry(1))
    without = Spending(root, root.profile("alice"))
    assert spend(without, 1) == []
    assert without.problem == "Another process has it."


def test_a_damaged_profile_does_not_stop_the_others(root: Root) -> None:
    os.symlink("/dev/null", root.profile("bob").usage)
    spending = Spending(root, root.profile("alice"), [MONEY])
    spend(spending, 1, 1.0)
    assert [state.spent for state in spending.states()] == [1.0]


def test_sums_of_money_are_short_and_never_zero() -> None:
    for amount, text in ((0, "0.00"), (0.5, "0.50"), (0.0123, "0.0123"), (1234.5, "1,234.50"), (0.000001, "0.000001")):
        assert budgets.dollars(amount) == text


def test_a_profile_of_another_name_is_not_counted_twice(root: Root) -> None:
    paths: ProfilePaths = root.profile("alice")
    spend(Spending(root, paths, [MONEY]), 1, 0.25)
    assert [state.spent for state in Spending(root, paths, [MONEY]).states()] == [0.25]


def test_the_hint_names_a_limit_that_lets_the_request_through(root: Root) -> None:
    spend(Spending(root, root.profile("alice")), 2499, 41.0)
    for budget in (TOKENS._replace(limit=100), MONEY):
        request = entry(300, 7.5)
        with pytest.raises(BudgetReached) as refused:
            Spending(root, root.profile("alice"), [budget]).begin(request)
        words = (refused.value.hint or "").split()
        raised = Decimal(words[words.index(budget.setting) + 1])
        spending = Spending(root, root.profile("alice"), [budget._replace(limit=raised)])
        spending.begin(request)
        assert spending.end(request._replace(input=0, cost=0.0)) == [], "it is not near its end"
