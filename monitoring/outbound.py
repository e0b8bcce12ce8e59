"""The one way out: an HTTP client that reaches approved hosts only, and checks the address it really connects to.

A name may resolve to something else between a check and the connection (DNS rebinding), so the name is resolved here,
each address is checked, and that very address is connected to; TLS is still verified against the name. No proxy, no
redirects, no compressed answers, and a limit on the whole exchange that a dripping answer can't stretch.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import httpcore
import httpx

from monitoring import hosts
from monitoring.addresses import PORTS, Approved, refused

LARGEST_BYTES = 16 * 1024 * 1024
Resolver = Callable[[str, int], Sequence[str]]
SocketOptions = Iterable[tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]]

# Reading the machine's certificates takes longer than a whole collection round; they are read once.
certificates = functools.cache(ssl.create_default_context)


class Refused(httpx.ConnectError):
    """Nothing was sent: the host or its address may not be reached. The message says what to do."""


class TooLarge(httpx.ReadError):
    """The answer is larger than was asked for."""


def open_client(
    *,
    timeout_seconds: float,
    largest_bytes: int = LARGEST_BYTES,
    headers: Mapping[str, str] | None = None,
    approved: Approved | None = None,
    verify: ssl.SSLContext | None = None,
    resolve: Resolver | None = None,
) -> httpx.Client:
    """A client for approved hosts; without `approved` those in the database now, which is asked here and never later.

    `timeout_seconds` is for a whole exchange, from the name's resolution to the last byte. Safe to use from several
    threads. Requests raise httpx.HTTPError: Refused, TooLarge, httpx.TimeoutException and its other kin. No message of
    theirs quotes the other side.
    """
    transport = CheckedTransport(
        approved if approved is not None else hosts.approved(),
        timeout_seconds=timeout_seconds,
        largest_bytes=largest_bytes,
        verify=verify or certificates(),
        resolve=resolve or addresses_of,
    )
    # Compressed answers could grow beyond any limit inside the decoder, after they were counted.
    sent = {"user-agent": "RuneRogue", "accept-encoding": "identity", **(headers or {})}
    return httpx.Client(
        transport=transport, timeout=timeout_seconds, trust_env=False, follow_redirects=False, headers=sent
    )


def addresses_of(host: str, port: int) -> list[str]:
    """The IP addresses of a host as the system resolves it. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class CheckedTransport(httpx.BaseTransport):
    """One connection for each request, so that a deadline belongs to exactly one exchange."""

    def __init__(
        self,
        approved: Approved,
        *,
        timeout_seconds: float,
        largest_bytes: int,
        verify: ssl.SSLContext,
        resolve: Resolver,
    ) -> None:
        self.approved = approved
        self.timeout_seconds = timeout_seconds
        self.largest_bytes = largest_bytes
        self.verify = verify
        self.resolve = resolve

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        if url.scheme not in PORTS:
            raise httpx.UnsupportedProtocol(f"{url.scheme}:// is not http:// or https://.", request=request)
        deadline = time.monotonic() + self.timeout_seconds
        asked = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port or PORTS[url.scheme], target=url.raw_path
        )
        connection = httpcore.HTTPConnection(
            asked.origin,
            ssl_context=self.verify,
            keepalive_expiry=0,
            network_backend=_Backend(self.approved, deadline, self.resolve),
        )
        assert isinstance(request.stream, httpx.SyncByteStream)
        try:
            with _in_words():
                answer = connection.handle_request(
                    httpcore.Request(
                        method=request.method,
                        url=asked,
                        headers=request.headers.raw,
                        content=request.stream,
                        extensions=request.extensions,
                    )
                )
            kept = httpx.Response(
                answer.status,
                headers=answer.headers,
                stream=_Body(connection, answer, deadline, self.largest_bytes),
                extensions={"http_version": answer.extensions.get("http_version", b"HTTP/1.1")},
            )
            if kept.headers.get("content-encoding", "identity").lower() != "identity":
                raise httpx.DecodingError("It answered compressed although plain text was asked for.")
        except BaseException:
            connection.close()
            raise
        return kept


