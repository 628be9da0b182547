"""What users write, read into attrs objects; what they write wrong, told with the remedy."""

from __future__ import annotations

import string
from pathlib import Path

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from vnic.config import (
    NicConfig,
    ServerConfig,
    boolean,
    choice,
    default_mac,
    integer,
    load_toml,
    mac,
    mtu,
    parse_nic,
    path,
    structure,
    text,
)
from vnic.errors import ConfigError

# ---- a NIC's spec --------------------------------------------------------------------------------


def test_a_spec_names_frontend_and_backend_and_gives_options() -> None:
    config = parse_nic("virtio-net,vale0:1,mac=52:54:00:01:02:03,mtu=9000")
    assert config == NicConfig(
        name="virtio-net-vale0:1",
        frontend="virtio-net",
        backend="vale0:1",
        options={"mac": "52:54:00:01:02:03", "mtu": "9000"},
    )


def test_name_type_and_filters_are_the_nics_own() -> None:
    config = parse_nic("e1000,eth9,filter=capture:/tmp/x.pcap,type=vnic-tap:tap,filter=rate,name=w")
    assert config.filters == ("capture:/tmp/x.pcap", "rate")
    assert (config.name, config.type, config.options) == ("w", "vnic-tap:tap", {})


def test_blanks_around_names_are_no_part_of_them() -> None:
    assert parse_nic("virtio-net, tap0, mtu=9000") == parse_nic("virtio-net,tap0,mtu=9000")


def test_an_underscore_in_a_key_is_a_dash() -> None:
    assert parse_nic("e1000,tap0,rx_size=1").options == {"rx-size": "1"}


def test_a_comma_in_a_value_is_written_twice() -> None:
    assert parse_nic("e1000,tap0,script=a,,b,mtu=9000").options == {"script": "a,b", "mtu": "9000"}


