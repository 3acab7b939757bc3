"""A socket for the server, and its life: until SIGTERM or Ctrl-C, and until all is answered."""

import ipaddress
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from rain_jax.types import DataError


def bound(host: str, port: int) -> socket.socket:
  """A socket at an address, which refuses connections until something is served on it.

  Args:
    host: name or address.
    port: 0 takes a free one.

  Raises:
    DataError: the address cannot be used.
  """
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(address)
  except (OSError, OverflowError) as error:
    raise DataError(f"{host}:{port} cannot be used: {error}; choose another.") from None
  return found


def is_loopback(place: socket.socket) -> bool:
  """Whether only this machine reaches a socket."""
  return ipaddress.ip_address(place.getsockname()[0]).is_loopback


def url(place: socket.socket) -> str:
  """Where the API is, as clients are told."""
  host, port = place.getsockname()[:2]
  return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


class Server(uvicorn.Server):
  """`run(sockets=[...])` serves until a signal, or until `should_exit`: then it lets nobody in, and
  returns when all is answered.

  Args:
    app: from `app.make_app`.
    ready: called when it answers.
  """

  def __init__(self, app: Starlette, ready: Callable[[], None]):
    super().__init__(
      uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
      )
    )
    self._ready = ready

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    """Listens."""
    await super().startup(sockets)
    self._ready()
