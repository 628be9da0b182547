"""Entry points to classes: which plugin a name means, imported only when it's asked for.

Reading names is cheap and safe; importing is somebody else's code.  So a broken plugin hurts
nobody who didn't ask for it, and two that claim one prefix clash only for those who use it.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from typing import Final

import attrs
import importlib_metadata

from vnic.errors import ConfigError, VnicError
from vnic.hookspecs import BackendHooks, FrontendHooks
from vnic.registry.hooks import match_hooks

log = logging.getLogger("vnic.registry")

GROUPS: Final = {
    "backends": "backend",
    "filters": "filter",
    "frontends": "frontend",
    "servers": "server",
    "drivers": "driver",
}
"""The entry-point groups, without their ``vnic.``, and what one of each is called."""

_GROUP_NAMES: Final = {f"vnic.{group}": group for group in GROUPS}

_BY_PREFIX: Final = ("backends", "filters")
"""Whose plugins are told the name, and so read what follows the prefix.  The others' names are
matched whole: ``e1000x`` isn't an e1000."""

_SPECS: Final[dict[str, type]] = {
    "backends": BackendHooks,
    "filters": BackendHooks,
    "frontends": FrontendHooks,
}

_REQUIRED_METHODS: Final[dict[str, tuple[str, ...]]] = {"servers": ("serve", "close")}

_CHECK_TIMEOUT_S: Final = 60.0
"""An import that takes longer than this is taken to hang; a cold disk needs a few seconds."""


@attrs.frozen(kw_only=True)
class Entry:
    """One line of a distribution's entry points.  Nothing has been imported."""

    group: str
    """A key of `GROUPS`."""
    prefix: str
    distribution: str
    version: str
    value: str
    """``module:attribute``, as it was written."""

    def __str__(self) -> str:
        return f'{GROUPS[self.group]} "{self.prefix}" of {self.distribution} {self.version}'

    @property
    def type(self) -> str:
        """What settles a clash: ``DIST:PREFIX``."""
        return f"{self.distribution}:{self.prefix}"


@attrs.frozen(kw_only=True)
class Plugin:
    """A class that was found, imported and checked."""

    prefix: str
    cls: type
    distribution: str
    version: str
    group: str


class Registry:
    """The plugins that are installed, as of when it was made."""

    def __init__(self, entries: Iterable[Entry] | None = None) -> None:
        """Read the installed distributions' metadata, or take ``entries`` in its place."""
        found = _installed() if entries is None else entries
        self._entries = sorted(found, key=lambda entry: (entry.group, entry.prefix, entry.type))

    def entries(self, group: str | None = None) -> list[Entry]:
        """Return what is installed, of all groups or one, sorted by group and prefix."""
        return [entry for entry in self._entries if group in (None, entry.group)]

    def prefixes(self, group: str) -> list[str]:
        """Return the prefixes of a group, each once, sorted."""
        return list(dict.fromkeys(entry.prefix for entry in self.entries(group)))

    def clashes(self, entry: Entry) -> list[Entry]:
        """Return the other entries that claim the same prefix."""
        return [
            other
            for other in self.entries(entry.group)
            if other.prefix == entry.prefix and other != entry
        ]

    def find(self, group: str, name: str, type: str | None = None) -> Entry:  # noqa: A002
        """Return the entry that a name means: the longest prefix wins, ``type`` overrides.

        ``type`` is ``PREFIX`` or ``DIST:PREFIX``.  Frontends, servers and drivers aren't told
        their names, so there the whole name is taken as the type.

        Raises: ConfigError, when none or more than one claims it.
        """
        wanted = type if type is not None or group in _BY_PREFIX else name
        if wanted is None:
            matching = [p for p in self.prefixes(group) if p and name.startswith(p)]
            prefix = max(matching, key=len, default=None)
            found = [entry for entry in self.entries(group) if entry.prefix == prefix]
        else:
            distribution, _, prefix = wanted.partition(":")
            found = [e for e in self.entries(group) if e.prefix == wanted] or [
                entry
                for entry in self.entries(group)
                if entry.prefix == prefix and _normal(entry.distribution) == _normal(distribution)
            ]
        if not found:
            raise ConfigError(self._no_match(group, name, type))
        if len(found) > 1:
            raise ConfigError(_clash(group, found))
        return found[0]

    def load(self, group: str, name: str, type: str | None = None) -> Plugin:  # noqa: A002
        """Find a plugin as `find` does, import it, and check its hooks and its ABI.

        Raises: ConfigError, naming the plugin, its distribution and the cause.
        """
        entry = self.find(group, name, type)
        cls = _import(entry)
        _check_abi(cls, entry)
        if spec_class := _SPECS.get(entry.group):
            match_hooks(cls, spec_class, str(entry))
        for method in _REQUIRED_METHODS.get(entry.group, ()):
            if not callable(getattr(cls, method, None)):
                raise ConfigError(f"{entry}: {cls.__qualname__} has no method {method}()")
        return Plugin(
            prefix=entry.prefix,
            cls=cls,
            distribution=entry.distribution,
            version=entry.version,
            group=entry.group,
        )

    def check(self, entry: Entry) -> str | None:
        """Load a plugin in a process of its own; return what went wrong, None if nothing did.

        Blocks while it imports, at most a minute.
        """
        request = json.dumps([sys.path, attrs.asdict(entry)])
        command = [sys.executable, "-P", "-c", _CHILD, request]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_CHECK_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{entry}: its import hasn't ended after {_CHECK_TIMEOUT_S:.0f} s"
        if done.returncode == 0 and done.stdout:
            return None if done.stdout == "ok" else done.stdout
        last_words = done.stderr.strip().splitlines()[-1:]
        how = _exit_status(done.returncode)
        return ": ".join([str(entry), f"the process that imported it {how}", *last_words])

    def _no_match(self, group: str, name: str, type: str | None) -> str:  # noqa: A002
        what, prefixes = GROUPS[group], self.prefixes(group)
        if type is None:
            text = f'no {what} matches "{name}"'
        else:
            text = f'no {what} has the type "{type}" that "{name}" asks for'
        if not prefixes:
            return f"{text}; no {what} is installed"
        text += f"; installed: {', '.join(prefixes)}"
        asked = name if type is None else type
        # What names an instance (the 0 of tap0, the 0:1 of vale0:1) is kept as it was typed.
        by_prefix = type is None and group in _BY_PREFIX
        head = re.split(r"[\d:]", asked, maxsplit=1)[0] if by_prefix else asked
        close = difflib.get_close_matches(head.lower(), prefixes, 1)
        return text + (f'; did you mean "{close[0]}{asked[len(head) :]}"?' if close else "")