class _Backend(httpcore.NetworkBackend):
    """Opens the connection of one exchange, to an address that was checked."""

    def __init__(self, approved: Approved, deadline: float, resolve: Resolver) -> None:
        self.approved = approved
        self.deadline = deadline
        self.resolve = resolve

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions | None = None,
    ) -> httpcore.NetworkStream:
        approval = self.approved.find(host, port)
        if approval is None:
            raise Refused(
                f"{host}:{port} is not an approved host. Approve it in the admin under External services, or with "
                f"`manage.py approve_host {host}:{port} --because …`."
            )
        reasons: list[str] = []
        failure: Exception | None = None
        for address in self._addresses(host, port):
            if reason := refused(address, allows_private=approval.allows_private):
                reasons.append(reason)
                continue
            try:
                stream = httpcore.SyncBackend().connect_tcp(
                    address, port, _left(self.deadline, timeout), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            return _Stream(stream, self.deadline)
        if failure is not None:
            raise failure
        if not reasons:
            raise Refused(f"The name {host} has no address.")
        hint = "" if approval.allows_private else " An approval that allows private addresses would be needed."
        raise Refused(f"{host} is not reached: {'; '.join(reasons[:3])}.{hint}")

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: SocketOptions | None = None
    ) -> httpcore.NetworkStream:
        raise Refused("Sockets of this machine are not reached over HTTP.")

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, _left(self.deadline)))

    def _addresses(self, host: str, port: int) -> Sequence[str]:
        """Resolved in a thread of its own: the system's resolver knows no deadline and may take minutes."""
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host.strip("[]")))]
        answers: queue.Queue[Sequence[str] | OSError] = queue.Queue()

        def ask() -> None:
            try:
                answers.put(self.resolve(host, port))
            except OSError as error:
                answers.put(error)
            except UnicodeError as error:  # a label too long for the resolver's encoding
                answers.put(OSError(str(error)))

        threading.Thread(target=ask, name="resolve", daemon=True).start()
        try:
            found = answers.get(timeout=_left(self.deadline))
        except queue.Empty as error:
            raise httpcore.ConnectTimeout from error
        if isinstance(found, OSError):
            raise Refused(f"The name {host} can't be resolved.") from found
        return found


class _Stream(httpcore.NetworkStream):
    """A connection whose every read and write ends with the exchange's deadline."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self.inner = inner
        self.deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.inner.read(max_bytes, _left(self.deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.inner.write(buffer, _left(self.deadline, timeout))

    def close(self) -> None:
        self.inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self.inner.start_tls(ssl_context, server_hostname, _left(self.deadline, timeout)), self.deadline)

    def get_extra_info(self, info: str) -> object:
        return self.inner.get_extra_info(info)


class _Body(httpx.SyncByteStream):
    """The answer's bytes, as many as were allowed; closing it closes the connection."""

    def __init__(
        self, connection: httpcore.HTTPConnection, answer: httpcore.Response, deadline: float, largest_bytes: int
    ) -> None:
        self.connection = connection
        self.answer = answer
        self.deadline = deadline
        self.largest_bytes = largest_bytes

    def __iter__(self) -> Iterator[bytes]:
        seen = 0
        assert isinstance(self.answer.stream, Iterable)
        with _in_words():
            for part in self.answer.stream:
                seen += len(part)
                if seen > self.largest_bytes:
                    raise TooLarge(f"The answer is larger than {self.largest_bytes:,} bytes.")
                yield part
                _left(self.deadline)  # many small parts in one read need no further wait

    def close(self) -> None:
        with _in_words():
            self.answer.close()
            self.connection.close()


def _left(deadline: float, timeout: float | None = None) -> float:
    """The seconds until `deadline`, at most `timeout`. Raises httpcore.ReadTimeout when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left if timeout is None else min(left, timeout)


class _in_words:  # noqa: N801 (used as a statement: `with _in_words():`)
    """httpcore's errors as httpx's. Texts of the other side stay out of them: they end in rows and logs."""

    KNOWN: Sequence[tuple[type[Exception], type[httpx.TransportError], str]] = (
        (httpcore.ConnectTimeout, httpx.ConnectTimeout, "It took too long to connect."),
        (httpcore.WriteTimeout, httpx.WriteTimeout, "It took too long to send."),
        (httpcore.TimeoutException, httpx.ReadTimeout, "It took too long to answer."),
        (httpcore.ConnectError, httpx.ConnectError, ""),  # the system's or OpenSSL's own words
        (httpcore.ProtocolError, httpx.RemoteProtocolError, "The answer is not HTTP."),
        (httpcore.WriteError, httpx.WriteError, "The connection was closed."),
        (httpcore.NetworkError, httpx.ReadError, "The connection was closed."),
    )

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for known, becomes, words in self.KNOWN:
            if isinstance(error, known):
                raise becomes(words or str(error)[:200]) from error
