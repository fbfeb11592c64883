"""Completion in real shells at a pseudo-terminal, and that nothing is started for it; installing it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepctl.cli.completion import FILES, SHELLS
from deepctl.cli.completion_scripts import man, render, tree
from tests.store.scene import Scene
from tests.support.command import InProcess
from tests.support.shells import COMPLETIONS, Shell, program

HOSTILE = (
    "$(touch PWNED)",
    "`touch PWNED`",
    "al;touch PWNED",
    "al ice",
    "al\nice",
    "al\x1b[2Jice",
    "al*",
    "al'ice",
    'al"ice',
    "al..",
    "-al",
    ".al",
    "con",
    "álvaro",
    "a" * 65,
)
INDEX = (
    ("a1b2c3d4e5f60718", "", "main", "@2026-01-02 10:00  write a.txt: one (first)"),
    ("a1ffc3d4e5f60718", "tidy", "main", "@2026-01-02 11:30  Räum auf: $(touch PWNED)"),
    ("0123456789abcdef", "", "other"),  # as 0.1 wrote it
)


def _profile(root: Path, name: str) -> Path:
    profile = root / "profiles" / name
    for directory in ("cache", "sessions/main", "sessions/meeting", "workspace/.deep/memory/main"):
        (profile / directory).mkdir(parents=True)
    return profile


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State of several profiles, and everywhere names that no shell may take for more than names."""
    root = tmp_path_factory.mktemp("state")
    alice, bob = _profile(root, "alice"), _profile(root, "bob")
    for other in ("albert@example.com", "default"):
        _profile(root, other)
    (alice / "cache" / "index").write_text("".join("\t".join(words) + "\n" for words in INDEX))
    (alice / "cache" / "models").write_text(
        "openai-chat:llama3\ngroq:\noffline\n$(touch PWNED)\n;touch PWNED\n\x1b[2J\n"
    )
    (bob / "cache" / "index").write_text("b0b0c3d4e5f60718\tbobs\tmain\n")
    memory = alice / "workspace" / ".deep" / "memory"
    for file in ("MEMORY.md", "travel.md", "notes.txt", ".hidden.md"):
        (memory / "main" / file).write_text("")
    (memory / "scout").mkdir()
    (memory / "scout" / "finds.md").write_text("")
    (memory / "main" / "link.md").symlink_to("/etc/passwd")
    (memory / "linked").symlink_to("/etc")
    os.mkfifo(memory / "main" / "pipe.md")
    for name in HOSTILE:
        for directory in (root / "profiles", alice / "sessions", memory):
            (directory / name).mkdir()
        if name != "al..":  # with something behind the dots it is a name
            (memory / "main" / f"{name}.md").write_text("")
    for name in ("our-reviewer", *HOSTILE):
        (root / "roles" / name).mkdir(parents=True)
    (root / "config.toml").write_text("# mine\ndefault_user = 'bob'\n[docker]\nimage = 'x'\n")
    return root


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    place = tmp_path_factory.mktemp(request.param)
    files = place / "files"
    (files / "folder").mkdir(parents=True)
    (files / "profile.tar").write_text("")
    environment = {"DEEPCTL_HOME": str(root), "DEEPCTL_CONFIG": str(root / "config.toml")}
    opened = Shell(request.param, place / "home", environment, cwd=files)
    yield opened
    opened.close()
    assert not opened.started.exists(), opened.started.read_text()
    assert not list(place.rglob("PWNED"))


