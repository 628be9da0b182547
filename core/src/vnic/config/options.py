"""Options: keys and values, read into the attrs classes that declare them.

A plugin's ``Options`` is an attrs class: a field is an option, its converter reads the value from
text (or takes what TOML gave: numbers, true, false).  A converter raises
``ValueError("what is wrong; what to do")``; whose key and value that was is added here.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from vnic.errors import ConfigError

_MTU_MIN: Final = 68
"""What every IPv4 link must carry.  Spec: RFC 791, "Fragmentation and Reassembly"."""
_MTU_MAX: Final = 65535
"""The largest that virtio's 16-bit field can say."""

_WORDS: Final = dict.fromkeys(("on", "yes", "true", "1"), True) | dict.fromkeys(
    ("off", "no", "false", "0"), False
)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean "that"?``, or nothing when no known word is close."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f'; did you mean "{close[0]}"?' if close else ""


def structure(options: Mapping[str, object], where: str, *classes: type | None) -> tuple[Any, ...]:
    """Share one mapping among several ``Options`` classes; return an instance of each.

    Each takes the keys that it declares, so a key may serve more than one (``mtu``).  A key's
    underscores are dashes.  For a class that is None, None is returned.

    Raises: ConfigError, with all problems, a line each: a key that nobody takes, one that is
        missing, a value that its converter refuses.  ``where`` begins each line.
    """
    declared = [_fields(cls) for cls in classes]
    known = dict.fromkeys(key for fields in declared for key in fields)
    problems: list[str] = []
    given: dict[str, object] = {}
    for written, value in options.items():
        key = written.replace("_", "-")
        if key in given:
            problems.append(f'option "{key}" is given twice; keep one')
        elif key not in known:
            takes = f"; it takes: {', '.join(sorted(known))}" if known else "; it takes none"
            problems.append(f'unknown option "{key}"{takes}{did_you_mean(key, known)}')
        given[key] = value
    problems += [problem for fields in declared for problem in _refused(fields, given)]
    instances = [] if problems else _instances(classes, declared, given, problems)
    if problems:
        lines = dict.fromkeys(f"{where}: {problem}" for problem in problems)
        raise ConfigError("\n".join(lines))
    return tuple(instances)


def _fields(cls: type | None) -> dict[str, attrs.Attribute[Any]]:
    if cls is None:
        return {}
    return {f.alias.replace("_", "-"): f for f in attrs.fields(cls) if f.init and f.alias}


def _refused(
    fields: Mapping[str, attrs.Attribute[Any]], given: Mapping[str, object]
) -> Iterable[str]:
    for key, field in fields.items():
        if key not in given:
            if field.default is attrs.NOTHING:
                yield f'option "{key}" is missing; add {key}=...'
            continue
        value = given[key]
        convert: Any = field.converter or text
        if isinstance(convert, getattr(attrs, "Converter", ())):
            continue  # it may need the instance, and runs when that is made
        try:
            convert(value)
        except (TypeError, ValueError) as error:
            yield f"{key}={_shown(value)}: {error}"


def _instances(
    classes: Iterable[type | None],
    declared: Iterable[Mapping[str, attrs.Attribute[Any]]],
    given: Mapping[str, object],
    problems: list[str],
) -> list[Any]:
    instances: list[Any] = []
    for cls, fields in zip(classes, declared, strict=True):
        taken = {f.alias: given[key] for key, f in fields.items() if key in given and f.alias}
        try:
            instances.append(None if cls is None else cls(**taken))
        except (TypeError, ValueError) as error:  # a validator's, over several options
            problems.append(str(error.args[0] if error.args else error))
    return instances


def _shown(value: object) -> str:
    """Show a value as it is written: TOML's true is lower-case."""
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---- converters, for plugin authors as well ------------------------------------------------------


def text(value: object) -> str:
    """Take text that isn't empty."""
    if not isinstance(value, str):
        raise ValueError("text is needed; put it in quotes")
    if not value:
        raise ValueError("it's empty; give a value, or leave the option out")
    return value


def path(value: object) -> Path:
    """Take a file's path; ``~`` is the user's home."""
    if isinstance(value, Path):
        return value
    written = text(value)
    if "\0" in written:
        raise ValueError("a path has no zero byte; leave it out")
    return Path(written).expanduser()


def boolean(value: object) -> bool:
    """Take on, yes, true, 1, or off, no, false, 0."""
    try:
        return _WORDS[str(value).lower()]
    except KeyError:
        raise ValueError("neither on nor off; write on or off") from None


def integer(min: int | None = None, max: int | None = None) -> Callable[[object], int]:  # noqa: A002
    """Make a converter that takes a whole number, also as 0x..., between both bounds."""

    def convert(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError("not a whole number; write one")
        try:
            number = int(value, 0) if isinstance(value, str) else value
        except ValueError:
            raise ValueError("not a whole number; write one") from None
        if (min is not None and number < min) or (max is not None and number > max):
            if max is None:
                raise ValueError(f"too small; give {min} or more")
            if min is None:
                raise ValueError(f"too large; give {max} or less")
            raise ValueError(f"out of range; give {min} to {max}")
        return number

    return convert


def choice(*words: str) -> Callable[[object], str]:
    """Make a converter that takes one of the words."""

    def convert(value: object) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise ValueError(
            f"not a choice; give {' or '.join(words)}{did_you_mean(str(value), words)}"
        )

    return convert


mtu: Final = integer(_MTU_MIN, _MTU_MAX)
"""Take an MTU: the largest IP packet in bytes, without the Ethernet header."""


def mac(value: object) -> bytes:
    """Take a NIC's own address, as ``52:54:00:01:02:03``; return its 6 bytes."""
    if isinstance(value, bytes) and len(value) == 6:
        address = value
    elif re.fullmatch(r"[0-9a-f]{2}([:-])(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}", str(value), re.I | re.A):
        address = bytes.fromhex(re.sub("[:-]", "", str(value)))
    else:
        raise ValueError("not a MAC address; write six bytes, as in 52:54:00:01:02:03")
    if address[0] & 1:
        own = bytes([address[0] & ~1 | 2]) + address[1:]
        raise ValueError(f"a multicast address, which no NIC can have; take {own.hex(':')}")
    if not any(address):
        raise ValueError("all zero; leave it out and one is made from the NIC's name")
    return address


def default_mac(name: str) -> bytes:
    """Return a locally administered address made from a NIC's name, always the same one.

    Two hosts on one network whose NICs have the same name get the same address: name them apart,
    or give ``mac``.

    Spec: IEEE 802, "Local MAC addresses".
    """
    digest = hashlib.blake2s(name.encode(errors="surrogatepass"), digest_size=6).digest()
    return bytes([digest[0] & 0xFC | 0x02]) + digest[1:]
