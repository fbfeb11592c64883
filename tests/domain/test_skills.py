"""Which directories are skills, and what their front matter says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepctl.domain import skills
from deepctl.domain.skills import SkillLibrary


def _read(directory: Path, *others: Path, disabled: tuple[str, ...] = ()) -> list[skills.Skill]:
    libraries = [SkillLibrary("profile", str(directory), "skills")]
    libraries += [SkillLibrary("root", str(path), "<root>/skills") for path in others]
    return skills.read(libraries, disabled)


def _write(library: Path, name: str, content: str | bytes) -> Path:
    directory = library / name
    directory.mkdir(parents=True)
    (directory / "SKILL.md").write_bytes(content.encode() if isinstance(content, str) else content)
    return directory


@pytest.mark.parametrize(
    ("front", "description"),
    [
        ("description: Plain: with a colon, # and 'quotes'", "Plain: with a colon, # and 'quotes'"),
        ('description: "Quoted \\"twice\\""', 'Quoted "twice"'),
        ("description: 'It''s quoted'", "It's quoted"),
        ("description: >-\n  Folded over\n  two lines.\nlicense: MIT", "Folded over two lines."),
        ("description: |\n  Kept\n  lines", "Kept lines"),
        ("description: Continued\n  on the next line", "Continued on the next line"),
        ("metadata:\n  description: nested\ndescription: Outer\nallowed-tools: [Bash]", "Outer"),
        ("name: one\ndescription: red \x1b[31m‮ text", "red \\x1b[31m\\u202e text"),
        (f"description: {'x' * 2000}", "x" * 1023 + "…"),
    ],
)
def test_a_description_is_one_printable_line(tmp_path: Path, front: str, description: str) -> None:
    _write(tmp_path, "one", f"---\n{front}\n---\n\nText.\n")
    (skill,) = _read(tmp_path)
    assert (skill.description, skill.text, skill.enabled) == (description, "Text.", True)


def test_a_skill_that_cannot_be_used_has_a_reason_and_the_others_are_used(tmp_path: Path) -> None:
    library, good = tmp_path / "library", "---\ndescription: d\n---\nText."
    _write(library, "good", b"\xef\xbb\xbf---\r\nname: good\r\ndescription: d\r\n---\r\nText.\r\n")
    _write(library, "Upper", good)
    _write(library, "no-front", "Text.")
    _write(library, "no-end", "---\ndescription: d\n")
    _write(library, "no-description", "---\nname: no-description\n---\nText.")
    _write(library, "renamed", "---\nname: other\ndescription: d\n---\n")
    _write(library, "latin", b"---\ndescription: caf\xe9\n---\n")
    _write(library, "large", good + "x" * skills.MAX_BYTES)
    _write(library, "manual", "---\ndescription: d\ndisable-model-invocation: true\n---\n")
    (library / "link").symlink_to(_write(tmp_path / "elsewhere", "link", good))
    (_write(library, "linked-file", good) / "SKILL.md").unlink()
    (library / "linked-file/SKILL.md").symlink_to("/etc/passwd")
    (_write(library, "pipe", good) / "SKILL.md").unlink()
    os.mkfifo(library / "pipe/SKILL.md")
    (library / "no-skill").mkdir()
    (library / "README.md").write_text("No skill.")
    problems = {skill.name: skill.problem for skill in _read(library)}
    assert problems == {
        "good": None,
        "Upper": "its name must have 1 to 64 lower-case letters, digits and single dashes",
        "no-front": "its SKILL.md does not begin with front matter, a line ---",
        "no-end": "its front matter has no end, a line ---",
        "no-description": "its SKILL.md has no description",
        "renamed": "its SKILL.md has another name, 'other'",
        "latin": "its SKILL.md is not UTF-8",
        "large": "its SKILL.md has more than 128.0 KiB",
        "manual": "its author does not want agents to load it (disable-model-invocation)",
        "link": "a symbolic link is in the way",
        "linked-file": "a symbolic link is in the way",
        "pipe": "not a regular file",
    }


def test_the_first_of_two_skills_with_one_name_counts_unless_it_is_disabled(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    _write(first, "both", "---\ndescription: first\n---\n")
    _write(second, "both", "---\ndescription: second\n---\n")
    _write(second, "own", "---\ndescription: own\n---\n")

    def states(*disabled: str) -> list[tuple[str, str | None]]:
        return [(skill.description, skill.problem) for skill in _read(first, second, disabled=disabled)]

    assert states() == [("first", None), ("second", "skills/both has the same name"), ("own", None)]
    # The setting means the name: it does not bring the other one in.
    off = "the setting disabled_skills names it"
    assert states("both") == [("first", off), ("second", off), ("own", None)]
    assert _read(tmp_path / "missing") == []


def test_a_library_that_is_a_link_has_no_skills(tmp_path: Path) -> None:
    _write(tmp_path / "real", "one", "---\ndescription: d\n---\n")
    (tmp_path / "link").symlink_to("real")
    assert _read(tmp_path / "link") == []
