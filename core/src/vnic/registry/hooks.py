"""A class against its hookspecs, and an instance's hooks as functions to call."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final
from weakref import WeakKeyDictionary

import pluggy

from vnic.errors import ConfigError
from vnic.hookspecs import BackendHooks, FrontendHooks

_REQUIRED_HOOKS: Final[dict[type, tuple[str, ...]]] = {
    BackendHooks: ("init", "cleanup", "send", "recv"),
    FrontendHooks: ("init", "cleanup", "reset", "transmit", "receive", "link_changed"),
}

_matched: Final[WeakKeyDictionary[type, dict[type, dict[str, str]]]] = WeakKeyDictionary()
"""What `match_hooks` found in classes that are right: pluggy's look at one takes milliseconds, and
a switch may have 254 links."""

_POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


class Hooks(SimpleNamespace):
    """The bound functions of one plugin's instance, an attribute per hook; None where it has none.

    They take the hook's arguments by position, in the order of the hookspec.
    """


def resolve_hooks(instance: object, spec_class: type, who: str | None = None) -> Hooks:
    """Return the bound functions of an instance, one per hook of ``spec_class``.

    Resolve once, call often: a call through them costs what any method costs.

    Raises: ConfigError, as `match_hooks` does.
    """
    cls = type(instance)
    answers = match_hooks(cls, spec_class, who or f"{cls.__module__}.{cls.__qualname__}")
    hooks: dict[str, Callable[..., Any] | None] = {}
    for hook in _spec_names(spec_class):
        attribute = answers.get(hook)
        hooks[hook] = (
            _in_order(getattr(instance, attribute), _arguments(getattr(spec_class, hook)))
            if attribute
            else None
        )
    return Hooks(**hooks)


def match_hooks(cls: type, spec_class: type, who: str) -> dict[str, str]:
    """Check a class's hooks against their specs; return hook name to attribute name.

    Raises: ConfigError, with all that is wrong, a line each: a hook that is missing, unknown or
        answered twice, a method that lacks its ``@hookimpl``, an argument that no spec has.
    """
    found = _matched.setdefault(cls, {})
    if spec_class not in found:
        found[spec_class] = _match_hooks(cls, spec_class, who)
    return found[spec_class]


def _match_hooks(cls: type, spec_class: type, who: str) -> dict[str, str]:
    manager = pluggy.PluginManager("vnic")
    manager.add_hookspecs(spec_class)
    known = _spec_names(spec_class)
    answers: dict[str, str] = {}
    problems: list[str] = []
    for attribute in dir(cls):
        options = manager.parse_hookimpl_opts(cls, attribute)
        if options is None:
            if attribute in known:
                problems.append(f"{attribute}() isn't marked as a hook; put @hookimpl above it")
                answers.setdefault(attribute, attribute)
            continue
        hook = options.get("specname") or attribute
        if hook not in known:
            if not options.get("optionalhook"):
                close = difflib.get_close_matches(hook, known, 1)
                hint = f'; did you mean "{close[0]}"?' if close else f"; known: {', '.join(known)}"
                problems.append(f'unknown hook "{hook}"{hint}')
            continue
        if hook in answers:
            problems.append(f"{hook} is answered twice: {answers[hook]}() and {attribute}()")
        if options.get("wrapper") or options.get("hookwrapper"):
            problems.append(f"{hook}: a hook wrapper has nothing to wrap here; use a filter")
        answers[hook] = attribute
        method = getattr(cls, attribute)
        try:  # one method at a time: pluggy stops at the first that it refuses
            manager.register(SimpleNamespace(**{attribute: method}), name=f"{who}, {attribute}")
        except pluggy.PluginValidationError as error:
            problems.append(_wrong_arguments(hook, method, spec_class, error))
    required = _REQUIRED_HOOKS.get(spec_class, ())
    problems += [
        f'no hook "{hook}"; needed are {", ".join(required)}'
        for hook in required
        if hook not in answers
    ]
    if problems:
        raise ConfigError("\n".join(f"{who}: {problem}" for problem in problems))
    return answers


def _spec_names(spec_class: type) -> list[str]:
    return [name for name in vars(spec_class) if hasattr(getattr(spec_class, name), "vnic_spec")]


def _arguments(spec: Callable[..., object]) -> tuple[str, ...]:
    return tuple(inspect.signature(spec).parameters)[1:]  # without self


def _wrong_arguments(
    hook: str, method: Callable[..., object], spec_class: type, error: pluggy.PluginValidationError
) -> str:
    wanted = _arguments(getattr(spec_class, hook))
    unknown = [name for name in inspect.signature(method).parameters if name not in wanted]
    unknown = [name for name in unknown if name != "self"]
    if not unknown:
        return f"{hook}: {str(error).splitlines()[-1]}"
    names = ", ".join(f'"{name}"' for name in unknown)
    return f"{hook}: no argument {names} in this hook, which is {hook}({', '.join(wanted)})"


def _in_order(function: Callable[..., Any], wanted: tuple[str, ...]) -> Callable[..., Any]:
    """Return the function itself if it takes ``wanted`` by position, or what calls it by name.

    A hook may leave out arguments, or order them otherwise, as everywhere in pluggy.
    """
    parameters = inspect.signature(function).parameters.values()
    leading = tuple(p.name for p in parameters if p.kind in _POSITIONAL)[: len(wanted)]
    if leading == wanted:
        return function
    taken = {p.name for p in parameters}

    def by_name(*values: Any) -> Any:
        given = zip(wanted, values, strict=True)
        return function(**{name: value for name, value in given if name in taken})

    return by_name
