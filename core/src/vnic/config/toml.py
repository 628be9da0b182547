"""A file of NICs and patches.

Such as::

    [[nic]]
    name = "web"
    frontend = "virtio-net"
    backend = "vale0:1"
    mtu = 9000
    filters = ["capture:/tmp/web.pcap"]
    vhost-user = "/run/web.sock"        # or { path = "/run/web.sock", mode = "client" }

    [[patch]]
    between = ["vale0:up", "tap0"]
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from vnic.config.nic import NicConfig, ServerConfig
from vnic.config.options import did_you_mean
from vnic.errors import ConfigError

_TABLES: Final = ("nic", "patch")
_TEXTS: Final = ("frontend", "backend", "name", "type")


@attrs.frozen(kw_only=True)
class RunConfig:
    """What one process runs."""

    nics: tuple[NicConfig, ...] = ()
    patches: tuple[tuple[str, str], ...] = ()
    """Pairs of backends' names."""


def load_toml(path: str | os.PathLike[str], servers: Collection[str]) -> RunConfig:
    """Read a file.  ``servers`` are the prefixes of the servers that are installed: they are keys.

    Options are left to the plugins: one that nobody knows is refused when its NIC is opened.

    Raises: ConfigError, with all problems, a line each, with file, table and key.
    """
    document = _read(path)
    problems: list[str] = []
    for key in document:
        if key not in _TABLES:
            hint = did_you_mean(key, _TABLES)
            problems.append(f'{path}: unknown table "{key}"; a file has [[nic]], [[patch]]{hint}')
    nics, patches = [], []
    for n, table in enumerate(_tables(document, "nic", path, problems), start=1):
        if nic := _nic(table, f"{path}: [[nic]] {n}", servers, problems):
            nics.append(nic)
    for n, table in enumerate(_tables(document, "patch", path, problems), start=1):
        if pair := _patch(table, f"{path}: [[patch]] {n}", problems):
            patches.append(pair)
    named: dict[str, NicConfig] = {}
    for nic in nics:
        if nic.name in named:
            other = named[nic.name].where.removeprefix(f"{path}: ")
            problems.append(f'{nic.where}: {other} has the name "{nic.name}" too; change one')
        named.setdefault(nic.name, nic)
    if not nics and not patches and not problems:
        problems.append(f"{path}: nothing to run; add a [[nic]] or a [[patch]]")
    if problems:
        raise ConfigError("\n".join(problems))
    return RunConfig(nics=tuple(nics), patches=tuple(patches))


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8, as TOML has to be"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply; nothing here needs that") from error


def _tables(
    document: Mapping[str, Any], key: str, path: str | os.PathLike[str], problems: list[str]
) -> list[dict[str, Any]]:
    tables = document.get(key, [])
    if isinstance(tables, list) and all(isinstance(table, dict) for table in tables):
        return tables
    problems.append(f"{path}: {key}: there may be several; write [[{key}]], in double brackets")
    return []


def _nic(
    table: Mapping[str, Any], where: str, servers: Collection[str], problems: list[str]
) -> NicConfig | None:
    texts: dict[str, str] = {}
    for key in _TEXTS:
        value = table.get(key)
        if isinstance(value, str) and value and value.isprintable():
            texts[key] = value
        elif key in table:
            problems.append(f"{where}: {key} = {value!r}: write a text, in quotes and not empty")
        elif key in ("frontend", "backend"):
            problems.append(f'{where}: no {key}; add {key} = "..."{_typo(key, table)}')
    if "name" in texts:
        where = f'{where} "{texts["name"]}"'
    filters = table.get("filters", [])
    if not (isinstance(filters, list) and all(isinstance(f, str) and f for f in filters)):
        problems.append(f'{where}: filters = {filters!r}: write texts, as in ["capture:FILE"]')
        filters = []
    server = _server(table, where, servers, problems)
    options = _options(table, where, servers, problems)
    if "frontend" not in texts or "backend" not in texts:
        return None
    return NicConfig(options=options, filters=tuple(filters), server=server, where=where, **texts)


def _typo(key: str, table: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, [k for k in table if k not in _TEXTS], 1)
    return f'; or is it "{close[0]}", misspelt?' if close else ""


def _server(
    table: Mapping[str, Any], where: str, servers: Collection[str], problems: list[str]
) -> ServerConfig | None:
    found = []
    for key, value in table.items():
        if key not in servers:
            continue
        options = value if isinstance(value, dict) else {"path": value}
        problems += [
            f"{where}: {key}: {option} = {written!r}: write a text, a number, true or false"
            for option, written in options.items()
            if not isinstance(written, str | int | float)
        ]
        found.append(ServerConfig(prefix=key, options=options))
    if len(found) > 1:
        keys = " and ".join(server.prefix for server in found)
        problems.append(f"{where}: {keys}: a NIC has one server; keep one of them")
    return found[0] if found else None


def _options(
    table: Mapping[str, Any], where: str, servers: Collection[str], problems: list[str]
) -> dict[str, object]:
    options: dict[str, object] = {}
    for written, value in table.items():
        if written in _TEXTS or written == "filters" or written in servers:
            continue
        key = written.replace("_", "-")
        if key == "filter":
            problems.append(f"{where}: filter: an array in a file, filters = [{value!r}]")
        elif isinstance(value, dict):
            installed = ", ".join(sorted(servers)) or "none"
            hint = did_you_mean(written, servers)
            problems.append(f'{where}: no server "{written}"; installed: {installed}{hint}')
        elif not isinstance(value, str | int | float):
            problems.append(
                f"{where}: {written} = {value!r}: write a text, a number, true or false"
            )
        elif key in options:
            problems.append(f"{where}: {key} is given twice, with dashes and with underscores")
        else:
            options[key] = value
    return options


def _patch(table: Mapping[str, Any], where: str, problems: list[str]) -> tuple[str, str] | None:
    for key in table:
        if key != "between":
            hint = did_you_mean(key, ["between"])
            problems.append(f'{where}: unknown key "{key}"; a patch has between{hint}')
    match table.get("between"):
        case [str(a), str(b)] if a and b and a != b:
            return a, b
        case [str(a), str(b)] if a and a == b:
            problems.append(f"{where}: between: both are {a!r}; name two backends")
        case _:
            problems.append(f'{where}: write two backends, as in between = ["vale0:up", "tap0"]')
    return None
