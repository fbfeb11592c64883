"""Errors of `--install-completion` and `--show-completion`."""

from __future__ import annotations

from tests.errors.situation import Situation, case

ANY = "any command"


@case(ANY, "`--show-completion` names a shell without completion", only="text")
def _(s: Situation) -> list[str]:
    return ["--show-completion", "tcsh"]


@case(ANY, "`--show-completion`, and the shell in `$SHELL` has no completion", only="text")
def _(s: Situation) -> list[str]:
    s.patch.setenv("SHELL", "/bin/tcsh")
    return ["--show-completion"]


@case(ANY, "`--show-completion`, and `$SHELL` is not set", only="text")
def _(s: Situation) -> list[str]:
    s.patch.delenv("SHELL", raising=False)
    return ["--show-completion"]


@case(ANY, "`--install-completion`, and the script's path contains a file that is not deepctl's", only="text")
def _(s: Situation) -> list[str]:
    directory = s.place / "completion"
    (directory / "completions").mkdir(parents=True)
    (directory / "completions" / "deepctl").write_text("# mine\n")
    s.patch.setenv("BASH_COMPLETION_USER_DIR", str(directory))
    return ["--install-completion", "bash"]