def test_a_value_may_hold_an_equals_sign() -> None:
    assert parse_nic("e1000,tap0,key=a=b").options == {"key": "a=b"}


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("", "no frontend; write FRONTEND,BACKEND[,KEY=VALUE...], as in"),
        ("virtio-net", "no backend; write FRONTEND,BACKEND[,KEY=VALUE...], as in"),
        ("virtio-net,,mtu=9000", "no backend; write"),
        (",tap0", "no frontend; write"),
        ("mtu=9000,tap0", "it begins with an option; write"),
        ("virtio-net,tap0,mtu", 'option "mtu" has no value; write mtu=VALUE'),
        ("virtio-net,tap0,", "an option is empty; leave out the comma before it"),
        ("virtio-net,tap0,=3", '"" is no key; keys are of a-z, 0-9 and dashes'),
        ("virtio-net,tap0,MTU=3", '"MTU" is no key; keys are of a-z, 0-9 and dashes'),
        ("virtio-net,tap0,mtu=1,mtu=2", "option mtu is given twice, 1 and 2; keep one"),
        ("virtio-net,tap0,filter=", "option filter is empty; give a value, or leave it out"),
        ("virtio-net,tap0,name=", "option name is empty; give a value, or leave it out"),
        ("virtio-net,tap\n0", "it has characters that can't be printed; leave them out"),
    ],
)
def test_a_wrong_spec_is_told_what_is_wrong_with_it(spec: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_nic(spec)
    shown = f'"{spec}"' if spec.isprintable() else ascii(spec)
    assert str(caught.value).startswith(f"{shown}: {problem}")


def test_all_that_is_wrong_with_a_spec_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_nic("virtio-net,tap0,mtu,mac=1,mac=2")
    assert len(str(caught.value).splitlines()) == 2


@given(st.text() | st.text(alphabet="ab0:=,-_ "))
@example("a,b,\ud800=1")
def test_any_text_is_a_nic_or_a_config_error(spec: str) -> None:
    try:
        config = parse_nic(spec)
    except ConfigError:
        return
    assert parse_nic(str(config)) == config


names = st.text(alphabet=string.ascii_letters + string.digits + ":^@{}/.-", min_size=1)
keys = st.from_regex(r"[a-z][a-z0-9-]*", fullmatch=True)
printable = st.text(alphabet=st.characters(categories=["L", "N", "P", "S"]), min_size=1)
nics = st.builds(
    NicConfig,
    frontend=names,
    backend=names,
    name=printable,
    options=st.dictionaries(keys.filter(lambda k: k not in ("name", "type", "filter")), printable),
    filters=st.lists(printable).map(tuple),
    type=st.none() | printable,
)


@given(nics)
def test_any_nic_reads_back_from_its_text(config: NicConfig) -> None:
    assert parse_nic(str(config)) == config


MULTICAST = "a multicast address, which no NIC can have"


# ---- options shared by several takers ------------------------------------------------------------


@attrs.frozen(kw_only=True)
class FrontendOptions:
    mtu: int = attrs.field(default=1500, converter=mtu)
    mac: bytes | None = attrs.field(default=None, converter=attrs.converters.optional(mac))


@attrs.frozen(kw_only=True)
class BackendOptions:
    mtu: int | None = attrs.field(default=None, converter=attrs.converters.optional(mtu))
    keep_it: bool = attrs.field(default=False, converter=boolean)


@attrs.frozen(kw_only=True)
class ServerOptions:
    path: Path = attrs.field(converter=path)
    mode: str = attrs.field(default="server", converter=choice("server", "client"))
    label: str = "none"


def refused(options: dict[str, object], *classes: type | None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        structure(options, "web", *classes)
    return str(caught.value).splitlines()


def test_each_takes_its_own_keys_and_one_key_may_serve_both() -> None:
    front, none, back = structure(
        {"mtu": "9000", "keep-it": "on"}, "web", FrontendOptions, None, BackendOptions
    )
    assert front == FrontendOptions(mtu=9000)
    assert none is None
    assert back == BackendOptions(mtu=9000, keep_it=True)


def test_toml_types_do_as_well_as_text() -> None:
    assert structure({"mtu": 9000, "keep_it": True}, "web", BackendOptions) == (
        BackendOptions(mtu=9000, keep_it=True),
    )


def test_a_key_that_nobody_takes_is_told_what_was_meant() -> None:
    assert refused({"keepit": "on"}, FrontendOptions, BackendOptions) == [
        'web: unknown option "keepit"; it takes: keep-it, mac, mtu; did you mean "keep-it"?'
    ]


def test_plugins_without_options_take_none() -> None:
    assert refused({"mtu": "1"}, None) == ['web: unknown option "mtu"; it takes none']


def test_all_that_is_wrong_with_options_is_told_at_once_and_once_each() -> None:
    options: dict[str, object] = {"mtu": "9", "mac": "01:00:00:00:00:00", "tso": "on"}
    assert refused(options, FrontendOptions, BackendOptions) == [
        'web: unknown option "tso"; it takes: keep-it, mac, mtu',
        "web: mtu=9: out of range; give 68 to 65535",
        f"web: mac=01:00:00:00:00:00: {MULTICAST}; take 02:00:00:00:00:00",
    ]


def test_a_key_spelt_both_ways_is_given_twice() -> None:
    assert refused({"keep-it": "on", "keep_it": "on"}, BackendOptions) == [
        'web: option "keep-it" is given twice; keep one'
    ]


def test_an_option_that_has_to_be_there_is_asked_for() -> None:
    assert refused({}, ServerOptions) == ['web: option "path" is missing; add path=...']


def test_a_field_without_a_converter_takes_text_only() -> None:
    assert refused({"path": "/x", "label": True}, ServerOptions) == [
        "web: label=true: text is needed; put it in quotes"
    ]


def test_what_a_validator_refuses_is_a_config_error() -> None:
    @attrs.frozen(kw_only=True)
    class Options:
        low: int = attrs.field(converter=integer())
        high: int = attrs.field(converter=integer())

        def __attrs_post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low is above high; swap them")

    assert refused({"low": "3", "high": "2"}, Options) == ["web: low is above high; swap them"]


# ---- converters ----------------------------------------------------------------------------------


def test_a_mac_is_six_bytes_with_colons_or_dashes() -> None:
    assert mac("52:54:00:01:02:FF") == mac("52-54-00-01-02-ff") == b"\x52\x54\x00\x01\x02\xff"
    assert mac(b"\x52\x54\x00\x01\x02\xff") == b"\x52\x54\x00\x01\x02\xff"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("52:54:00:01:02", "not a MAC address; write six bytes, as in 52:54:00:01:02:03"),
        ("52:54:00:01:02:03:04", "not a MAC address"),
        ("52:54-00:01:02:03", "not a MAC address"),
        ("5:54:00:01:02:03", "not a MAC address"),
        ("52:54:00:01:02:0g", "not a MAC address"),
        ("52:54:00:01:02:03\n", "not a MAC address"),
        (525400010203, "not a MAC address"),
        ("33:33:00:00:00:01", "a multicast address.* take 32:33:00:00:00:01"),
        ("ff:ff:ff:ff:ff:ff", "a multicast address.* take fe:ff:ff:ff:ff:ff"),
        ("00:00:00:00:00:00", "all zero; leave it out"),
    ],
)
def test_a_mac_that_no_nic_can_have_is_refused(value: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        mac(value)


@given(st.text())
def test_the_mac_made_from_a_name_is_one_that_a_user_could_give(name: str) -> None:
    address = default_mac(name)
    assert mac(address.hex(":")) == address == default_mac(name)
    assert address[0] & 0b11 == 0b10, "locally administered, unicast"


def test_the_mac_made_from_a_name_is_the_same_in_every_version() -> None:
    assert default_mac("virtio-net-tap0").hex(":") == "4a:64:19:3d:19:52"


@pytest.mark.parametrize("value", ["68", "65535", 1500, "0x5dc"])
def test_an_mtu_is_68_to_65535(value: object) -> None:
    assert 68 <= mtu(value) <= 65535


@pytest.mark.parametrize("value", ["67", 65536, "-1", "9k", "", True, 1.5, None])
def test_an_mtu_that_no_link_has_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"; (give 68 to 65535|write one)"):
        mtu(value)