def test_the_man_page_is_what_the_commands_make_it_and_has_no_warning(tmp_path: Path) -> None:
    page = COMPLETIONS / man.FILE
    assert page.read_text() == man.render(), "run `make completions`"
    groff = shutil.which("groff")
    if groff is not None:
        formatted = subprocess.run(
            [groff, "-man", "-ww", "-Kutf8", "-Tutf8", "-P-cbou", str(page)],
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert formatted.stderr == ""
        assert "deepctl checkpoints rewind [REF]" in formatted.stdout
    # What is left of Markdown would be shown as it is.
    assert "``" not in page.read_text()


@pytest.mark.parametrize("name", SHELLS)
def test_the_scripts_are_what_the_commands_make_them(name: str) -> None:
    assert (COMPLETIONS / FILES[name]).read_text() == render(name), "run `make completions`"


def test_of_every_parameter_it_is_known_what_it_takes() -> None:
    assert tree.unknown() == [], "say in completion_scripts/tree.py, TAKES, what they take"


@pytest.mark.parametrize("name", SHELLS)
def test_the_shell_reads_its_script_without_a_word(name: str, tmp_path: Path) -> None:
    script = COMPLETIONS / FILES[name]
    for how in (["-n", str(script)], ["-c", f"compdef() {{ :; }}; source {script}"]):
        if name == "fish":
            how = [word.removeprefix("compdef() { :; }; ") for word in how]
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}  # fish makes directories there
        done = subprocess.run(
            [program(name), *how], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), how


