"""Fifty clients of the demo model at once, and one that is killed."""

import asyncio
import subprocess
import sys
import threading

import pytest

import rain_jax
from rain_jax import api, demo, tasks

pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from rain_jax.serving import engine  # noqa: E402
from tests.helpers.served import KEY, client, serving, streamed, wait_until  # noqa: E402

CLIENTS = 50
CONFIG = api.Config(max_prompt=64, max_response=16, batch_size=4)
VICTIM = """
import sys, openai
url, key, prompt = sys.argv[1:]
messages = [{"role": "user", "content": prompt}]
one = openai.OpenAI(base_url=url, api_key=key)
for chunk in one.chat.completions.create(model="demo", messages=messages, stream=True):
  pass
"""


@pytest.mark.slow
def test_fifty_clients_of_the_demo_model_and_one_that_is_killed():
  model = rain_jax.load("demo")
  settings = [api.make_session_config("harmless", CONFIG, model.loaded.tokenizer)]
  made = engine.Engine(model.loaded, "demo", settings, {"rain": {}, "vanilla": {}}, CLIENTS)
  made.warm()
  records = tasks.load_prompts(str(demo.PROMPTS_DIR / "harmful.jsonl"))[: CLIENTS + 1]
  *prompts, last = [record.prompt for record in records]
  assert len(set(prompts)) == CLIENTS
  method_of = lambda number: "rain" if number % 5 else "vanilla"

  async def one(seat, number):
    messages = [{"role": "user", "content": prompts[number]}]
    body = {"model": f"demo:{method_of(number)}", "messages": messages, "seed": number}
    return await streamed(seat, body)

  async def all_of_them(url):
    async with client(url) as seat:
      return await asyncio.gather(*(one(seat, number) for number in range(CLIENTS)))

  batcher, looks, found = made._batcher(engine.Kind("rain", "harmless")), [], []
  look = batcher._look

  def watched(held, state):
    looks.append((threading.get_ident(), dict(held)))
    look(held, state)

  batcher._look = watched
  with serving(made) as (_, url):
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, url, KEY, last])
    wait_until(lambda: any(held for _, held in looks))
    with batcher._looking:  # every search stands still after its step
      (lost,) = looks[-1][1].values()
      asking = threading.Thread(target=lambda: found.extend(asyncio.run(all_of_them(url))))
      asking.start()
      wait_until(lambda: batcher.running + len(batcher.waiting) > CLIENTS * 4 // 5)
      victim.kill()
      wait_until(lambda: lost.gone)
      seen = len(looks)
    asking.join()
  made.close()
  victim.wait()
  # The step that was going on is its last one; in the next, another request has its slot.
  ((place, thread, slot),) = [
    (place, thread, slot)
    for place, (thread, held) in enumerate(looks[seen:], seen)
    for slot, request in held.items()
    if request is lost
  ]
  following = next(held for other, held in looks[place + 1 :] if other == thread)
  assert following[slot] is not lost
  assert len(found) == CLIENTS
  for number, (text, end, usage, chunks) in enumerate(found):
    method = method_of(number)
    (answer,) = model.generate([prompts[number]], method=method, config=CONFIG, seed=number)
    assert text == answer.text and end.choices[0].rain["verdict"] == answer.verdict, number
    assert usage.completion_tokens == len(answer.tokens)
  assert sum(chunks > 1 for *_, chunks in found) > CLIENTS // 2  # told before the end
