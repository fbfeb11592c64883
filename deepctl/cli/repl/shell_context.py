"""What the agent is shown of a command that the user ran: a block of the next prompt, bounded and without keys."""

from __future__ import annotations

import os
from collections.abc import Mapping

from deepctl.output.text import printable_lines
from deepctl.quantities import counted
from deepctl.redaction import redact
from deepctl.store import prompt_tags

MOST = 20_000
"""Characters of what a command printed; of more, the beginning and the end."""
_LONGEST_COMMAND = 2_000


def block(command: str, printed: str, ended: str, environment: Mapping[str, str] = os.environ) -> str:
    """A command, how it ended and what it printed, as context for the agent. No line of it is taken for a prompt."""
    # Before it is cut: half a key would not be known for one.
    shown = _cut(redact(printed, environment), MOST).rstrip("\n") or "(nothing)"
    line = _cut(redact(command, environment), _LONGEST_COMMAND)
    told = f"The user ran a command in the workspace ({ended}) and shows what it printed.\n$ {line}\n{shown}"
    # The tag of what is piped in: wherever prompts are read, what stands in it is not what the user said.
    return f"<stdin>\n{prompt_tags.contained(printable_lines(told))}\n</stdin>"


def _cut(text: str, most: int) -> str:
    left_out = len(text) - most
    if left_out <= 0:
        return text
    half = most // 2
    return f"{text[:half]}\n… {counted(left_out, 'character')} left out …\n{text[-half:]}"
