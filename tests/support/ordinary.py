"""Being an ordinary user: root may read and write whatever modes say, so that tests about modes would show nothing."""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from collections.abc import Callable

_VERSION_3 = 0x20080522


def as_ordinary(operation: Callable[[], object]) -> None:
    """Run an operation in a process of its own, without the privileges of root; what it raises fails the test."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _give_up_privileges()
            operation()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "see stderr"


def _give_up_privileges() -> None:
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0, os.strerror(ctypes.get_errno())
