"""The server against OpenAI's own client, over real sockets, beside `Rain.generate`."""

import asyncio
import contextlib
import dataclasses
import json
import queue
import socket
import urllib.error
import urllib.request

import pytest

import rain_jax
from rain_jax import api, tasks, types
from rain_jax.text.formats import find_format
from tests.helpers import small_runs

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from rain_jax.serving import app, bodies, engine, server  # noqa: E402
from tests.helpers.served import KEY, client, serving, streamed, wait_until  # noqa: E402

# The programs of the API's tests: prompts of 32 tokens at most.
CONFIG = dataclasses.replace(small_runs.API_CONFIG, max_prompt=32)
WORDS = ["the cat", "a mat", "far away", "then it was", "see us all"]
METHODS = {"rain": {}, "vanilla": {}}
RAIN = engine.Kind("rain", "harmless")
QUEUE = 60


@pytest.fixture(scope="module")
def model(checkpoint):
  return rain_jax.load(str(checkpoint))


@pytest.fixture(scope="module")
def served(model):
  """An engine, and the URL under which it is served with a key."""
  settings = [api.make_session_config("harmless", CONFIG, model.loaded.tokenizer)]
  made = engine.Engine(model.loaded, "tiny", settings, METHODS, QUEUE)
  with serving(made) as (_, url):
    yield made, url
  made.close()


def chat(text, **more):
  return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}