CASES = [
    # What is typed, and the line after a Tab.
    ("deepctl doc", "deepctl doctor "),
    ("deepctl checkpoints rew", "deepctl checkpoints rewind "),
    ("deepctl config se", "deepctl config set "),
    ("deepctl chat --ephem", "deepctl chat --ephemeral "),
    ("deepctl chat --approve a", "deepctl chat --approve a"),
    ("deepctl chat --approve as", "deepctl chat --approve ask "),
    ("deepctl chat --sandbox bub", "deepctl chat --sandbox bubblewrap "),
    ("deepctl chat --sandbox=bub", "deepctl chat --sandbox=bubblewrap "),
    ("deepctl checkpoints rewind --only conv", "deepctl checkpoints rewind --only conversation "),
    ("deepctl checkpoints rewind --only=f", "deepctl checkpoints rewind --only=files "),
    ("deepctl config get snapshot.e", "deepctl config get snapshot.exclude "),
    ("deepctl config set checkpoints every_tu", "deepctl config set checkpoints every_turn "),
    ("deepctl config set default_user ali", "deepctl config set default_user alice "),
    ("deepctl config set model al", "deepctl config set model al"),
    ("deepctl chat --model off", "deepctl chat --model offline "),
    ("deepctl chat -u alice --model openai-chat:ll", "deepctl chat -u alice --model openai-chat:llama3 "),
    ("deepctl chat -u alice --model=openai-chat:ll", "deepctl chat -u alice --model=openai-chat:llama3 "),
    ("deepctl help checkpoints rew", "deepctl help checkpoints rewind "),
    ("deepctl help doc", "deepctl help doctor "),
    ("deepctl chat --user al", "deepctl chat --user al"),
    ("deepctl chat --user ali", "deepctl chat --user alice "),
    ("deepctl chat --user=ali", "deepctl chat --user=alice "),
    ("deepctl chat -u ali", "deepctl chat -u alice "),
    ("deepctl chat -uali", "deepctl chat -ualice "),
    ("deepctl chat --profile ali", "deepctl chat --profile alice "),
    ("deepctl chat --user=alb", "deepctl chat --user=albert@example.com "),
    ("deepctl chat --user=albert@ex", "deepctl chat --user=albert@example.com "),
    ("deepctl chat --user albert@ex", "deepctl chat --user albert@example.com "),
    ("deepctl profiles show ali", "deepctl profiles show alice "),
    ("deepctl profiles create ali", "deepctl profiles create ali"),
    ("deepctl profiles create ali --like rev", "deepctl profiles create ali --like reviewer "),
    ("deepctl profiles create ali --like=our", "deepctl profiles create ali --like=our-reviewer "),
    ("deepctl profiles use ali", "deepctl profiles use alice "),
    ("deepctl roles show wri", "deepctl roles show writer "),
    ("deepctl roles delete our", "deepctl roles delete our-reviewer "),
    ("deepctl roles create x --from ali", "deepctl roles create x --from alice "),
    ("deepctl roles import fol", "deepctl roles import folder/"),
    ("deepctl sessions show --user alice mee", "deepctl sessions show --user alice meeting "),
    ("deepctl sessions show mee --user alice", "deepctl sessions show mee --user alice "),
    ("deepctl chat --session mai", "deepctl chat --session main "),
    ("deepctl chat -u alice 'two words' -s mai", "deepctl chat -u alice 'two words' -s main "),
    ("deepctl checkpoints show 01 --user bob", "deepctl checkpoints show 01 --user bob "),
    ("deepctl checkpoints show -u alice 01", "deepctl checkpoints show -u alice 0123456789abcdef "),
    ("deepctl checkpoints show --user=ALICE ti", "deepctl checkpoints show --user=ALICE tidy "),
    ("deepctl checkpoints show -ualice a1f", "deepctl checkpoints show -ualice a1ffc3d4e5f60718 "),
    ("deepctl checkpoints show -u alice a", "deepctl checkpoints show -u alice a1"),
    ("deepctl checkpoints show b0b0", "deepctl checkpoints show b0b0c3d4e5f60718 "),
    ("deepctl checkpoints show -u alice --session main ti", "deepctl checkpoints show -u alice --session main tidy "),
    ("deepctl checkpoints remove -u alice x y ti", "deepctl checkpoints remove -u alice x y tidy "),
    ("deepctl checkpoints diff -u alice tidy 01", "deepctl checkpoints diff -u alice tidy 0123456789abcdef "),
    ("deepctl checkpoints diff -u alice a b 01", "deepctl checkpoints diff -u alice a b 01"),
    ("deepctl checkpoints fork -u alice tidy ti", "deepctl checkpoints fork -u alice tidy ti"),
    ("deepctl memory show -u alice tr", "deepctl memory show -u alice travel.md "),
    ("deepctl memory show -u alice --agent sc", "deepctl memory show -u alice --agent scout "),
    ("deepctl memory show -u alice --agent scout fi", "deepctl memory show -u alice --agent scout finds.md "),
    ("deepctl memory show -u alice li", "deepctl memory show -u alice li"),
    ("deepctl memory show -u alice no", "deepctl memory show -u alice no"),
    ("deepctl memory show -u alice pi", "deepctl memory show -u alice pi"),
    ("deepctl memory show -u alice --agent linked pass", "deepctl memory show -u alice --agent linked pass"),
    ("deepctl memory show -u alice --at ti", "deepctl memory show -u alice --at tidy "),
    ("deepctl profiles import prof", "deepctl profiles import profile.tar "),
    ("deepctl checkpoints import fol", "deepctl checkpoints import folder/"),
    ("deepctl checkpoints import prof", "deepctl checkpoints import prof"),
    ("deepctl chat fol", "deepctl chat fol"),
    ("deepctl chat --new --ephem", "deepctl chat --new --ephemeral "),
    ("deepctl chat -- --ephem", "deepctl chat -- --ephem"),
    ("deepctl --install-completion fi", "deepctl --install-completion fish "),
    ("deepctl checkpoints rewind -u alice ~1", "deepctl checkpoints rewind -u alice ~1"),
    ("deepctl checkpoints rewind -u alice '~1", "deepctl checkpoints rewind -u alice '~1"),
    ("deepctl bogus a", "deepctl bogus a"),
    ("deepctl sessions bogus a", "deepctl sessions bogus a"),
    ("deepctl sessions show -u ../.. ma", "deepctl sessions show -u ../.. ma"),
    ("deepctl sessions show -u '$(touch PWNED)' ma", "deepctl sessions show -u '$(touch PWNED)' ma"),
    ("deepctl sessions show -u nobody ma", "deepctl sessions show -u nobody ma"),
    ("deepctl wipe --only plan", "deepctl wipe --only plans"),
    ("deepctl wipe --only=memory,plan", "deepctl wipe --only=memory,plans"),
]


