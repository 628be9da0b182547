"""What ``serve`` and ``run`` share: open everything or nothing, run until a signal, close."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

from vnic.config import NicConfig, RunConfig, ServerConfig, structure
from vnic.errors import ConfigError, VnicError

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from vnic.loop import Loop
    from vnic.nic import Nic
    from vnic.registry import Registry

_F = TypeVar("_F", bound=Callable[..., Any])


def hosting_options(command: _F) -> _F:
    """Add the options of a command that ends in `host`."""
    command = click.option(
        "--stats",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Print the NICs' counters this often.",
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")(command)


def host(config: RunConfig, registry: Registry, *, as_json: bool, stats_s: float | None) -> None:
    """Open all NICs and patches, say so, and run until SIGINT or SIGTERM.

    Raises: VnicError, with what is wrong with all of them, a line each, and nothing left open.
    """
    from vnic.loop import Loop

    with _Signals() as signals, ExitStack() as stack:
        loop = Loop()
        stack.callback(loop.close)
        nics = _open_all(config, loop, registry, stack)
        for line in _announcements(config, as_json):
            click.echo(line)
        if stats_s is not None:
            _print_counters_every(stats_s, nics, loop, as_json)
        # Before the loop runs there's nothing to stop: a signal unwinds the stack.
        loop.schedule(lambda: signals.then(loop.stop))
        loop.run()
        signals.then(_nothing)


class _Ended(BaseException):
    """A signal came while things were being opened: close them, and that's all."""


def _unwind() -> None:
    raise _Ended


def _nothing() -> None:
    """Closing has begun."""


class _Signals:
    """While entered, the first SIGINT or SIGTERM ends the process in order.

    More of them change nothing, until the process is gone: what is being closed gets closed, and
    the exit status stays what it was to be.
    """

    def __init__(self) -> None:
        self._came = False
        self._do: Callable[[], None] = _unwind
        self._before: dict[signal.Signals, Any] = {}

    def then(self, do: Callable[[], None]) -> None:
        """Have ``do`` called when the first signal comes, if it hasn't come."""
        if self._do is not _nothing:
            self._do = do

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, _kind: object, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._came else handler)
        return isinstance(error, _Ended)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        do, self._do = self._do, _nothing
        do()


def _open_all(config: RunConfig, loop: Loop, registry: Registry, stack: ExitStack) -> list[Nic]:
    nics: list[Nic] = []
    errors: list[VnicError] = []
    for a, b in config.patches:
        from vnic.patch import Patch

        try:
            stack.callback(Patch(a, b, loop, registry).close)
        except VnicError as error:
            errors.append(type(error)(f"patch {a} {b}: {error}"))
    for nic in config.nics:
        try:
            nics.append(_open(nic, loop, registry, stack))
        except VnicError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(str(error) for error in errors)))
    return nics


def _open(config: NicConfig, loop: Loop, registry: Registry, stack: ExitStack) -> Nic:
    from vnic.nic import open_nic

    assert config.server is not None
    cls: Any = registry.load("servers", config.server.prefix).cls
    (options,) = structure(
        config.server.options,
        f"{config.where}: {config.server.prefix}",
        getattr(cls, "Options", None),
    )
    with ExitStack() as opened:
        server = cls(options, loop)
        opened.callback(server.close)
        nic = open_nic(config, server, loop, registry)
        opened.callback(nic.close)
        opened.callback(server.close)  # first of all: a session must not outlive its NIC
        server.serve(nic)
        stack.push(opened.pop_all())
    return nic


def _announcements(config: RunConfig, as_json: bool) -> Iterator[str]:
    for a, b in config.patches:
        if as_json:
            yield json.dumps({"event": "patched", "between": [a, b]})
        else:
            yield f"patched {a} to {b}"
    for nic in config.nics:
        server = nic.server or ServerConfig(prefix="", options={})
        if as_json:
            event = {"event": "serving", "nic": nic.name, "frontend": nic.frontend}
            event |= {"backend": nic.backend, "server": server.prefix}
            yield json.dumps(event | {k: v for k, v in server.options.items() if k not in event})
        else:
            at = f" at {server.options['path']}" if "path" in server.options else ""
            yield f"{nic.name}: serving {nic.frontend} on {nic.backend}{at}"


def _print_counters_every(seconds: float, nics: list[Nic], loop: Loop, as_json: bool) -> None:
    before: dict[str, dict[str, int]] = {nic.name: nic.counters() for nic in nics}
    since = time.monotonic()

    def print_counters() -> None:
        nonlocal since
        passed_s, since = time.monotonic() - since, time.monotonic()
        for nic in nics:
            counters, last = nic.counters(), before[nic.name]
            before[nic.name] = counters
            if as_json:
                click.echo(json.dumps({"event": "stats", "nic": nic.name, "counters": counters}))
                continue
            for name, total in counters.items():
                per_s = (total - last.get(name, 0)) / passed_s
                click.echo(f"{nic.name}: {name:<24} {total:>16,} {per_s:>14,.0f}/s")
        loop.timer(seconds, print_counters)

    loop.timer(seconds, print_counters)
