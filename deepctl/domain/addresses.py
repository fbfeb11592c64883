"""Valid addresses and header values, and the display of addresses: one rule for variables, settings and tables of MCP
servers.

A problem is the rest of a sentence about the text ("has no host"); the caller names the variable or the setting.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from urllib.parse import urlsplit

_FOUR_NUMBERS = re.compile(r"[0-9]+(\.[0-9]+){3}")
_HOST = re.compile(r"[^\W_](?:[\w.-]*\w)?\.?|\[[0-9A-Fa-f:.]+(?:%25?[\w.-]+)?\]")
_NO_PART_OF_AN_ADDRESS = re.compile(r"[\s\"'<>\\^`{|}\u2018-\u201f\u2026\ufeff]")


HIDDEN_PASSWORD = "…"
"""The replacement for a password in output."""
# A password may contain a slash, an @ or a blank that should have been written %2F, %40 or %20. Digits before the first
# slash are a port. Compiled on first use, because most texts have no address.
_WHOLE_ADDRESS = r"(?is)(\s*[a-z][a-z0-9+.-]*:[/\\]+[^/\\:@]*):(?!\d{1,5}(?:[/?#\\]|$))(.*)@([^@]*)"
_ADDRESS_IN_TEXT = r"(:[/\\]{2}[^/\s:@\\]*):[^/\s\\]*@"


def without_passwords(value: Any) -> Any:
    """A setting's value for output: without the passwords of addresses, in every text in it, keys included.

    Every output of a setting uses this function.
    """
    if isinstance(value, str):
        if ":/" not in value and ":\\" not in value:
            return value
        whole = re.fullmatch(_WHOLE_ADDRESS, value)
        text = f"{whole[1]}:{HIDDEN_PASSWORD}@{whole[3]}" if whole else value
        return re.sub(_ADDRESS_IN_TEXT, rf"\1:{HIDDEN_PASSWORD}@", text)
    if isinstance(value, dict):
        return {without_passwords(key): without_passwords(inner) for key, inner in value.items()}
    return [without_passwords(inner) for inner in value] if isinstance(value, list) else value


def header_problem(text: str) -> str | None:
    """The reason why a text cannot be a header's value, as the rest of a sentence; blanks around it are ignored."""
    for character in text.strip():
        if character in "\r\n":
            return "contains a line break"
        if not "\x20" <= character <= "\x7e" and character != "\t":
            return f"contains {_named(character)}, which is not allowed in a header"
    return None


def _named(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"the byte 0x{ord(character) - 0xDC00:02x}"
    if character < "\x20" or not character.isprintable():
        return f"an invisible character (U+{ord(character):04X})"
    name = unicodedata.name(character, "")
    return f"the character {character} (U+{ord(character):04X}{', ' + name.lower() if name else ''})"


def address_problem(text: str, schemes: tuple[str, ...] = ("http", "https")) -> str | None:
    """The reason why a text is not a valid address for requests, as the rest of a sentence."""
    prefixes = " or ".join(f"{scheme}://" for scheme in schemes)
    for character in text:
        if character.isspace():
            return "contains a blank or a line break"
        if not character.isprintable() or _NO_PART_OF_AN_ADDRESS.match(character):
            return f"contains {_named(character)}, which is not allowed in an address"
    if text.partition("://")[0].lower() not in schemes or "://" not in text:
        return f"does not begin with {prefixes}"
    try:
        parts = urlsplit(text)
        names, _, place = parts.netloc.rpartition("@")
        host, port = _host_and_port(place)
    except ValueError:
        return "has an invalid host"
    if place.count(":") > 1 and not place.startswith("["):
        return "contains an IPv6 address without brackets"
    if not host:
        return "has no host"
    labels = host.removesuffix(".").split(".")
    if (
        not _HOST.fullmatch(host)
        or not all(0 < len(label) < 64 for label in labels)
        or (not host.isascii() and not _is_idna(host))
    ):
        return "has an invalid host"
    if (host.startswith("[") or _FOUR_NUMBERS.fullmatch(host)) and not _is_ip(host):
        return "has an invalid host"
    if port is not None and not (port.isascii() and port.isdecimal() and 0 < int(port[:9]) < 65536 and len(port) < 10):
        return "has a port that is not a number from 1 to 65535"
    if "@" in names or "/" in names:
        return "contains an @ in a name or password; write %40"
    return None


def _host_and_port(place: str) -> tuple[str, str | None]:
    if place.startswith("["):
        host, bracket, rest = place.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(place)
        return host + bracket, rest[1:] or None
    host, colon, port = place.partition(":")
    return host, port if colon and port else None


def is_loopback(address: str) -> bool:
    """Whether the host of an address is this machine."""
    from ipaddress import ip_address

    try:
        host = urlsplit(address).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _is_ip(host: str) -> bool:
    from ipaddress import ip_address

    try:
        ip_address(host.strip("[]").replace("%25", "%"))
    except ValueError:
        return False
    return True


def _is_idna(host: str) -> bool:
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True