def test_an_integer_may_be_bounded_on_one_side() -> None:
    with pytest.raises(ValueError, match="too small; give 1 or more"):
        integer(min=1)("0")
    with pytest.raises(ValueError, match="too large; give 9 or less"):
        integer(max=9)("10")


def test_a_boolean_is_said_in_any_of_eight_words() -> None:
    assert all(map(boolean, ["on", "yes", "true", "1", "ON", True, 1]))
    assert not any(map(boolean, ["off", "no", "false", "0", "False", False, 0]))
    with pytest.raises(ValueError, match="write on or off"):
        boolean("maybe")


def test_a_choice_nearly_right_is_told_what_was_meant() -> None:
    with pytest.raises(ValueError, match='give server or client; did you mean "client"'):
        choice("server", "client")("clinet")


def test_text_and_paths_are_not_empty() -> None:
    for convert in (text, path):
        with pytest.raises(ValueError, match="it's empty"):
            convert("")


def test_a_path_may_begin_at_home() -> None:
    assert path("~/web.sock") == Path.home() / "web.sock"


# ---- files ---------------------------------------------------------------------------------------


def load(tmp_path: Path, source: str) -> tuple[NicConfig, ...]:
    file = tmp_path / "net.toml"
    file.write_text(source)
    return load_toml(file, ["vhost-user", "vfio-user"]).nics


def problems(tmp_path: Path, source: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, source)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def test_a_file_holds_any_number_of_nics_and_patches(tmp_path: Path) -> None:
    file = tmp_path / "net.toml"
    file.write_text(
        """
        [[nic]]
        name = "web"
        frontend = "virtio-net"
        backend = "vale0:1"
        mtu = 9000
        rx_merge = true
        filters = ["capture:/tmp/x.pcap", "rate:10M"]
        type = "vnic-netmap:vale"
        vhost-user = "/run/web.sock"

        [[nic]]
        frontend = "e1000"
        backend = "tap0"
        vfio-user = { path = "/run/b.sock", mode = "client" }

        [[patch]]
        between = ["vale0:up", "tap1"]
        """
    )
    config = load_toml(file, ["vhost-user", "vfio-user"])
    web, other = config.nics
    assert web == NicConfig(
        name="web",
        frontend="virtio-net",
        backend="vale0:1",
        options={"mtu": 9000, "rx-merge": True},
        filters=("capture:/tmp/x.pcap", "rate:10M"),
        type="vnic-netmap:vale",
        server=ServerConfig(prefix="vhost-user", options={"path": "/run/web.sock"}),
    )
    assert web.where == f'{file}: [[nic]] 1 "web"'
    assert other.name == "e1000-tap0"
    assert other.server == ServerConfig(
        prefix="vfio-user", options={"path": "/run/b.sock", "mode": "client"}
    )
    assert config.patches == (("vale0:up", "tap1"),)


