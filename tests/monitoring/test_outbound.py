"""The one way out against real servers on loopback that lie, drip and redirect."""

from __future__ import annotations

import contextlib
import shlex
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from pytest_django.fixtures import DjangoAssertNumQueries

from monitoring import outbound
from monitoring.addresses import Approval, Approved
from monitoring.outbound import Refused, TooLarge, open_client

HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
SECRET = "jane.doe@example.org"


def answer(body: bytes, *more: bytes) -> bytes:
    return HEADERS + b"".join(line + b"\r\n" for line in more) + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Server:
    """Answers each path with fixed bytes, piece by piece, and remembers what it was asked."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.context = context
        self.asked: list[str] = []
        self.answers: dict[str, list[bytes]] = {}
        self.pause_seconds = 0.0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=(self.listener.accept()[0],), daemon=True).start()

    def _answer(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:
            connection = self.context.wrap_socket(plain, server_side=True) if self.context else plain
            with connection:
                request = connection.recv(65536).decode()
                path = request.split(" ")[1] if " " in request else ""
                self.asked.append(request)
                for piece in self.answers.get(path, [answer(b"hello")]):
                    connection.sendall(piece)
                    time.sleep(self.pause_seconds)

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def resolving(**names: list[str]) -> Callable[[str, int], list[str]]:
    return lambda host, port: names.get(host.split(".")[0], [host])


PRIVATE = Approved.of(
    Approval("127.0.0.1", None, allows_private=True), Approval("shop.test", None, allows_private=True)
)


def test_an_approved_host_answers(server: Server) -> None:
    with open_client(timeout_seconds=5, approved=PRIVATE) as client:
        found = client.get(f"http://127.0.0.1:{server.port}/metrics?a=b")
    assert (found.status_code, found.text) == (200, "hello")
    assert server.asked[0].startswith("GET /metrics?a=b HTTP/1.1\r\n")
    assert "accept-encoding: identity" in server.asked[0].lower()


def test_a_body_is_sent(server: Server) -> None:
    with open_client(timeout_seconds=5, approved=PRIVATE) as client:
        assert client.post(f"http://127.0.0.1:{server.port}/hook", json={"a": 1}).status_code == 200
    assert "POST /hook" in server.asked[0]


@pytest.mark.parametrize(
    ("host", "approval", "leads_to", "says"),
    [
        ("127.0.0.1", None, [], "not an approved host"),
        ("127.0.0.1", Approval("127.0.0.1"), [], "is loopback. An approval that allows private"),
        ("shop.test", Approval("shop.test"), ["127.0.0.1"], "127.0.0.1 is loopback"),
        ("shop.test", Approval("shop.test"), ["::ffff:127.0.0.1"], "127.0.0.1 is loopback"),
        (
            "shop.test",
            Approval("shop.test"),
            ["10.0.0.7", "192.168.0.1"],
            "10.0.0.7 is private; 192.168.0.1 is private",
        ),
        ("shop.test", Approval("shop.test", None, True), ["169.254.169.254"], "where clouds keep credentials"),
        ("shop.test", Approval("shop.test", None, True), ["224.0.0.1"], "multicast"),
        ("shop.test", Approval("shop.test", None, True), [], "has no address"),
        ("shop.test", Approval("shop.test", 1, True), ["127.0.0.1"], "not an approved host"),
        ("2130706433", Approval("127.0.0.1", None, True), ["127.0.0.1"], "not an approved host"),
        ("127.1", Approval("127.0.0.1", None, True), ["127.0.0.1"], "not an approved host"),
    ],
)
def test_nothing_reaches_what_was_not_approved(
    server: Server, host: str, approval: Approval | None, leads_to: list[str], says: str
) -> None:
    approved = Approved.of(approval) if approval else Approved()
    with open_client(
        timeout_seconds=5, approved=approved, resolve=lambda name, port: leads_to or ([host] if host[0] == "1" else [])
    ) as client:
        with pytest.raises(Refused, match=says):
            client.get(f"http://{host}:{server.port}/")
    assert server.asked == []


def test_the_address_that_was_checked_is_the_one_that_is_reached(server: Server) -> None:
    """A name that leads somewhere else when it is asked a second time gains nothing: it is asked once."""
    calls: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        calls.append(host)
        return ["127.0.0.1"] if len(calls) == 1 else ["169.254.169.254"]

    with open_client(timeout_seconds=5, approved=PRIVATE, resolve=rebinding) as client:
        assert client.get(f"http://shop.test:{server.port}/").text == "hello"
        assert calls == ["shop.test"]
        with pytest.raises(Refused, match="credentials"):
            client.get(f"http://shop.test:{server.port}/")
    assert "host: shop.test" in server.asked[0].lower()


def test_a_bad_address_among_good_ones_is_passed_over(server: Server) -> None:
    with open_client(
        timeout_seconds=5, approved=PRIVATE, resolve=resolving(shop=["169.254.169.254", "127.0.0.1"])
    ) as client:
        assert client.get(f"http://shop.test:{server.port}/").status_code == 200


def test_a_redirect_is_an_answer_and_not_followed(server: Server) -> None:
    server.answers["/"] = [b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"]
    with open_client(timeout_seconds=5, approved=PRIVATE) as client:
        assert client.get(f"http://127.0.0.1:{server.port}/").status_code == 302
        with pytest.raises(Refused, match="not an approved host"):
            client.get(f"http://127.0.0.1:{server.port}/", follow_redirects=True)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/", "unix:///run/x.sock"])
def test_only_http_goes_out(url: str) -> None:
    with open_client(timeout_seconds=1, approved=PRIVATE) as client, pytest.raises(httpx.UnsupportedProtocol):
        client.get(url)


def test_the_environment_names_no_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with open_client(timeout_seconds=5, approved=PRIVATE) as client:
        assert client.get(f"http://127.0.0.1:{server.port}/").status_code == 200


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([answer(b"x" * 2000)], TooLarge),
        ([HEADERS + b"Transfer-Encoding: chunked\r\n\r\n", *[b"64\r\n" + b"x" * 100 + b"\r\n"] * 20], TooLarge),
        ([answer(b"x", b"Content-Encoding: gzip")], httpx.DecodingError),
        ([f"SSH-2.0 {SECRET}\r\n".encode()], httpx.RemoteProtocolError),
        ([f"HTTP/1.1 200 OK\r\n{SECRET}\r\n\r\n".encode()], httpx.RemoteProtocolError),
        ([b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000 + b"\r\n\r\n"], httpx.RemoteProtocolError),
        ([b""], httpx.RemoteProtocolError),
        ([HEADERS + b"Content-Length: 10\r\n\r\nhalf"], httpx.RemoteProtocolError),
    ],
)
def test_a_bad_answer_is_an_error_that_quotes_nothing(
    server: Server, pieces: list[bytes], error: type[Exception]
) -> None:
    server.answers["/"] = pieces
    with open_client(timeout_seconds=5, largest_bytes=1000, approved=PRIVATE) as client:
        with pytest.raises(error) as found:
            client.get(f"http://127.0.0.1:{server.port}/")
    assert SECRET not in str(found.value)


@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 200 OK\r\n", HEADERS + b"Content-Length: 100\r\n\r\n"], ids=["start", "headers", "body"]
)
def test_what_drips_ends_with_the_deadline(server: Server, first: bytes) -> None:
    server.pause_seconds = 0.04  # every single read is quick
    server.answers["/"] = [first, *[b"H" if not first else b"x"] * 60]
    with open_client(timeout_seconds=0.25, approved=PRIVATE) as client, pytest.raises(httpx.TimeoutException):
        client.get(f"http://127.0.0.1:{server.port}/")


def test_a_resolver_that_hangs_ends_with_the_deadline() -> None:
    never = threading.Event()
    with open_client(timeout_seconds=0.1, approved=PRIVATE, resolve=lambda host, port: [str(never.wait(5))]) as client:
        with pytest.raises(httpx.ConnectTimeout):
            client.get("http://shop.test/")
    never.set()


def test_a_name_that_leads_nowhere_is_said_so() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    with open_client(timeout_seconds=1, approved=PRIVATE, resolve=unknown) as client:
        with pytest.raises(Refused, match=r"shop\.test can't be resolved"):
            client.get("http://shop.test/")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for shop.test, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        shlex.split(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem "
            "-days 2 -subj /CN=shop.test -addext subjectAltName=DNS:shop.test"
        ),
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=30,
    )
    return folder


@pytest.mark.parametrize(
    ("host", "trusted", "works"), [("shop", True, True), ("other", True, False), ("shop", False, False)]
)
def test_tls_is_verified_against_the_name_and_not_the_address(
    certificate: Path, host: str, trusted: bool, works: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server = Server(context)
    verify = ssl.create_default_context(cafile=str(certificate / "cert.pem")) if trusted else outbound.certificates()
    approved = Approved.of(Approval(f"{host}.test", server.port, allows_private=True))
    with open_client(
        timeout_seconds=5, approved=approved, verify=verify, resolve=lambda name, port: ["127.0.0.1"]
    ) as client:
        if works:
            assert client.get(f"https://{host}.test:{server.port}/").text == "hello"
        else:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                client.get(f"https://{host}.test:{server.port}/")
    server.close()


def test_without_a_list_the_database_is_asked_once(db: None, django_assert_num_queries: DjangoAssertNumQueries) -> None:
    with django_assert_num_queries(2):
        client = open_client(timeout_seconds=1)
    with client, pytest.raises(Refused, match=r"manage\.py approve_host shop\.test:80"):
        client.get("http://shop.test/")
