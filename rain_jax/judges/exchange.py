"""One request over HTTP within a deadline, whatever the server does.

An exchange runs in a thread of its own: name lookup, connection, headers, `100 Continue` and body
all count towards the deadline, and whoever waits can be asked to stop meanwhile. The connection is
then shut down, which ends the thread.
"""

import base64
import contextlib
import dataclasses
import http.client
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping

from rain_jax.types import DataError, Stopped

LARGEST = 1 << 20  # bytes of a reply
_POLL = 0.2  # seconds between two looks at whether to stop
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class Reply:
  """What a server answered.

  Attributes:
    status: of HTTP.
    retry_after: that header, "" if it is not there.
    data: the body, `LARGEST` bytes and one more at most.
  """

  status: int
  retry_after: str
  data: bytes


@dataclasses.dataclass(frozen=True)
class Address:
  """Where requests go; made by `parse_address`.

  Attributes:
    secure: by https.
    host: its name or number.
    port: its port.
    path: of the address, without a slash at its end.
  """

  secure: bool
  host: str
  port: int
  path: str

  @property
  def local(self) -> bool:
    """Whether it is this machine."""
    return self.host in _LOCAL

  def connection(self, seconds: float) -> http.client.HTTPConnection:
    """A connection that is not open yet.

    What is encrypted goes through the proxy in the environment, if there is one for it, by a tunnel
    that reads nothing of it. What is not goes straight to the server.

    Raises:
      DataError: a proxy of another kind.
    """
    if not self.secure:
      return http.client.HTTPConnection(self.host, self.port, timeout=seconds)
    proxy = urllib.request.getproxies().get("https")
    if not proxy or urllib.request.proxy_bypass(f"{self.host}:{self.port}"):
      return http.client.HTTPSConnection(self.host, self.port, timeout=seconds)
    try:
      through = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
      host, port = through.hostname, through.port or http.client.HTTP_PORT
    except ValueError:
      host = None
    if not host or through.scheme != "http":
      raise DataError("https_proxy: expected http://HOST:PORT; unset it to ask without a proxy.")
    connection = http.client.HTTPSConnection(host, port, timeout=seconds)
    headers = {}
    if through.username:
      said = f"{through.username}:{through.password or ''}"
      token = base64.b64encode(urllib.parse.unquote(said).encode()).decode()
      headers["Proxy-Authorization"] = f"Basic {token}"
    connection.set_tunnel(self.host, self.port, headers)
    return connection


def parse_address(url: str, name: str) -> Address:
  """The address in a URL; `name` stands for it in messages, which never show what may be secret.

  Raises:
    DataError: it is no plain http or https URL.
  """
  wanted = f"{name}: expected http(s)://HOST[:PORT]/v1"
  try:
    parts = urllib.parse.urlsplit(url)
    port = parts.port
  except ValueError as error:
    raise DataError(f"{wanted} ({error}).") from None
  if "@" in url:
    raise DataError(f"{wanted} without a user or password in it; keys go into endpoint.key.")
  if parts.query or parts.fragment:
    raise DataError(f"{wanted} without ? or #; keys go into endpoint.key.")
  plain = url.isascii() and url.isprintable() and " " not in url
  if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
    raise DataError(f"{wanted}, found {url!r:.80}.")
  secure = parts.scheme == "https"
  usual = http.client.HTTPS_PORT if secure else http.client.HTTP_PORT
  return Address(secure, parts.hostname, port or usual, parts.path.rstrip("/"))


class _Exchange(threading.Thread):
  """Sends a request and reads the reply, into `reply` or `error`."""

  def __init__(self, connection: http.client.HTTPConnection, path: str, body: bytes, headers):
    super().__init__(daemon=True)
    self._connection, self._request = connection, ("POST", path, body, dict(headers))
    self._socket: socket.socket | None = None
    self.reply: Reply | None = None
    self.error: Exception | None = None

  def run(self) -> None:
    try:
      self._connection.connect()
      self._socket = self._connection.sock
      self._connection.request(*self._request)
      answer = self._connection.getresponse()
      data = answer.read(LARGEST + 1)
      self.reply = Reply(answer.status, answer.headers.get("Retry-After", ""), data)
    except Exception as error:  # of whatever kind, it is for the one who waits
      self.error = error
    finally:
      self._connection.close()

  def hang_up(self) -> None:
    """Ends the thread, which may be waiting for the server."""
    for one in (self._socket, self._connection.sock):
      if one is not None:
        with contextlib.suppress(OSError):
          one.shutdown(socket.SHUT_RDWR)


def post(
  address: Address,
  path: str,
  body: bytes,
  headers: Mapping[str, str],
  seconds: float,
  stopping: Callable[[], bool],
) -> Reply:
  """Sends a request and waits for the whole reply; redirections are not followed.

  Args:
    address: of the server.
    path: after the address's own.
    body: of the request.
    headers: of the request.
    seconds: for everything.
    stopping: asked while it waits.

  Raises:
    Stopped: as asked.
    TimeoutError: no whole reply in time.
    OSError, http.client.HTTPException: no connection, or no HTTP.
    DataError: see `Address.connection`.
  """
  exchange = _Exchange(address.connection(seconds), address.path + path, body, headers)
  end = time.monotonic() + seconds
  exchange.start()
  try:
    while exchange.is_alive() and not stopping() and (left := end - time.monotonic()) > 0:
      exchange.join(min(_POLL, left))
    if exchange.reply is not None:
      return exchange.reply
    if isinstance(exchange.error, (OSError, http.client.HTTPException)):
      raise exchange.error
    if exchange.error is not None:  # of a chunk of negative size, and the like
      raise http.client.HTTPException(str(exchange.error)) from exchange.error
    raise Stopped if stopping() else TimeoutError
  finally:
    exchange.hang_up()


def pause(seconds: float, stopping: Callable[[], bool]) -> None:
  """Waits; raises `Stopped` when asked to stop meanwhile."""
  end = time.monotonic() + seconds
  while (left := end - time.monotonic()) > 0:
    if stopping():
      raise Stopped
    time.sleep(min(_POLL, left))
