"""One NIC as its user writes it: ``virtio-net,vale0:1,mac=52:54:00:01:02:03,mtu=9000``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs

from vnic.errors import ConfigError

FORM: Final = 'write FRONTEND,BACKEND[,KEY=VALUE...], as in "virtio-net,tap0,mtu=9000"'

_OPTION: Final = re.compile(r"(?:[^,]|,,)*")
"""Up to the next comma.  A doubled comma is a comma of the value, as in QEMU's options."""
_KEY: Final = re.compile(r"[a-z][a-z0-9-]*")


@attrs.frozen(kw_only=True)
class ServerConfig:
    """How a NIC is shown to a VMM."""

    prefix: str
    """The server plugin: ``vhost-user``."""
    options: Mapping[str, object]
    """As written; ``path`` is what a server that is given no more than a text takes."""


def _default_name(config: NicConfig) -> str:
    return f"{config.frontend}-{config.backend}"


def _own_name(config: NicConfig) -> str:
    return config.name


@attrs.frozen(kw_only=True)
class NicConfig:
    """What a NIC is to be.  Its plugins haven't been looked for, nor its options read."""

    frontend: str
    backend: str
    name: str = attrs.Factory(_default_name, takes_self=True)
    options: Mapping[str, object] = attrs.Factory(dict)
    """Keys with dashes; values are text, or what TOML makes of them."""
    filters: tuple[str, ...] = ()
    """From the frontend's side to the backend's."""
    type: str | None = None
    """The backend's plugin, when its name shall not decide: ``PREFIX`` or ``DIST:PREFIX``."""
    server: ServerConfig | None = None
    where: str = attrs.field(default=attrs.Factory(_own_name, takes_self=True), eq=False)
    """Where it was written, for errors: a NIC's name, or a file and its table."""

    def __str__(self) -> str:
        """Return the text that `parse_nic` reads as this, without the server."""
        words = [(key, _written(value)) for key, value in self.options.items()]
        words += [("filter", name) for name in self.filters]
        if self.type is not None:
            words.append(("type", self.type))
        if self.name != _default_name(self):
            words.append(("name", self.name))
        options = [f"{key}={value.replace(',', ',,')}" for key, value in words]
        return ",".join([self.frontend, self.backend, *options])


def parse_nic(text: str) -> NicConfig:
    """Read ``FRONTEND,BACKEND[,KEY=VALUE...]``.

    ``name``, ``type`` and ``filter`` (any number, the frontend's side first) are the NIC's own;
    all other keys are left to the plugins.  A comma within a value is written twice.

    Raises: ConfigError, with all problems, a line each.
    """
    shown = f'"{text}"' if text.isprintable() else ascii(text)
    frontend, _, rest = text.partition(",")
    backend, comma, rest = rest.partition(",")
    frontend, backend = frontend.strip(), backend.strip()
    problems: list[str] = []
    if not text.isprintable():
        problems.append("it has characters that can't be printed; leave them out")
    if not frontend or not backend:
        problems.append(f"no {'backend' if frontend else 'frontend'}; {FORM}")
    elif "=" in frontend:
        problems.append(f"it begins with an option; {FORM}")
    pairs = _pairs(rest, problems) if comma else []
    filters = tuple(value for key, value in pairs if key == "filter")
    options: dict[str, str] = {}
    for key, value in pairs:
        if key in options:
            problems.append(f"option {key} is given twice, {options[key]} and {value}; keep one")
        elif key != "filter":
            options[key] = value
    problems += [
        f"option {key} is empty; give a value, or leave it out"
        for key in dict.fromkeys(key for key, value in pairs if not value)
        if key in ("filter", "name", "type")
    ]
    if problems:
        raise ConfigError("\n".join(f"{shown}: {problem}" for problem in problems))
    type_ = options.pop("type", None)
    name = options.pop("name", f"{frontend}-{backend}")
    return NicConfig(
        frontend=frontend, backend=backend, name=name, options=options, filters=filters, type=type_
    )


def _pairs(rest: str, problems: list[str]) -> list[tuple[str, str]]:
    pairs = []
    at = 0
    while at <= len(rest):
        option = _OPTION.match(rest, at)
        assert option  # it matches the empty text too
        at = option.end() + 1
        key, equals, value = option[0].replace(",,", ",").partition("=")
        key = key.strip().replace("_", "-")
        if not option[0].strip():
            problems.append("an option is empty; leave out the comma before it")
        elif not equals:
            problems.append(f'option "{key}" has no value; write {key}=VALUE')
        elif not _KEY.fullmatch(key):
            problems.append(f'"{key}" is no key; keys are of a-z, 0-9 and dashes')
        else:
            pairs.append((key, value))
    return pairs


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