@pytest.mark.parametrize(("typed", "line"), CASES, ids=[typed for typed, _ in CASES])
def test_a_tab_completes_the_line(shell: Shell, typed: str, line: str) -> None:
    found = shell.line(typed)
    # Where a list can go on, zsh leaves a comma and takes it away when a blank is typed; fish and bash leave a blank.
    assert (re.sub(r"[ ,]\|$", "|", found) if "--only" in typed and "wipe" in typed else found) == f"{line}|"


def _names_in(listed: str) -> set[str]:
    return set(listed.split())


def test_all_that_fits_is_listed_and_nothing_that_is_no_name(shell: Shell) -> None:
    listed = shell.offered("deepctl chat --user ", "alice", "bob")
    assert _names_in(listed) == {"albert@example.com", "alice", "bob", "default"}
    listed = shell.offered("deepctl sessions show --user alice ", "main", "meeting")
    assert _names_in(listed) == {"main", "meeting"}
    listed = shell.offered("deepctl memory show --user alice ", "MEMORY.md", "travel.md")
    assert _names_in(listed) == {"MEMORY.md", "travel.md"}
    listed = shell.offered("deepctl memory show --user alice --agent ", "main", "scout")
    assert _names_in(listed) == {"main", "scout"}


def test_checkpoints_are_listed_with_their_labels_and_sessions(shell: Shell) -> None:
    listed = shell.offered("deepctl checkpoints rewind --user alice ", *(line[0] for line in INDEX), "tidy")
    assert re.search(r"a1ffc3d4e5f60718 .*tidy \(main\)", listed), listed
    assert re.search(r"0123456789abcdef .*\(other\)", listed), listed
    assert re.search(r"tidy  +.*a1ffc3d4e5f60718", listed), listed
    if shell.name == "bash":
        assert "2026" not in listed
        assert "write" not in listed
        return
    # fish cuts a description where the next column begins.
    assert re.search(r"a1b2c3d4e5f60718 .*\(main\)? +2026-01-02 10:00 +w", listed), listed
    if shell.name == "zsh":
        assert "  write a.txt: one (first)" in listed
        assert "  Räum auf: $(touch PWNED)" in listed


def test_models_are_those_of_configured_providers_and_of_the_last_look(shell: Shell) -> None:
    listed = shell.offered("deepctl chat -u alice --model ", "offline", "llama3")
    assert _names_in(listed) == {"offline", "openai-chat:llama3", "groq:"}
    set_key, unset = {
        "fish": ("set -gx MISTRAL_API_KEY x", "set -e MISTRAL_API_KEY"),
    }.get(shell.name, ("export MISTRAL_API_KEY=x", "unset MISTRAL_API_KEY"))
    shell.run(set_key)
    try:
        shell.offered("deepctl chat -u bob --model=mistral:", "mistral-large-latest", "codestral-latest")
        assert (
            shell.line("deepctl config set model mistral:cod") == "deepctl config set model mistral:codestral-latest |"
        )
        assert shell.line("deepctl chat -u alice --model gro") == "deepctl chat -u alice --model groq:|"
    finally:
        shell.run(unset)


def test_options_and_choices_are_listed(shell: Shell) -> None:
    listed = shell.offered("deepctl checkpoints rewind --", "--only", "--dry-run", "--session", "--json", "--user")
    assert "--keep" not in listed
    assert _names_in(shell.offered("deepctl chat --approve ", "ask", "never")) >= {"ask", "auto", "never"}


def test_commands_are_listed(shell: Shell) -> None:
    shell.offered("deepctl ", *(name for name, _ in tree.commands()[0].children))