def test_many_clients_at_once_all_get_the_answers_of_the_python_api(model, served):
  _, url = served
  asked = [(WORDS[i % 5], i % 2, ("rain", "vanilla")[i % 9 == 0], i % 4 > 1) for i in range(50)]

  async def one(seat, number):
    text, seed, method, stream = asked[number]
    body = chat(text, seed=seed)
    if stream:
      said, end, usage, _ = await streamed(seat, body, method=method)
      return said, end.choices[0].rain, usage
    body["model"] = f"tiny:{method}"
    whole = await seat.chat.completions.create(**body)
    assert whole.rain == {"method": method, "preference": "harmless", "seed": seed, "ignored": []}
    return whole.choices[0].message.content, whole.choices[0].rain, whole.usage

  async def all_of_them():
    async with client(url) as seat:
      return await asyncio.gather(*(one(seat, number) for number in range(50)))

  found = asyncio.run(all_of_them())
  expected = {
    key: model.generate([key[0]], seed=key[1], method=key[2], config=CONFIG)[0]
    for key in {(text, seed, method) for text, seed, method, _ in asked}
  }
  for (text, seed, method, _), (said, ours, usage) in zip(asked, found, strict=True):
    answer = expected[text, seed, method]
    assert said == answer.text and ours["finish_reason"] == answer.finish_reason
    assert ours["verdict"] == answer.verdict
    # Read in a batch of another size, whose sums come in another order.
    assert ours["log_likelihood"] == pytest.approx(answer.log_likelihood, rel=1e-5)
    assert usage.completion_tokens == len(answer.tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.rain["rewinds" if method == "rain" else "response_tokens"] >= 0
    # Of the work, what depends on neighbours is padding alone.
    assert usage.rain == answer.counters
  assert len({said for said, *_ in found}) > 9


@pytest.mark.slow
def test_adaptive_answers_are_streamed_as_far_as_they_are_final(model):
  config = dataclasses.replace(CONFIG, max_response=48)  # several drafts long
  settings = [api.make_session_config("harmless", config, model.loaded.tokenizer)]
  made = engine.Engine(model.loaded, "tiny", settings, {"adaptive": {}}, QUEUE)

  async def all_of_them(url):
    async with client(url) as seat:
      return await asyncio.gather(*(streamed(seat, chat(WORDS[n % 5], seed=n)) for n in range(12)))

  with serving(made) as (_, url):
    found = asyncio.run(all_of_them(url))
  made.close()
  answers = [
    model.generate([WORDS[n % 5]], method="adaptive", config=config, seed=n)[0] for n in range(12)
  ]
  assert [text for text, *_ in found] == [answer.text for answer in answers]
  assert sum(answer.counters["taken_back"] for answer in answers) > 0
  assert any(chunks > 1 for *_, chunks in found)  # some of it before the end


def test_a_text_is_completed_as_it_is_and_choices_have_random_numbers_of_their_own(model, served):
  _, url = served
  seat = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
  raw = dataclasses.replace(
    CONFIG, format=dataclasses.replace(find_format("dialogue"), template="{prompt}", stop=())
  )
  two = seat.completions.create(
    model="tiny:vanilla", prompt=["the cat", "a mat"], n=2, seed=5, extra_body={"top_k": 4}
  )
  answers = model.generate(
    ["the cat", "the cat", "a mat", "a mat"], method="vanilla", config=raw, seed=5
  )
  assert [choice.text for choice in two.choices] == [answer.text for answer in answers]
  assert two.rain["ignored"] == ["top_k"] and len({answer.text for answer in answers}) == 4
  first, second = (seat.chat.completions.create(**chat("a mat")).rain["seed"] for _ in range(2))
  assert first != second  # drawn, and told


def test_answers_are_cut_where_the_client_says(model, served):
  _, url = served
  seat = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
  for method in METHODS:
    (whole,) = model.generate(["the cat"], method=method, config=CONFIG, seed=1)
    body = chat("the cat", seed=1) | {"model": f"tiny:{method}"}
    cut = seat.chat.completions.create(**body, max_tokens=3)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3
    assert whole.text.startswith(cut.choices[0].message.content.rstrip("\ufffd"))
    ours = {"finish_reason": "length", "verdict": None, "log_likelihood": None}
    assert cut.choices[0].rain == ours
    middle = whole.text[3:5]
    text, end, usage, _ = asyncio.run(streamed(client(url), {**body, "stop": [middle]}))
    assert text == whole.text[: whole.text.index(middle)]
    assert end.choices[0].finish_reason == "stop" and usage.completion_tokens < len(whole.tokens)


@contextlib.contextmanager
def standing_still(made):
  """The batcher of RAIN, whose searches stand still after their next step."""
  batcher = made._batcher(RAIN)
  with batcher._looking:
    yield batcher


def request(url, **more):
  """A streaming request over a socket of its own, which has been let into the batcher."""
  host, port = url.split("/")[2].split(":")
  body = json.dumps(chat("then it was", stream=True, **more)).encode()
  seat = socket.create_connection((host, int(port)))
  head = (
    f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
  )
  seat.sendall(head.encode() + body)
  assert seat.recv(1 << 16).startswith(b"HTTP/1.1 200")
  return seat


def test_what_clients_leave_is_free_for_the_next_within_a_step(model, served):
  made, url = served
  with standing_still(made) as batcher:
    seats = [request(url, seed=seed) for seed in range(6)]
    wait_until(lambda: made.load["running"] == len(batcher._running))
    left = [one for running in batcher._running for one in running]
    steps = [one.seen for one in left]
    waiting = list(batcher.waiting._requests)
    assert len(left) + len(waiting) == 6
    heard: list = []
    for one in left + waiting:
      one.tell = heard.append
    for seat in seats:
      seat.close()
    wait_until(lambda: all(one.gone for one in left + waiting))
    told: queue.SimpleQueue = queue.SimpleQueue()
    (query,) = made.queries(RAIN, [tasks.Record("0", "a mat")], 4)
    made.ask(RAIN, [engine.Request(query, told.put, 12)])
  answer = told.get(timeout=300)
  (alone,) = model.generate(["a mat"], config=CONFIG, seed=4)
  assert answer.text == alone.text and answer.counters == alone.counters
  wait_until(lambda: made.load == {"running": 0, "waiting": 0})
  # Nobody who left had another step: no answer, and no more text than before.
  assert heard == [] and [one.seen for one in left] == steps


def test_a_full_queue_says_so_and_takes_others_later(model, served):
  made, url = served
  seat = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
  with standing_still(made) as batcher:
    seats = [request(url) for _ in range(len(batcher._running))]
    wait_until(lambda: made.load["running"] == len(batcher._running))
    seats += [request(url, n=QUEUE - 1)]
    assert made.load["waiting"] == QUEUE - 1
    with pytest.raises(openai.RateLimitError, match="59 requests wait already") as caught:
      seat.chat.completions.create(**chat("a mat"), n=2)
    assert caught.value.response.headers["retry-after"] == "1"
    health = json.load(urllib.request.urlopen(url.replace("/v1", "/health")))
    assert health["waiting"] == QUEUE - 1 and health["running"] == len(batcher._running)
    for one in seats:
      one.close()
    wait_until(lambda: made.load["waiting"] == 0)
  (answer,) = model.generate(["a mat"], config=CONFIG, seed=4)
  again = seat.chat.completions.create(**chat("a mat", seed=4))
  assert again.choices[0].message.content == answer.text


def test_whoever_was_let_in_is_answered_when_the_server_ends(model, served):
  made, _ = served

  async def ask(url, number):
    async with client(url) as seat:
      return (await streamed(seat, chat(WORDS[number % 5], seed=number)))[0]

  async def all_of_them(server, url):
    asked = [asyncio.create_task(ask(url, number)) for number in range(8)]
    while sum(made.load.values()) < 8:
      await asyncio.sleep(0.001)
    server.should_exit = True  # as SIGTERM does
    return await asyncio.gather(*asked)

  with serving(made) as (server, url):
    found = asyncio.run(all_of_them(server, url))
  with pytest.raises(OSError):
    urllib.request.urlopen(url)
  expected = [model.generate([WORDS[n % 5]], config=CONFIG, seed=n)[0].text for n in range(8)]
  assert found == expected


USER = {"role": "user", "content": "the cat"}
WRONG = [
  (b"{", 400, None, "not JSON"),
  (b"[" * 100_000, 400, None, "not JSON"),
  (b"[]", 400, None, "a list, expected an object"),
  ({"messages": [USER], "model": "other"}, 404, "model", "expected one of tiny, tiny:rain"),
  ({"messages": [USER], "model": 1}, 400, "model", "a number, expected text"),
  ({"messages": [USER], "method": "magic"}, 400, "method", "expected one of rain, vanilla"),
  ({"messages": [USER], "model": "tiny:rain", "method": "vanilla"}, 400, "method", "once"),
  ({"messages": [USER], "preference": "../x.yaml"}, 400, "preference", "expected one of harmless"),
  ({"messages": [USER], "seed": 1.5}, 400, "seed", "expected a whole number"),
  ({"messages": [USER], "seed": -1}, 400, "seed", "expected a whole number"),
  ({"messages": [USER], "n": 1000}, 400, "n", "from 1 to 128"),
  ({"messages": [USER], "max_tokens": True}, 400, "max_tokens", "1 or more"),
  ({"messages": [USER], "stop": [""]}, 400, "stop", "not empty"),
  ({"messages": [USER], "stream": "yes"}, 400, "stream", "true or false"),
  ({"messages": [USER], "tools": [{}]}, 400, "tools", "not supported"),
  ({"messages": [USER], "logprobs": True}, 400, "logprobs", "not supported"),
  (
    {"messages": [USER], "response_format": {"type": "json_object"}},
    400,
    "response_format",
    "text",
  ),
  ({"messages": []}, 400, "messages", "one at least"),
  ({"messages": ["the cat"]}, 400, "messages", "expected an object with role"),
  ({"messages": [USER, USER]}, 400, "messages", "speak in turn"),
  ({"messages": [USER, {"role": "assistant", "content": ""}]}, 400, "messages", "is empty"),
  (
    {"messages": [{"role": "tool", "content": ""}]},
    400,
    "messages",
    "expected one of system, user",
  ),
  ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", "parts"),
  ({"messages": [{"role": "user", "content": " "}]}, 400, "messages", "is empty"),
  ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages", "half of a character"),
  ({"messages": [{"role": "user", "content": "cat " * 99}]}, 400, "messages", "limits.max_prompt"),
  ({"messages": [{"role": "user", "content": "x" * app.BODY}]}, 413, None, "1048576 bytes"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_body_is_refused_in_the_words_of_the_api(served, number):
  body, status, param, says = WRONG[number]
  code, said = post(served[1], body if isinstance(body, bytes) else json.dumps(body).encode())
  assert code == status and says in said["error"]["message"], said
  assert said["error"]["param"] == param and said["error"]["type"] == "invalid_request_error"
  assert "\n" not in said["error"]["message"]


def post(url, data, path="/chat/completions", **headers):
  headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"} | headers
  try:
    with urllib.request.urlopen(urllib.request.Request(url + path, data, headers)) as reply:
      return reply.status, json.load(reply)
  except urllib.error.HTTPError as error:
    return error.code, json.load(error)


def test_who_has_no_key_and_what_is_not_there_is_refused(served):
  _, url = served
  body = json.dumps(chat("a mat")).encode()
  for wrong in ("", "Bearer ", "Bearer other", f"bearer {KEY}x"):
    code, said = post(url, body, Authorization=wrong)
    assert code == 401 and said["error"]["code"] == "invalid_api_key"
  assert post(url, body, path="/embeddings")[0] == 404
  assert post(url, body, path="/models")[0] == 405
  assert post(url, body, **{"Content-Type": "text/plain"})[0] == 415
  assert post(url, b'{"prompt": [1, 2]}', path="/completions")[1]["error"]["param"] == "prompt"
  seat = openai.OpenAI(base_url=url, api_key=KEY)
  assert [one.id for one in seat.models.list()] == ["tiny", "tiny:rain", "tiny:vanilla"]
  assert seat.models.retrieve("tiny:rain").id == "tiny:rain"
  with pytest.raises(openai.NotFoundError):
    seat.models.retrieve("other")


def test_messages_are_read_as_the_python_api_reads_them(model, served):
  made, _ = served
  said = lambda *texts: [
    {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
  ]
  parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "mat"}]
  for messages, plain in (
    (said("the cat"), said("the cat")),
    (said("the", "cat", "us"), said("the", "cat", "us")),
    (said("the", "cat"), said("the", "cat")),  # which the response continues
    (
      [{"role": "developer", "content": parts}] + said("the cat"),
      [{"role": "system", "content": "a mat"}] + said("the cat"),
    ),
  ):
    ask = bodies.read(made, {"messages": messages, "n": 2}, chat=True)
    session = model.session([plain, plain], "harmless", small_runs.API_CONFIG)
    expected = [query.record for query in session.queries]
    assert list(ask.records) == expected and len(expected) == 2


def test_a_batch_that_breaks_is_an_error_and_the_next_is_answered(model, served, monkeypatch):
  made, url = served
  seat = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
  batcher = made._batcher(RAIN)
  monkeypatch.setattr(batcher, "_look", lambda *_: 1 / 0)
  with pytest.raises(openai.InternalServerError, match="the server's log says why"):
    seat.chat.completions.create(**chat("a mat", seed=4))
  with pytest.raises(openai.APIError, match="the server's log says why"):
    asyncio.run(streamed(client(url), chat("a mat", seed=4)))
  monkeypatch.undo()
  (answer,) = model.generate(["a mat"], config=CONFIG, seed=4)
  again = seat.chat.completions.create(**chat("a mat", seed=4))
  assert again.choices[0].message.content == answer.text


def test_what_cannot_be_served_is_refused(model):
  settings = [api.make_session_config("harmless", CONFIG, model.loaded.tokenizer)]
  with pytest.raises(types.DataError, match="methods: choose cannot be served"):
    engine.Engine(model.loaded, "tiny", settings, {"choose": {}}, 1)
  with pytest.raises(types.DataError, match="nowhere.invalid:80 cannot be used"):
    server.bound("nowhere.invalid", 80)
  with server.bound("127.0.0.1", 0) as one, pytest.raises(types.DataError, match="in use"):
    one.listen()
    server.bound("127.0.0.1", one.getsockname()[1])
