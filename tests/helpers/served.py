"""A server in a thread of this process, on a free port of the loopback interface."""

import contextlib
import threading

from rain_jax.serving import app, server
from rain_jax.serving.engine import Engine

KEY = "a key for tests"


@contextlib.contextmanager
def serving(engine: Engine, key: str = KEY):
  """Yields the server and its URL; at the end all is answered."""
  ready, place = threading.Event(), server.bound("127.0.0.1", 0)
  one = server.Server(app.make_app(engine, key), ready.set)
  thread = threading.Thread(target=one.run, kwargs={"sockets": [place]})
  thread.start()
  assert ready.wait(60)
  try:
    yield one, server.url(place)
  finally:
    one.should_exit = True
    thread.join(120)
    assert not thread.is_alive()