def test_no_process_is_started_for_a_tab(shell: Shell) -> None:
    before = shell.children()
    for typed in (
        "deepctl check",
        "deepctl chat --user=ali",
        "deepctl checkpoints show -u alice 01",
        "deepctl checkpoints show b0",
        "deepctl memory show -u alice tr",
        "deepctl sessions show mee",
        "deepctl config set approve as",
    ):
        shell.line(typed)
    assert shell.children() == before
    assert not shell.started.exists()


def test_the_count_of_children_counts(shell: Shell) -> None:
    before = shell.children()
    shell.run("/bin/true")
    assert shell.children() > before


def test_a_tilde_is_left_alone_though_the_shell_knows_a_directory_of_that_name(shell: Shell) -> None:
    quietly = "" if shell.name == "fish" else " >/dev/null"
    shell.run(f"pushd /tmp{quietly}")
    try:
        for typed in ("~", "~1", "'~1", "x ~1"):
            assert shell.line(f"deepctl checkpoints diff {typed}") == f"deepctl checkpoints diff {typed}|"
    finally:
        shell.run(f"popd{quietly}")


@pytest.mark.parametrize("setting", ["TAB: menu-complete", "set show-all-if-ambiguous on"])
def test_bash_inserts_no_description_however_it_completes(setting: str, root: Path, tmp_path: Path) -> None:
    opened = Shell("bash", tmp_path / "shell", {"DEEPCTL_HOME": str(root)})
    try:
        opened.run(f"bind '{setting}'")
        found = opened.line("deepctl checkpoints show -u alice a1")
        assert found == f"deepctl checkpoints show -u alice {'a1b2c3d4e5f60718 ' if 'TAB' in setting else 'a1'}|"
    finally:
        opened.close()


_DRIVEN = {
    "bash": "source {script}; COMP_LINE='{line}' COMP_POINT=${{#COMP_LINE}} COMP_WORDS=($COMP_LINE '') COMP_CWORD=5\n"
    'COMP_TYPE=9; _deepctl deepctl "" alice; printf "%s\\n" "${{COMPREPLY[@]}}"',
    "fish": "source {script}; complete -C '{line}'",
}


