"""What the name of a tap means: each form in which one can be written, in one table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import attrs
from vnic.errors import ConfigError

_NAME_MAX: Final = 15
"""IFNAMSIZ less the zero at its end.  TUNSETIFF cuts a longer name in silence."""


@attrs.frozen
class Named:
    """An interface, by its name."""

    interface: str


@attrs.frozen
class Passed:
    """A descriptor, by its number: whoever started this process opened it."""

    fd: int


def parse(written: str) -> Named | Passed:
    """Read a name as the user wrote it.

    Raises: ConfigError.
    """
    for form, meaning in _FORMS:
        if found := form.fullmatch(written):
            try:
                return meaning(found[1])
            except ValueError as error:
                raise ConfigError(f"{written!a}: {error}") from None
    raise AssertionError("the last form matches anything")


def interface(name: str) -> str:
    """Take an interface's name; refuse what the kernel would, or would take for something else.

    Raises: ValueError, which says what is wrong and what to do.
    """
    bad = sorted({c for c in name if c in "/:%" or not "!" <= c <= "~"})
    if bad:
        shown = " ".join(ascii(c) for c in bad)
        raise ValueError(
            f"the name of an interface can't have {shown}; use letters, digits, - and _"
        )
    if name in ("", ".", ".."):
        raise ValueError("no name for an interface; give one like tap0")
    if name.isdecimal():
        raise ValueError(f"a number alone names no interface; write it whole, as in tap{name}")
    if len(name) > _NAME_MAX:
        raise ValueError(
            f"the name has {len(name)} characters, an interface's at most {_NAME_MAX}; "
            "choose a shorter one"
        )
    return name


def _named(name: str) -> Named:
    return Named(interface(name))


def _passed(number: str) -> Passed:
    if not re.fullmatch("[0-9]{1,9}", number):
        raise ValueError("no number of a descriptor; write it in decimal, as in tap:fd=7")
    return Passed(int(number))


_FORMS: Final[tuple[tuple[re.Pattern[str], Callable[[str], Named | Passed]], ...]] = (
    (re.compile(r"(?:macv)?tap:fd=(.*)", re.DOTALL), _passed),  # tap:fd=7
    (re.compile(r"(?:macv)?tap:(.*)", re.DOTALL), _named),  # tap:vm7, macvtap:lan0
    (re.compile(r"(.*)", re.DOTALL), _named),  # tap0, macvtap0; vm7, with type=tap
)
