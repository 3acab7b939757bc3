"""A server in a thread of this process, on a free port of the loopback interface, and its clients."""

import contextlib
import threading
import time

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


def client(url):
  """OpenAI's own client."""
  import openai

  return openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=600)


async def streamed(one, body, **extra):
  """Of a client's stream the text, the last chunk of the choice, the usage and how many pieces."""
  text, end, usage, chunks = "", None, None, 0
  stream = await one.chat.completions.create(
    **body, stream=True, stream_options={"include_usage": True}, extra_body=extra
  )
  async for chunk in stream:
    usage = chunk.usage or usage
    for choice in chunk.choices:
      text += choice.delta.content or ""
      chunks += bool(choice.delta.content)
      end = chunk if choice.finish_reason else end
  return text, end, usage, chunks


def wait_until(condition, seconds=300):
  begin = time.monotonic()
  while not condition():
    assert time.monotonic() - begin < seconds
    time.sleep(0.002)