@pytest.mark.parametrize("name", _DRIVEN)
def test_before_anything_is_typed_the_newest_hundred_are_offered_and_all_labels(name: str, tmp_path: Path) -> None:
    profile = _profile(tmp_path / "root", "alice")
    ids = [f"{number:016x}" for number in range(150)]
    lines = [f"{identity}\t{'first' if identity == ids[0] else ''}\tmain\n" for identity in ids]
    (profile / "cache" / "index").write_text("".join(lines))
    driven = _DRIVEN[name].format(script=COMPLETIONS / FILES[name], line="deepctl checkpoints show -u alice ")
    done = subprocess.run(
        [program(name), "-c", driven],
        env={"HOME": str(tmp_path), "DEEPCTL_HOME": str(tmp_path / "root"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    assert {line.partition("\t")[0] for line in done.stdout.splitlines()} == {*ids[-100:], "first"}


@pytest.mark.parametrize("name", SHELLS)
def test_the_user_comes_from_the_environment_before_the_settings(name: str, root: Path, tmp_path: Path) -> None:
    environment = {"DEEPCTL_HOME": str(root), "DEEPCTL_CONFIG": str(root / "config.toml"), "DEEPCTL_USER": "alice"}
    opened = Shell(name, tmp_path / "shell", environment)
    try:
        assert opened.line("deepctl checkpoints show ti") == "deepctl checkpoints show tidy |"
        assert opened.line("deepctl checkpoints show --user bob bo") == "deepctl checkpoints show --user bob bobs |"
    finally:
        opened.close()


@pytest.mark.parametrize("name", SHELLS)
def test_the_user_comes_from_the_directory_before_the_settings(name: str, root: Path, tmp_path: Path) -> None:
    """The root of this test is another one: the directory is alice's, and the settings name bob."""
    own = tmp_path / "root"
    for user, label in (("alice", "tidy"), ("bob", "bobs")):
        (_profile(own, user) / "cache" / "index").write_text(f"a1b2c3d4e5f60718\t{label}\tmain\n")
    (own / "config.toml").write_text('default_user = "bob"\n')
    shop = tmp_path / "shop [a] *" / "src"
    shop.mkdir(parents=True)
    directories = {str(tmp_path / "else"): "carol", str(tmp_path / "shop [a] *"): "alice"}
    (own / "directories.json").write_text(json.dumps({"v": 1, "directories": directories}, indent=1))
    environment = {"DEEPCTL_HOME": str(own), "DEEPCTL_CONFIG": str(own / "config.toml")}
    for place, line in ((shop, "tidy |"), (tmp_path, "bobs |")):
        opened = Shell(name, tmp_path / f"shell-{line[:4]}", environment, cwd=place)
        try:
            assert (
                opened.line("deepctl checkpoints show -s main " + line[0]) == f"deepctl checkpoints show -s main {line}"
            )
        finally:
            opened.close()


@pytest.mark.parametrize("name", SHELLS)
def test_state_is_found_where_the_platform_keeps_it(name: str, tmp_path: Path) -> None:
    opened = Shell(name, tmp_path / "shell", {})
    _profile(tmp_path / "shell" / ".local" / "share" / "deepctl", "carol")
    data = tmp_path / "data dir"
    _profile(data / "deepctl", "dora")
    config = tmp_path / "shell" / ".config" / "deepctl"
    config.mkdir(parents=True)
    (config / "config.toml").write_text('[other]\ndefault_user = "nobody"\n')
    try:
        assert opened.line("deepctl chat --user c") == "deepctl chat --user carol |"
        assert opened.line("deepctl sessions show mee") == "deepctl sessions show mee|"
        (config / "config.toml").write_text('default_user = "CAROL" # me\n')
        assert opened.line("deepctl sessions show mee") == "deepctl sessions show meeting |"
        opened.run(f"set -gx XDG_DATA_HOME '{data}'" if name == "fish" else f"export XDG_DATA_HOME='{data}'")
        assert opened.line("deepctl chat --user d") == "deepctl chat --user dora |"
    finally:
        opened.close()


@pytest.mark.parametrize("name", SHELLS)
def test_an_index_that_deepctl_did_not_write_does_no_harm(name: str, tmp_path: Path) -> None:
    profile = _profile(tmp_path / "root", "alice")
    (profile / "cache" / "index").write_bytes(
        b"f00d0000;touch PWNED\t\tmain\n$(touch PWNED)\t\tmain\nf00d1111\xff\x1b[2J\t\tmain\nf00d222222222222\t\tmain\n"
    )
    opened = Shell(name, tmp_path / "shell", {"DEEPCTL_HOME": str(tmp_path / "root"), "DEEPCTL_USER": "alice"})
    try:
        assert opened.line("deepctl checkpoints show f0") == "deepctl checkpoints show f00d222222222222 |"
        (profile / "cache" / "index").unlink()
        os.mkfifo(profile / "cache" / "index")
        assert opened.line("deepctl checkpoints show f0") == "deepctl checkpoints show f0|"
    finally:
        opened.close()
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize("name", SHELLS)
def test_what_deepctl_keeps_is_what_is_completed(name: str, tmp_path: Path) -> None:
    scene = Scene(tmp_path / "root")
    scene.agent("a.txt", "one")
    (record,) = [one for one in scene.records() if one.kind == "turn"][-1:]
    opened = Shell(name, tmp_path / "shell", {"DEEPCTL_HOME": str(tmp_path / "root")})
    try:
        typed = f"deepctl checkpoints show --user alice {record.id[:10]}"
        assert opened.line(typed) == f"deepctl checkpoints show --user alice {record.id} |"
    finally:
        opened.close()


# Installing.


def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.delenv("BASH_COMPLETION_USER_DIR", raising=False)
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return {
        "bash": tmp_path / "XDG_DATA_HOME" / "bash-completion" / "completions" / "deepctl",
        "zsh": tmp_path / "ZDOTDIR" / ".zfunc" / "_deepctl",
        "fish": tmp_path / "XDG_CONFIG_HOME" / "fish" / "completions" / "deepctl.fish",
    }


@pytest.mark.parametrize("name", SHELLS)
def test_install_writes_the_script_where_the_shell_looks(
    deepctl: InProcess, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _places(tmp_path, monkeypatch)[name]
    said = deepctl("--install-completion", name).ok().stdout
    assert said.startswith(f"Wrote {path}.\n")
    assert path.read_text() == (COMPLETIONS / FILES[name]).read_text()
    again = deepctl("--install-completion", name).ok().stdout
    assert again.startswith(f"{path} exists already and is current.\n")
    assert [one for one in path.parent.iterdir() if one != path] == []


def test_the_shell_is_the_one_of_the_environment(
    deepctl: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _places(tmp_path, monkeypatch)["fish"]
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert deepctl("--show-completion").ok().stdout == (COMPLETIONS / "deepctl.fish").read_text()
    deepctl("--install-completion").ok()
    assert path.exists()
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    refused = deepctl("--install-completion")
    assert (refused.code, refused.stderr.splitlines()[0]) == (
        2,
        "Error: There is no completion for 'tcsh', the shell in $SHELL.",
    )
    monkeypatch.delenv("SHELL")
    assert "$SHELL is not set" in deepctl("--show-completion").stderr
    assert deepctl("--show-completion", "powershell").code == 2


def test_an_older_script_of_ours_is_replaced_and_a_foreign_file_is_not(
    deepctl: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _places(tmp_path, monkeypatch)["zsh"]
    path.parent.mkdir(parents=True)
    path.write_text("#compdef deepctl\n# Completion of deepctl for zsh, an old one.\n")
    assert deepctl("--install-completion", "zsh").ok().stdout.startswith("Wrote ")
    path.write_text("#compdef deepctl\n# mine\n")
    refused = deepctl("--install-completion", "zsh")
    assert refused.code == 6
    assert path.read_text() == "#compdef deepctl\n# mine\n"


def test_a_link_into_dotfiles_stays_a_link(deepctl: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _places(tmp_path, monkeypatch)["fish"]
    path.parent.mkdir(parents=True)
    (tmp_path / "dotfiles").mkdir()
    path.symlink_to(tmp_path / "dotfiles" / "deepctl.fish")
    deepctl("--install-completion", "fish").ok()
    assert path.is_symlink()
    assert (tmp_path / "dotfiles" / "deepctl.fish").read_text() == (COMPLETIONS / "deepctl.fish").read_text()


def test_bash_completions_own_variable_counts(
    deepctl: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _places(tmp_path, monkeypatch)
    monkeypatch.setenv("BASH_COMPLETION_USER_DIR", str(tmp_path / "mine"))
    deepctl("--install-completion", "bash").ok()
    assert (tmp_path / "mine" / "completions" / "deepctl").exists()


def test_what_zsh_is_to_be_told_works_as_it_is_printed(
    deepctl: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    _places(tmp_path, monkeypatch)
    said = deepctl("--install-completion", "zsh").ok().stdout.splitlines()
    lines = [line.strip() for line in said if line.startswith("  ")]
    assert len(lines) == 2
    start = "\n".join(lines).replace("compinit &&", "compinit &&")
    done = subprocess.run(
        [program("zsh"), "-f", "-c", f"{start} -u -d {tmp_path}/dump; print $_comps[deepctl]"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "_deepctl\n"


def test_typers_own_completion_is_not_there(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_DEEPCTL_COMPLETE", "source_bash")
    assert deepctl("--version").ok().stdout.startswith("deepctl ")
    monkeypatch.setenv("_DEEPCTL_COMPLETE", "complete_bash")
    assert deepctl("profiles", "list").ok().stdout == ""