def test_a_nic_may_do_without_a_server(tmp_path: Path) -> None:
    (nic,) = load(tmp_path, '[[nic]]\nfrontend = "e1000"\nbackend = "tap0"')
    assert nic.server is None


NIC = '[[nic]]\nfrontend = "e1000"\nbackend = "tap0"\n'


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "nothing to run; add a [[nic]] or a [[patch]]"),
        ("[[nic]", "not TOML: Expected"),
        ('[nic]\nfrontend = "e1000"', "nic: there may be several; write [[nic]], in double"),
        ("nic = 3", "nic: there may be several; write [[nic]], in double brackets"),
        (
            f"[[nics]]\n{NIC}",
            'unknown table "nics"; a file has [[nic]], [[patch]]; did you mean "n',
        ),
        ('[[nic]]\nfrontend = "e1000"', '[[nic]] 1: no backend; add backend = "..."'),
        (
            '[[nic]]\nfronted = "e1000"\nbackend = "tap0"',
            '[[nic]] 1: no frontend; add frontend = "..."; or is it "fronted", misspelt?',
        ),
        (f"{NIC}name = 3", "[[nic]] 1: name = 3: write a text, in quotes and not empty"),
        (f'{NIC}name = "a\\nb"', "[[nic]] 1: name = 'a\\nb': write a text, in quotes"),
        (f'{NIC}filters = "rate"', "[[nic]] 1: filters = 'rate': write texts, as in ["),
        (f'{NIC}filter = "rate"', "[[nic]] 1: filter: an array in a file, filters = ['rate']"),
        (f"{NIC}mtu = [9000]", "[[nic]] 1: mtu = [9000]: write a text, a number, true or false"),
        (f"{NIC}a-b = 1\na_b = 1", "[[nic]] 1: a-b is given twice, with dashes and with under"),
        (
            f'{NIC}vhost-usr = {{ path = "/x" }}',
            '[[nic]] 1: no server "vhost-usr"; installed: vfio-user, vhost-user; did you mean "v',
        ),
        (
            f'{NIC}vhost-user = "/x"\nvfio-user = "/y"',
            "[[nic]] 1: vhost-user and vfio-user: a NIC has one server; keep one of them",
        ),
        (
            f"{NIC}vhost-user = []",
            "[[nic]] 1: vhost-user: path = []: write a text, a number, true or false",
        ),
        (f"{NIC}{NIC}", '[[nic]] 2: [[nic]] 1 has the name "e1000-tap0" too; change one'),
        ('[[patch]]\nbetwen = ["a", "b"]', '[[patch]] 1: unknown key "betwen"; a patch has betw'),
        ('[[patch]]\nbetween = ["a"]', "[[patch]] 1: write two backends, as in between = ["),
        ('[[patch]]\nbetween = "a"', "[[patch]] 1: write two backends, as in between = ["),
        ('[[patch]]\nbetween = ["a", "a"]', "[[patch]] 1: between: both are 'a'; name two back"),
    ],
)
def test_a_wrong_file_is_told_file_table_and_key(tmp_path: Path, source: str, problem: str) -> None:
    assert problems(tmp_path, source)[0].startswith(f"net.toml: {problem}")


def test_all_that_is_wrong_with_a_file_is_told_at_once(tmp_path: Path) -> None:
    source = f"[nick]\n{NIC}mtu = []\nname = 3\n[[nic]]\n[[patch]]\n"
    assert [line.split(": ", 2)[1:] for line in problems(tmp_path, source)] == [
        ['unknown table "nick"; a file has [[nic]], [[patch]]; did you mean "nic"?'],
        ["[[nic]] 1", "name = 3: write a text, in quotes and not empty"],
        ["[[nic]] 1", "mtu = []: write a text, a number, true or false"],
        ["[[nic]] 2", 'no frontend; add frontend = "..."'],
        ["[[nic]] 2", 'no backend; add backend = "..."'],
        ["[[patch]] 1", 'write two backends, as in between = ["vale0:up", "tap0"]'],
    ]


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: cannot read it: No such file or directory"):
        load_toml(tmp_path / "no.toml", [])
    with pytest.raises(ConfigError, match="cannot read it: Is a directory"):
        load_toml(tmp_path, [])


def test_a_file_that_is_not_utf8_says_where(tmp_path: Path) -> None:
    file = tmp_path / "net.toml"
    file.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="not UTF-8 at byte 8; save it as UTF-8"):
        load_toml(file, [])
