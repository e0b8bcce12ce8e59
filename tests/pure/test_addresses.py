"""Which addresses may be connected to, and how hosts are spelled."""

from __future__ import annotations

import pytest

from monitoring.addresses import Approval, Approved, normalised, refused, split

PUBLIC = ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
PRIVATE = [
    "127.0.0.1",
    "127.8.9.1",
    "::1",
    "10.0.0.7",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "fd12:3456::1",
    "::ffff:10.0.0.7",
    "::ffff:127.0.0.1",
    "64:ff9b::10.0.0.7",
    "2002:0a00:0007::1",
]
NEVER = [
    "169.254.169.254",
    "169.254.1.1",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "240.0.0.1",
    "255.255.255.255",
    "nonsense",
    "",
]


@pytest.mark.parametrize(
    ("address", "plainly", "with_private"),
    [
        *((address, True, True) for address in PUBLIC),
        *((address, False, True) for address in PRIVATE),
        *((address, False, False) for address in NEVER),
    ],
)
def test_private_addresses_need_their_approval_and_some_have_none(
    address: str, plainly: bool, with_private: bool
) -> None:
    assert (refused(address, allows_private=False) is None) is plainly
    assert (refused(address, allows_private=True) is None) is with_private


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Shop.Example.ORG.", ("shop.example.org", None)),
        ("shop.example.org:9100", ("shop.example.org", 9100)),
        ("http://shop.example.org/metrics", ("shop.example.org", 80)),
        ("https://shop.example.org:8443/x?y", ("shop.example.org", 8443)),
        ("https://[2001:DB8::1]/", ("2001:db8::1", 443)),
        ("[::1]:9090", ("::1", 9090)),
        ("2001:db8::1", ("2001:db8::1", None)),
        ("bücher.example", ("xn--bcher-kva.example", None)),
        ("localhost", ("localhost", None)),
        ("db_1", ("db_1", None)),
    ],
)
def test_one_host_has_one_spelling(text: str, found: tuple[str, int | None]) -> None:
    assert split(text) == found


@pytest.mark.parametrize(
    "text", ["", "ftp://a.example/", "a b", "http://", "http://a.example:99999/", "a/../b c", "-x"]
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (urlsplit's own among them)
        split(text)
    if " " in text or not text:
        with pytest.raises(ValueError, match="not the name or address"):
            normalised(text)


@pytest.mark.parametrize(
    ("host", "port", "found"),
    [
        ("a.example", 80, True),
        ("A.EXAMPLE.", 80, True),
        ("a.example", 443, True),
        ("b.example", 9100, True),
        ("b.example", 80, False),
        ("x.a.example", 80, False),
        ("a.example.evil.test", 80, False),
        ("not a host", 80, False),
    ],
)
def test_an_approval_is_for_its_host_and_port(host: str, port: int, found: bool) -> None:
    approved = Approved.of(Approval("a.example"), [Approval("b.example", 9100)])
    assert (approved.find(host, port) is not None) is found


def test_of_two_approvals_the_wider_counts() -> None:
    approved = Approved.of(Approval("a.example", 80), Approval("a.example", None, allows_private=True))
    found = approved.find("a.example", 80)
    assert found is not None
    assert found.allows_private