def _installed() -> list[Entry]:
    """Read all distributions' entry points; one whose metadata is broken is left out, and named.

    Of two copies of one distribution, the first on the path is the one that is imported.
    """
    found: dict[str, list[Entry]] = {}
    for dist in importlib_metadata.distributions():
        try:
            points = [point for point in dist.entry_points if point.group in _GROUP_NAMES]
            if not points:
                continue
            name, version = str(dist.name), str(dist.version)
            entries = [
                Entry(
                    group=_GROUP_NAMES[point.group],
                    prefix=point.name,
                    distribution=name,
                    version=version,
                    value=point.value,
                )
                for point in points
            ]
        except Exception as error:  # whatever a parser makes of somebody's files
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning("%s: its metadata can't be read: %s", _where(dist), cause)
            continue
        found.setdefault(_normal(name), entries)
    return [entry for entries in found.values() for entry in entries]


def _where(dist: object) -> str:
    return str(getattr(dist, "_path", dist))  # no public name tells the file


def _import(entry: Entry) -> type:
    point = importlib_metadata.EntryPoint(entry.prefix, entry.value, f"vnic.{entry.group}")
    try:
        cls = point.load()
    except (Exception, SystemExit) as error:  # whatever somebody's module raises
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"{entry} can't be imported: {cause}; upgrade or reinstall {entry.distribution}"
        ) from error
    if not isinstance(cls, type):
        raise ConfigError(f"{entry}: {entry.value} is a {type(cls).__name__}, not a class")
    return cls


def _check_abi(cls: type, entry: Entry) -> None:
    theirs = getattr(cls, "vnic_abi", None)
    if theirs is None:  # it reads no exported array
        return
    from vnic.burst import ABI  # a kernel: whoever only lists plugins needn't load it

    if theirs != ABI:
        behind = entry.distribution if isinstance(theirs, int) and theirs < ABI else "vnic"
        raise ConfigError(
            f"{entry} was built for version {theirs} of the burst's layout, "
            f"this vnic has {ABI}; upgrade {behind}"
        )


def _clash(group: str, found: list[Entry]) -> str:
    text = f'{GROUPS[group]} "{found[0].prefix}" is claimed by ' + " and by ".join(
        f"{entry.distribution} {entry.version}" for entry in found
    )
    types = [entry.type for entry in found]
    if len(set(types)) < len(types) or group not in ("backends", "frontends"):
        return f"{text}; uninstall one of them"
    if group == "backends":
        return f"{text}; say which: {' or '.join(f'type={settled}' for settled in types)}"
    return f"{text}; say which: {' or '.join(types)}"


def _normal(distribution: str) -> str:
    """Spec: PyPA, "Names and normalization"."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _exit_status(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


_CHILD: Final = (
    "import json, sys; sys.path[:], entry = json.loads(sys.argv[1]); "
    "from vnic.registry.plugins import check_here; check_here(entry)"
)


def check_here(fields: dict[str, str]) -> None:
    """Be the process of `Registry.check`: say on stdout ``ok``, or what went wrong."""
    report = os.dup(1)
    os.dup2(2, 1)  # what a plugin prints isn't the report
    entry = Entry(**fields)
    try:
        Registry([entry]).load(entry.group, entry.prefix, entry.type)
        verdict = "ok"
    except VnicError as error:
        verdict = str(error)
    os.write(report, verdict.encode(errors="replace"))
