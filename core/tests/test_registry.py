"""Names to plugins; plugins that are fine, broken, or in each other's way."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pluggy
import pytest
from vnic.burst import ABI
from vnic.errors import ConfigError
from vnic.hookspecs import BackendHooks, FrontendHooks, hookimpl
from vnic.registry import Entry, Registry, match_hooks, resolve_hooks

Install = Callable[..., Path]

GOOD = """
    from vnic import hookimpl

    class Wire:
        @hookimpl
        def init(self, name, options, link): self.name = name
        @hookimpl
        def cleanup(self): pass
        @hookimpl
        def send(self, burst): return len(burst)
        @hookimpl
        def recv(self, room): return 0
"""


def entry(prefix: str, distribution: str | None = None, group: str = "backends") -> Entry:
    distribution = distribution or f"vnic-{prefix}"
    return Entry(
        group=group, prefix=prefix, distribution=distribution, version="0.1", value="no.such:Class"
    )


NETMAP_TAP_VALE = Registry([entry("tap"), entry("netmap"), entry("vale", "vnic-netmap")])


# ---- which plugin a name means -------------------------------------------------------------------


def test_a_plugin_is_found_by_the_prefix_of_the_name(install: Install) -> None:
    install("vnic-wire", {"backends:wire": "wire:Wire"}, wire=GOOD)
    plugin = Registry().load("backends", "wire0:1")
    assert (plugin.prefix, plugin.cls.__name__) == ("wire", "Wire")
    assert (plugin.distribution, plugin.version, plugin.group) == ("vnic-wire", "1.0", "backends")


def test_the_longest_prefix_wins() -> None:
    registry = Registry([entry("tap"), entry("tapestry"), entry("ta")])
    assert registry.find("backends", "tapestry0").prefix == "tapestry"
    assert registry.find("backends", "tap0").prefix == "tap"


def test_a_type_overrides_the_prefix() -> None:
    assert NETMAP_TAP_VALE.find("backends", "eth0", type="netmap").prefix == "netmap"
    assert NETMAP_TAP_VALE.find("backends", "tap0", type="vnic-netmap:vale").prefix == "vale"


def test_a_type_takes_any_spelling_of_the_distribution() -> None:
    assert NETMAP_TAP_VALE.find("backends", "x", type="VNIC_netmap:vale").prefix == "vale"


def test_a_group_is_no_part_of_another() -> None:
    registry = Registry([entry("tap", group="filters"), entry("vale")])
    with pytest.raises(ConfigError, match=r'no backend matches "tap0"; installed: vale$'):
        registry.find("backends", "tap0")


@pytest.mark.parametrize("group", ["frontends", "servers", "drivers"])
def test_what_is_not_told_its_name_is_matched_whole(group: str) -> None:
    registry = Registry([entry("e1000", group=group)])
    assert registry.find(group, "e1000").prefix == "e1000"
    with pytest.raises(ConfigError, match=r'matches "e1000x".*did you mean "e1000"'):
        registry.find(group, "e1000x")


def test_a_name_nearly_right_is_told_what_was_meant() -> None:
    with pytest.raises(ConfigError) as caught:
        NETMAP_TAP_VALE.find("backends", "tpa0")
    assert str(caught.value) == (
        'no backend matches "tpa0"; installed: netmap, tap, vale; did you mean "tap0"?'
    )


def test_a_suggestion_keeps_the_port_that_was_typed() -> None:
    with pytest.raises(ConfigError, match=r'did you mean "vale0:1"\?$'):
        NETMAP_TAP_VALE.find("backends", "vlae0:1")


def test_a_name_in_capitals_is_told_how_it_is_written() -> None:
    with pytest.raises(ConfigError, match=r'did you mean "vale0:Web"\?$'):
        NETMAP_TAP_VALE.find("backends", "VALE0:Web")


def test_a_name_like_nothing_is_told_what_is_installed() -> None:
    with pytest.raises(ConfigError, match=r"installed: netmap, tap, vale$"):
        NETMAP_TAP_VALE.find("backends", "xyzzy")


def test_an_unknown_type_is_told_what_is_installed() -> None:
    with pytest.raises(ConfigError) as caught:
        NETMAP_TAP_VALE.find("backends", "eth0", type="netmpa")
    assert str(caught.value) == (
        'no backend has the type "netmpa" that "eth0" asks for; '
        'installed: netmap, tap, vale; did you mean "netmap"?'
    )


def test_with_nothing_installed_the_error_says_so() -> None:
    with pytest.raises(ConfigError, match=r'no backend matches "tap0"; no backend is installed$'):
        Registry([]).find("backends", "tap0")


# ---- clashes -------------------------------------------------------------------------------------

CLASHING = Registry([entry("tap"), entry("tap", "other-tap"), entry("vale")])


def test_two_that_claim_a_prefix_are_both_named_when_it_is_asked_for() -> None:
    with pytest.raises(ConfigError) as caught:
        CLASHING.find("backends", "tap0")
    assert str(caught.value) == (
        'backend "tap" is claimed by other-tap 0.1 and by vnic-tap 0.1; '
        "say which: type=other-tap:tap or type=vnic-tap:tap"
    )


def test_two_that_claim_a_prefix_hurt_no_other_prefix() -> None:
    assert CLASHING.find("backends", "vale0:1").distribution == "vnic-vale"


def test_a_type_settles_a_clash() -> None:
    assert CLASHING.find("backends", "tap0", type="other-tap:tap").distribution == "other-tap"
    with pytest.raises(ConfigError, match=r"claimed by other-tap"):
        CLASHING.find("backends", "tap0", type="tap")


def test_a_frontend_that_two_claim_is_settled_by_its_name() -> None:
    pair = [entry("e1000", d, "frontends") for d in ("a", "b")]
    with pytest.raises(ConfigError, match=r"say which: a:e1000 or b:e1000$"):
        Registry(pair).find("frontends", "e1000")
    assert Registry(pair).find("frontends", "b:e1000").distribution == "b"


# ---- plugins that can't be used ------------------------------------------------------------------


def test_nothing_is_imported_before_it_is_asked_for(install: Install) -> None:
    install("vnic-wire", {"backends:wire": "wire:Wire"}, wire=GOOD)
    install("vnic-bomb", {"backends:bomb": "bomb:Bomb"}, bomb="raise SystemExit('boom')")
    registry = Registry()
    assert {"wire", "bomb"} <= {e.prefix for e in registry.entries("backends")}
    assert not {"wire", "bomb"} & set(sys.modules)
    registry.load("backends", "wire0")
    assert "bomb" not in sys.modules


def test_broken_metadata_hurts_nobody_else_and_is_warned_of(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("vnic-wire", {"backends:wire": "wire:Wire"}, wire=GOOD)
    site = install("vnic-bad", {})
    (site / "vnic_bad-1.0.dist-info" / "entry_points.txt").write_text("[vnic.backends]\nno value")
    assert Registry().load("backends", "wire0").distribution == "vnic-wire"
    (warning,) = caplog.messages
    assert "vnic_bad-1.0.dist-info: its metadata can't be read: " in warning


def test_two_copies_of_one_distribution_do_not_clash(install: Install) -> None:
    install("vnic-wire", {"backends:wire": "wire:Wire"}, wire=GOOD)
    install("Vnic.Wire", {"backends:wire": "wire:Wire"}, version="0.9")
    assert Registry().load("backends", "wire0").prefix == "wire"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("raise RuntimeError('no\\nlicence')", "RuntimeError: no licence"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit('boom')", "SystemExit: boom"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("", "AttributeError: module 'bomb' has no attribute 'Bomb'"),
    ],
)
def test_a_plugin_that_fails_to_import_is_named_with_the_cause_in_one_line(
    install: Install, source: str, cause: str
) -> None:
    install("vnic-bomb", {"backends:bomb": "bomb:Bomb"}, bomb=source)
    with pytest.raises(ConfigError) as caught:
        Registry().load("backends", "bomb0")
    text = str(caught.value)
    assert text.startswith(f'backend "bomb" of vnic-bomb 1.0 can\'t be imported: {cause}')
    assert text.endswith("; upgrade or reinstall vnic-bomb")
    assert "\n" not in text


def test_an_entry_point_that_names_no_class_is_refused(install: Install) -> None:
    install("vnic-wire", {"backends:wire": "wire:Wire"}, wire="Wire = 3")
    with pytest.raises(ConfigError, match=r"wire:Wire is a int, not a class"):
        Registry().load("backends", "wire0")


def test_an_entry_point_that_is_no_reference_is_refused(install: Install) -> None:
    with pytest.raises(ConfigError, match=r'"wire" of d 0\.1 can.t be imported'):
        Registry(
            [Entry(group="backends", prefix="wire", distribution="d", version="0.1", value="a b")]
        ).load("backends", "wire0")


@pytest.mark.parametrize(("abi", "remedy"), [(ABI - 1, "vnic-wire"), (ABI + 1, "vnic")])
def test_a_plugin_built_for_another_burst_says_what_to_upgrade(
    install: Install, abi: int, remedy: str
) -> None:
    install("vnic-wire", {"backends:wire": "wire:Wire"}, wire=GOOD + f"\n        vnic_abi = {abi}")
    with pytest.raises(ConfigError) as caught:
        Registry().load("backends", "wire0")
    assert str(caught.value) == (
        f'backend "wire" of vnic-wire 1.0 was built for version {abi} of the burst\'s layout, '
        f"this vnic has {ABI}; upgrade {remedy}"
    )


def test_a_plugin_built_for_this_burst_loads(install: Install) -> None:
    install("vnic-wire", {"backends:wire": "wire:Wire"}, wire=GOOD + f"\n        vnic_abi = {ABI}")
    assert Registry().load("backends", "wire0").cls.__name__ == "Wire"


def test_a_filters_hooks_are_a_backends(install: Install) -> None:
    install("vnic-wire", {"filters:wire": "wire:Wire"}, wire=GOOD.replace("def recv(", "def rcev("))
    with pytest.raises(ConfigError, match=r'filter "wire" of .*: no hook "recv"'):
        Registry().load("filters", "wire:3")


def test_a_server_that_cannot_serve_is_refused(install: Install) -> None:
    install("vnic-s", {"servers:s": "s:S"}, s="class S:\n    def close(self): ...")
    with pytest.raises(ConfigError, match=r'server "s" of vnic-s 1.0: S has no method serve\(\)'):
        Registry().load("servers", "s")


# ---- hooks against their specs -------------------------------------------------------------------


class Good:
    @hookimpl
    def init(self, name: str, options: object, link: object) -> None: ...

    @hookimpl
    def cleanup(self) -> None: ...

    @hookimpl
    def send(self, burst: list[bytes]) -> int:
        return len(burst)

    @hookimpl
    def recv(self, room: object) -> int:
        return 0


def refusal(cls: type, spec: type = BackendHooks) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        match_hooks(cls, spec, "wire")
    return str(caught.value).splitlines()


def test_all_that_is_wrong_with_a_plugins_hooks_is_told_at_once() -> None:
    class Bad:
        @hookimpl
        def send(self, burts: object) -> int: ...

        @hookimpl
        def recieve_enable(self) -> None: ...

        def recv(self, room: object) -> int: ...

    assert refusal(Bad) == [
        'wire: unknown hook "recieve_enable"; did you mean "recv_enable"?',
        "wire: recv() isn't marked as a hook; put @hookimpl above it",
        'wire: send: no argument "burts" in this hook, which is send(burst)',
        'wire: no hook "init"; needed are init, cleanup, send, recv',
        'wire: no hook "cleanup"; needed are init, cleanup, send, recv',
    ]


def test_a_hook_like_no_other_is_told_which_there_are() -> None:
    class Bad(Good):
        @hookimpl
        def xyzzy(self) -> None: ...

    (line,) = refusal(Bad)
    assert line == (
        'wire: unknown hook "xyzzy"; known: init, cleanup, send, recv, recv_discard, '
        "recv_enable, recv_disable, get_capabilities, set_capabilities"
    )


def test_a_frontend_needs_its_six_hooks() -> None:
    lines = refusal(type("Empty", (), {}), FrontendHooks)
    missing = [line.split('"')[1] for line in lines]
    assert missing == ["init", "cleanup", "reset", "transmit", "receive", "link_changed"]


def test_a_wrapper_is_refused() -> None:
    class Bad(Good):
        @hookimpl(wrapper=True)
        def recv_discard(self) -> object:
            return (yield)

    assert refusal(Bad) == [
        "wire: recv_discard: a hook wrapper has nothing to wrap here; use a filter"
    ]


def test_one_hook_answered_by_two_methods_is_refused() -> None:
    class Bad(Good):
        @hookimpl(specname="send")
        def transmit(self, burst: object) -> int: ...

    assert refusal(Bad) == ["wire: send is answered twice: send() and transmit()"]


def test_a_hook_of_a_later_vnic_may_be_there_if_it_is_marked_optional() -> None:
    class Newer(Good):
        @hookimpl(optionalhook=True)
        def recv_migrate(self) -> None: ...

    assert "recv_migrate" not in match_hooks(Newer, BackendHooks, "wire")


def test_a_property_is_not_evaluated() -> None:
    class Lazy(Good):
        @property
        def not_yet(self) -> int:
            raise AssertionError

    assert resolve_hooks(Lazy(), BackendHooks).recv(None) == 0


# ---- bound functions -----------------------------------------------------------------------------


def test_hooks_are_the_instances_own_bound_methods_and_absent_ones_are_none() -> None:
    backend = Good()
    hooks = resolve_hooks(backend, BackendHooks)
    assert hooks.send == backend.send
    assert hooks.send([b"a", b"b"]) == 2
    assert hooks.recv_discard is None
    assert hooks.set_capabilities is None


def test_a_hook_may_leave_out_arguments_and_order_them_otherwise() -> None:
    class Short(Good):
        @hookimpl
        def init(self, link: object, name: str) -> None:
            self.got = (name, link)

    backend = Short()
    resolve_hooks(backend, BackendHooks).init("wire0", {"mtu": 1500}, "the link")
    assert backend.got == ("wire0", "the link")


def test_an_argument_with_a_default_is_given_all_the_same() -> None:
    class Defaulted(Good):
        @hookimpl
        def init(self, name: str, options: object = None, link: object = None) -> None:
            self.got = (name, options, link)

    backend = Defaulted()
    resolve_hooks(backend, BackendHooks).init("wire0", 1, 2)
    assert backend.got == ("wire0", 1, 2)


def test_a_method_of_another_name_may_answer_a_hook() -> None:
    class Named(Good):
        @hookimpl(specname="recv_discard")
        def flush(self) -> int:
            return 7

    assert resolve_hooks(Named(), BackendHooks).recv_discard() == 7


def test_an_instance_with_wrong_hooks_is_named_by_its_class() -> None:
    with pytest.raises(ConfigError, match=r"Empty: no hook"):
        resolve_hooks(type("Empty", (), {})(), BackendHooks)


def test_a_class_that_is_right_is_looked_at_once_and_a_wrong_one_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Right(Good):
        pass

    class Wrong:
        pass

    looked: list[str] = []
    manager = pluggy.PluginManager
    monkeypatch.setattr(pluggy, "PluginManager", lambda n: looked.append(n) or manager(n))
    backends = [Right(), Right()]
    for backend in backends:
        assert resolve_hooks(backend, BackendHooks).send == backend.send
    assert len(looked) == 1
    for who in ("first", "second"):
        with pytest.raises(ConfigError, match=f"^{who}: no hook"):
            match_hooks(Wrong, BackendHooks, who)


def test_a_class_that_was_looked_at_may_go() -> None:
    gone = weakref.ref(cls := type("Short", (Good,), {}))
    match_hooks(cls, BackendHooks, "short")
    del cls
    gc.collect()
    assert gone() is None


# ---- check: in a process of its own --------------------------------------------------------------


def check(install: Install, source: str) -> str | None:
    install("vnic-wire", {"backends:wire": "wire:Wire"}, wire=source)
    registry = Registry()
    (found,) = (e for e in registry.entries() if e.distribution == "vnic-wire")
    verdict = registry.check(found)
    assert "wire" not in sys.modules
    return verdict


def test_a_plugin_that_loads_passes_the_check_whatever_it_prints(install: Install) -> None:
    assert check(install, "print('hello')" + GOOD.replace("\n    ", "\n")) is None


def test_a_plugin_that_raises_fails_the_check_with_its_cause(install: Install) -> None:
    verdict = check(install, "raise RuntimeError('no licence')")
    assert verdict is not None
    assert "RuntimeError: no licence" in verdict


def test_a_plugin_that_kills_its_process_fails_the_check(install: Install) -> None:
    verdict = check(install, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert verdict == (
        'backend "wire" of vnic-wire 1.0: the process that imported it was killed by SIGSEGV'
    )


def test_a_plugin_that_leaves_in_silence_fails_the_check(install: Install) -> None:
    verdict = check(install, "import os; os._exit(0)")
    assert verdict is not None
    assert verdict.endswith("the process that imported it ended with status 0")
