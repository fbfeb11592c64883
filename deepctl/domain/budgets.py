"""Budgets: the most that requests to models may cost in a day or a month, and the tokens that they may take in a day.

A budget in profile.toml is that of the profile; a budget in config.toml is for all profiles together. Both hold. Days
and months are those of the local calendar.

`Spending` records each request of a profile, and refuses one that begins when a budget is used up: spent plus the
estimated input of the request reaches the limit. Both happens under one lock, so two processes know of each other's
requests; a request that is under way counts with its estimate. The output of a request is not known before, so one
request of each process can pass a budget.

A budget holds even where nothing can be stored. Requests that could not be recorded, and those of a chat in memory,
count in this process.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl import layout
from deepctl.domain import settings
from deepctl.errors import BudgetReached, DeepctlError
from deepctl.files import atomic
from deepctl.layout import ProfilePaths, Root
from deepctl.store import usage_log, usage_sums
from deepctl.store.usage_log import UsageEntry
from deepctl.store.usage_sums import CalendarSums

if TYPE_CHECKING:
    from deepctl.domain.settings import Settings

BUDGETS = ("max_cost_day", "max_cost_month", "max_tokens_day")
WARNED_AT = 0.8
"""The share of a budget at which the user is warned, once."""


class Budget(NamedTuple):
    """A budget: its setting, and its limit in USD or tokens. `profile` is `None` for a budget of all profiles."""

    setting: str
    limit: Decimal | int
    profile: str | None

    @property
    def is_money(self) -> bool:
        """Whether the limit is in USD."""
        return self.setting.startswith("max_cost")

    @property
    def when(self) -> str:
        """The time of the budget, in words."""
        return "this month" if self.setting.endswith("month") else "today"

    @property
    def place(self) -> str:
        """The option of `deepctl config` for the file of the budget."""
        return f" --user {self.profile}" if self.profile is not None else ""

    def spent(self, sums: CalendarSums) -> float:
        """The part of the sums that counts for the budget."""
        if self.setting == "max_tokens_day":
            return sums.day.tokens
        return sums.month.cost if self.setting == "max_cost_month" else sums.day.cost

    def amount(self, value: float | Decimal) -> str:
        """A sum of the budget in words."""
        if self.is_money:
            return f"{dollars(value)} USD"
        return f"{int(value):,} tokens"


class BudgetState(NamedTuple):
    """A budget and what is spent of it, in USD or tokens."""

    budget: Budget
    spent: float

    @property
    def share(self) -> float:
        """The spent part of the budget, from 0."""
        return self.spent / float(self.budget.limit)

    def document(self) -> dict[str, Any]:
        """The fields of an event about the budget."""
        budget = self.budget
        limit = float(budget.limit) if budget.is_money else int(budget.limit)
        return {"setting": budget.setting, "profile": budget.profile, "limit": limit, "spent": self.spent}

    def row(self) -> str:
        """What is spent, in a few words."""
        budget = self.budget
        whose = "" if budget.profile is not None else ", all profiles"
        return f"{budget.amount(self.spent)} of {budget.amount(budget.limit)} {budget.when} ({budget.setting}{whose})"

    def sentence(self) -> str:
        """What is spent, in a sentence."""
        budget = self.budget
        whose = f"profile {budget.profile!r} has" if budget.profile is not None else "all profiles together have"
        verb = "spent" if budget.is_money else "used"
        return (
            f"{whose} {verb} {budget.amount(self.spent)} {budget.when}, and the limit is {budget.amount(budget.limit)} "
            f"({budget.setting})"
        )


def of_settings(in_force: Settings, profile: str | None) -> tuple[Budget, ...]:
    """The budgets in both settings files; `profile` is the profile whose file it is. Raises `BadSetting`."""
    budgets = []
    for file in in_force.files:
        values = file.checked()
        for name in BUDGETS:
            if name in values:
                text = settings.validate(name, values[name], file.path)
                limit = int(text) if name == "max_tokens_day" else Decimal(text)
                budgets.append(Budget(name, limit, profile if file.source == "profile" else None))
    return tuple(budgets)


class Spending:
    """The recorded requests of a profile, and its budgets. Used by several threads.

    With `is_stored` false, requests count in this process only, and nothing is written. `paths` is `None` for a chat
    that belongs to no profile. `budgets` may be replaced at any time.
    """

    def __init__(
        self, root: Root | None, paths: ProfilePaths | None, budgets: Sequence[Budget] = (), *, is_stored: bool = True
    ) -> None:
        self.budgets = tuple(budgets)
        self._root = root
        self._paths = paths
        self._is_stored = is_stored and paths is not None
        self._unwritten: dict[str, UsageEntry] = {}
        self._warned: set[tuple[Budget, str]] = set()
        self._lock = threading.Lock()
        self.problem: str | None = None
        """The reason why the last request could not be recorded."""
        self.note: str | None = None
        """The reason why budgets do not hold."""

    def begin(self, entry: UsageEntry) -> None:
        """Record a request that is about to be sent, with the estimate of its input.

        Raises `BudgetReached` if it must not be sent; nothing is recorded then. Raises `DeepctlError` or `OSError` if
        there are budgets and the usage cannot be read.
        """
        with self._lock, ExitStack() as stack:
            problem = self._enter(stack)
            if self.budgets:
                if problem is not None:
                    raise problem
                self._check(entry)
            self._record(entry._replace(is_open=True), problem, is_durable=False)

    def end(self, entry: UsageEntry) -> list[BudgetState]:
        """Record a request that has ended. Returns the budgets of which 80 % are spent, each once in its time.

        Never fails: `problem` is the reason if it cannot be recorded.
        """
        with self._lock:
            with ExitStack() as stack:
                problem = self._enter(stack)
                descriptor = self._record(entry, problem)
                near = self._near() if self.budgets and problem is None else []
            if descriptor is not None:
                # Outside of the lock: the disk may be slow, and other processes wait.
                with suppress(OSError):
                    usage_log.sync(descriptor, is_durable=entry.cost != 0)
        return near

    def states(self) -> list[BudgetState]:
        """The budgets, and what is spent of each; none if the usage cannot be read. Takes no lock."""
        with self._lock, suppress(DeepctlError, OSError):
            return self._states()
        return []

    def sums(self) -> CalendarSums:
        """The usage of the profile today and this month; 0 if it cannot be read. Takes no lock."""
        with self._lock:
            own = usage_sums.of_entries(list(self._unwritten.values()))
            with suppress(DeepctlError, OSError):
                return own.plus(usage_sums.read(self._paths)) if self._is_stored and self._paths is not None else own
            return own

    def _enter(self, stack: ExitStack) -> DeepctlError | OSError | None:
        """Take the lock of the usage, and make the file; returns the error that prevents it."""
        if not self._is_stored or self._paths is None or not os.path.isdir(self._paths.directory):
            return None
        try:
            stack.enter_context(usage_log.lock(self._paths))
            usage_log.prepare(self._paths)
        except (DeepctlError, OSError) as error:
            return error
        return None

    def _check(self, entry: UsageEntry) -> None:
        for state in self._states():
            budget = state.budget
            estimate = (entry.cost or 0.0) if budget.is_money else entry.input
            if state.spent + estimate >= float(budget.limit):
                raise _reached(state, estimate)

    def _record(
        self, entry: UsageEntry, problem: DeepctlError | OSError | None, *, is_durable: bool = True
    ) -> int | None:
        """Append the entry, and those that could not be written before; returns the descriptor that must be synced."""
        self._unwritten[entry.id] = entry
        paths = self._paths
        if not self._is_stored or paths is None or not os.path.isdir(paths.directory):
            return None
        try:
            if problem is not None:
                raise problem
            descriptor = usage_log.append(paths, [unwritten.line() for unwritten in self._unwritten.values()])
        except (DeepctlError, OSError) as error:
            self.problem = str(atomic.storage_error(error).message) if isinstance(error, OSError) else error.message
            return None
        self._unwritten.clear()
        self.problem = None
        if is_durable:
            return descriptor
        usage_log.sync(descriptor, is_durable=False)
        return None

    def _states(self) -> list[BudgetState]:
        if not self.budgets:
            return []
        read = usage_sums.read_and_store if self._is_stored else usage_sums.read
        own = usage_sums.of_entries(list(self._unwritten.values()))
        # What of the profile is not in its file counts for it and for all.
        every = own
        if self._paths is not None and os.path.isdir(self._paths.directory):
            own = own.plus(read(self._paths))
            every = own
        if any(budget.profile is None for budget in self.budgets):
            for paths in self._other_profiles():
                with suppress(DeepctlError, OSError):  # what is damaged there must not stop this profile
                    every = every.plus(read(paths))
        return [
            BudgetState(budget, budget.spent(own if budget.profile is not None else every)) for budget in self.budgets
        ]

    def _other_profiles(self) -> list[ProfilePaths]:
        if self._root is None:
            return []
        own = self._paths.directory if self._paths is not None else None
        try:
            names = os.listdir(self._root.profiles)
        except OSError:
            return []
        others = [self._root.profile(name) for name in names if layout.is_good_name(name)]
        return [paths for paths in others if paths.directory != own]

    def _near(self) -> list[BudgetState]:
        """The budgets that are nearly spent, and were not before."""
        near = []
        with suppress(DeepctlError, OSError):
            for state in self._states():
                if state.share >= WARNED_AT and self._is_new_warning(state.budget):
                    near.append(state)
        return near

    def _is_new_warning(self, budget: Budget) -> bool:
        """Whether the user was not warned of this budget today, or this month; remembers that.

        `cache/usage-warned` has the warnings of the profile, so deleting the cache may repeat one.
        """
        time = usage_sums.today()[: 7 if budget.setting == "max_cost_month" else 10]
        if (budget, time) in self._warned:
            return False
        self._warned.add((budget, time))
        if not self._is_stored or self._paths is None:
            return True
        key, value = f"{budget.setting}{budget.place}", f"{time} {budget.limit}"
        path = os.path.join(self._paths.cache, "usage-warned")
        warnings: dict[str, Any] = {}
        with suppress(OSError, DeepctlError, ValueError, RecursionError):
            document = json.loads(atomic.read_file(path))
            warnings = document if isinstance(document, dict) else {}
        if warnings.get(key) == value:
            return False
        with suppress(OSError, DeepctlError):
            atomic.make_root(self._paths.cache)
            atomic.replace_unsynced(path, json.dumps({**warnings, key: value}).encode() + b"\n")
        return True


def _reached(state: BudgetState, estimate: float) -> BudgetReached:
    budget = state.budget
    text = state.sentence()
    if state.spent < float(budget.limit):
        text += f"; the next request takes at least {budget.amount(estimate)}"
    when = "with the next month" if budget.setting == "max_cost_month" else "at midnight"
    raised = _plain(_raised(budget, state.spent + estimate))
    return BudgetReached(
        f"The budget is used up: {text}.",
        f"It begins anew {when}. To raise it: deepctl config set {budget.setting} {raised}{budget.place}",
    )


def _raised(budget: Budget, spent: float) -> Decimal:
    """The limit multiplied by a power of two, at least twice what is spent, so that the budget is not near its end."""
    raised = Decimal(budget.limit) * 2
    while raised < 2 * Decimal(spent):
        raised *= 2
    return raised


def _plain(number: Decimal) -> str:
    """A number in the form of a setting."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def dollars(amount: float | Decimal) -> str:
    """A sum in USD with at least two decimal places, and more only below one dollar."""
    if not 0 < amount < 1:
        return f"{amount:,.2f}"
    whole, _, decimals = f"{amount:.6f}".partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"


def of_chat_in_memory(environment: Mapping[str, str], name: str | None) -> Spending:
    """The budgets of a chat that stores nothing: those in config.toml, and those of the profile called `name`.

    If they cannot be read, there are none, and `note` says so, because such a chat works without any file.
    """
    try:
        in_force = settings.load(environment)
        root = layout.root(environment)
        paths = root.profile(name) if name is not None else None
        if paths is not None and os.path.isdir(paths.directory):
            in_force = in_force.of_profile(paths)
        budgets = of_settings(in_force, name)
    except (DeepctlError, OSError) as error:
        problem = error.message if isinstance(error, DeepctlError) else atomic.storage_error(error).message
        without_budgets = Spending(None, None)
        without_budgets.note = f"Budgets cannot be read, so they do not hold for this chat. {problem}"
        return without_budgets
    return Spending(root, paths, budgets, is_stored=False)
