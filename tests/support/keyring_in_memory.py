"""Keyrings for tests, in the place of that of a desktop."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import keyring
import keyring.errors
import pytest
from keyring.backend import KeyringBackend
from keyring.backends import fail


class MemoryKeyring(KeyringBackend):
    """A keyring in memory. `entries` are the passwords, by service and user."""

    priority = 5

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries: dict[tuple[str, str], str] = {}
        self.reads = 0

    def get_password(self, service: str, username: str) -> str | None:
        self.reads += 1
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.entries[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.entries[service, username]


class LockedKeyring(MemoryKeyring):
    """A keyring that cannot be unlocked. Its errors contain what no message may contain."""

    def get_password(self, service: str, username: str) -> str | None:
        raise keyring.errors.KeyringLocked("canary-in-an-error")

    def set_password(self, service: str, username: str, password: str) -> None:
        raise keyring.errors.KeyringLocked(password)


def installed(patch: pytest.MonkeyPatch, backend: KeyringBackend | None) -> AbstractContextManager[None]:
    """Use this keyring until the end of the test; `None` stands for a machine without one."""
    used: KeyringBackend = backend if backend is not None else fail.Keyring()  # type: ignore[no-untyped-call]
    patch.setattr(keyring, "get_keyring", lambda: used)
    patch.setattr("keyring.core._keyring_backend", used)
    return nullcontext()
