"""Front matter of a Markdown file: the fields between two lines `---` at its beginning.

It is read here, and not by a YAML parser. Much published front matter is not valid YAML, such as `description: Use
when: …` and `argument-hint: [FILE] [FOCUS]`. The harness' reader, which needs PyYAML, leaves such files out and has no
limit of sizes.
"""

from __future__ import annotations

import re

_FENCE = "---"
_FIELD = re.compile(r"([A-Za-z][\w-]*)[ \t]*:(?:[ \t]+(.*))?")
_BLOCK = re.compile(r"([|>])[+-]?[0-9]?[+-]?(?:[ \t]+#.*)?")


def split(text: str) -> tuple[dict[str, str] | None, str]:
    """The fields at the top level of the front matter, and the text behind it, without blanks around it.

    The fields are `None` if the text does not begin with front matter. Raises `ValueError` with a clause if the front
    matter has no end. Understood are plain and quoted texts, over several lines too, and the blocks `|` and `>`. Lists
    and tables are passed over. Of several fields with one name, the first one counts.
    """
    lines = text.split("\n")
    if lines[0].rstrip() != _FENCE:
        return None, text.strip()
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == _FENCE), None)
    if end is None:
        raise ValueError(f"its front matter has no end, a line {_FENCE}")
    fields: dict[str, str] = {}
    number = 1
    while number < end:
        match = _FIELD.fullmatch(lines[number].rstrip())
        number += 1
        if match is None:
            continue
        following: list[str] = []
        while number < end and (not lines[number].strip() or lines[number][0] in " \t"):
            following.append(lines[number].strip())
            number += 1
        fields.setdefault(match[1], _value((match[2] or "").strip(), following))
    return fields, "\n".join(lines[end + 1 :]).strip()


def _value(first: str, following: list[str]) -> str:
    if block := _BLOCK.fullmatch(first):
        return ("\n" if block[1] == "|" else " ").join(following).strip()
    text = " ".join(line for line in (first, *following) if line)
    if len(text) > 1 and text[0] == text[-1] == '"':
        return re.sub(r'\\(["\\])', r"\1", text[1:-1])
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    return text
