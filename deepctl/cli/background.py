"""Something slow that is made ready in a thread while a person does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """A value that is made once: in a thread if that was begun, else where it is first asked for."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: tuple[T] | None = None
        self._failed: BaseException | None = None

    def begin(self, done: Callable[[BaseException | None], None]) -> None:
        """Make it in a thread, which calls `done` in the end, with what making it raised.

        The thread holds no process up: whoever leaves meanwhile does not wait for it.
        """

        def run() -> None:
            failed = None
            try:
                self.get()
            except BaseException as error:
                failed = error
            done(failed)

        threading.Thread(target=run, daemon=True).start()

    @property
    def made(self) -> T | None:
        """The value if there is one already."""
        return self._made[0] if self._made is not None else None

    def get(self) -> T:
        """The value, waited for. Raises what making it raised, every time."""
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self._made is None:
                try:
                    self._made = (self._make(),)
                except BaseException as error:
                    self._failed = error
                    raise
            return self._made[0]
