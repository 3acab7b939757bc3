"""The endpoint judge against a local server that misbehaves in every way."""

import email.utils
import errno
import json
import math
import time

import pytest

from rain_jax.judges import endpoint
from rain_jax.judges.endpoint import EndpointJudge
from rain_jax.tasks import Record
from rain_jax.types import DataError, Stopped
from tests.helpers.chat_server import Server, judge_of, reply, settings_of


def items(count):
  return [
    (Record(f"p{i}", f"prompt {i}", {}, ("earlier", "said")), f"answer {i}") for i in range(count)
  ]


def test_asks_as_an_openai_server_is_asked(monkeypatch):
  monkeypatch.setenv("SOME_KEY", "secret")
  with Server([reply("YES"), reply(" **No.** because"), reply("yes, sure")]) as server:
    judge = judge_of(server, key="SOME_KEY")
    found = dict(judge.judge(items(3)))
  assert [found[i].answers for i in range(3)] == [
    {"harmless": True},
    {"harmless": False},
    {"harmless": True},
  ]
  headers, body = server.seen[0]
  assert headers["Authorization"] == "Bearer secret" and "secret" not in json.dumps(body)
  assert (body["model"], body["temperature"]) == ("judge-1", 0)
  assert "harmless" in body["messages"][0]["content"]
  assert json.loads(body["messages"][1]["content"]) == {
    "conversation": ["earlier", "said", "prompt 0"],
    "answer": "answer 0",
  }
  assert "secret" not in judge.by and "secret" not in repr(vars(found[0]))


@pytest.mark.parametrize(
  "measure, digest",
  [
    ("harmless", "862843b00f743209"),
    ("helpful", "0d336df5c80e1930"),
    ("truthful", "e2052ee751eebe76"),
    ("informative", "e9cf28a52bdb83da"),
    ("positive", "72817d04f3a88fee"),
  ],
)
def test_questions_are_pinned(measure, digest):
  settings = {
    "url": "http://127.0.0.1:9/v1",
    "model": "m",
    "key": "",
    "timeout": 1.0,
    "retries": 0,
    "budget": 0,
    "cache": "",
  }
  by = EndpointJudge(measure, settings).by
  assert by == f"http://127.0.0.1:9/v1/chat/completions m {digest}", (
    "what an endpoint is asked changed"
  )


def test_the_goal_is_asked_about_without_an_attacks_suffix():
  with Server([reply("yes")]) as server:
    dict(judge_of(server).judge([(Record("1", "Do it ! !", {"goal": "Do it"}), "Sure")]))
  said = json.loads(server.seen[0][1]["messages"][1]["content"])
  assert said == {"conversation": ["Do it"], "answer": "Sure"}


def test_429_and_500_are_tried_again_with_growing_waits():
  waits = []
  acts = [(429, {"Retry-After": "7"}), 500, reply("yes"), 503, reply("no")]
  with Server(acts) as server:
    found = dict(judge_of(server, waits).judge(items(2)))
  assert [found[i].answers["harmless"] for i in range(2)] == [True, False]
  assert waits == [7.0, 2.0, 1.0] and len(server.seen) == 5


@pytest.mark.parametrize(
  "acts,says",
  [
    ([500], "HTTP 500"),
    ([429], "HTTP 429"),
    ([529], "HTTP 529"),
    (["drop"], "no connection"),
    (["chunk"], "no connection"),
    (["half"], "connection|completion"),
    ([b'{"choices": [{"message": {"content": [3]}}]}'], "not a chat completion"),
    ([b"not json"], "not a chat completion"),
    ([b'{"choices": []}'], "not a chat completion"),
    ([b'{"error": "x"}'], "not a chat completion"),
    ([b"[1]"], "not a chat completion"),
    ([b'{"choices": [{"message": "yes"}]}'], "not a chat completion"),
    ([b'{"choices":' + b"[" * 100_000], "not a chat completion"),
    ([b'{"choices": [{"message": {"content": ' + b"9" * 5000 + b"}}]}"], "not a chat completion"),
    ([b'{"choices": [{"message": {"content": null}}]}'], "without text"),
  ],
)
def test_what_stays_broken_is_unjudged_after_all_tries(acts, says):
  waits = []
  with Server(acts) as server:
    (verdict,) = dict(judge_of(server, waits).judge(items(1))).values()
  assert not verdict.answers and len(server.seen) == 3 and waits == [1.0, 2.0]
  assert any(word in verdict.unjudged for word in says.split("|")) and "\n" not in verdict.unjudged


@pytest.mark.parametrize("act", ["hang", "drip", "headers", "continue"])
def test_a_server_that_takes_for_ever_is_left(act):
  with Server([act, reply("yes")]) as server:
    start = time.monotonic()
    (verdict,) = dict(judge_of(server, timeout=0.4).judge(items(1))).values()
    assert time.monotonic() - start < 4
  assert verdict.answers == {"harmless": True} and len(server.seen) == 2


@pytest.mark.parametrize(
  "act,says",
  [
    (401, "HTTP 401"),
    (404, "HTTP 404"),
    ((302, {"Location": "http://127.0.0.1:1/steal"}), "HTTP 302"),
  ],
)
def test_what_trying_again_cannot_help_is_not_tried_again(act, says):
  with Server([act]) as server:
    found = dict(judge_of(server).judge(items(5)))
  assert len(server.seen) == 3  # three in a row, then the rest is not asked
  assert [says in found[i].unjudged for i in range(3)] == [True] * 3
  assert all("not asked" in found[i].unjudged for i in (3, 4))


def test_a_server_that_echoes_the_key_does_not_get_it_into_a_file(tmp_path, monkeypatch):
  monkeypatch.setenv("SOME_KEY", "secret")
  acts = [
    (400, {"body": b"no such model, Bearer secret"}),
    reply("you said secret"),
    reply("yes secret"),
  ]
  with Server(acts) as server:
    judge = judge_of(server, key="SOME_KEY", cache=str(tmp_path))
    found = dict(judge.judge(items(3)))
  assert found[0].unjudged == "HTTP 400 b'no such model, Bearer ***'"
  assert found[1].unjudged == "neither yes nor no: 'you said ***'"
  assert found[2].answers == {"harmless": True}
  assert not any("secret" in f.read_text("utf-8") for f in tmp_path.iterdir())


def test_an_answer_that_is_neither_yes_nor_no_is_unjudged_and_the_run_goes_on():
  with Server([reply("Maybe\nyes"), reply(""), reply("yes")]) as server:
    found = dict(judge_of(server).judge(items(3)))
  assert "neither yes nor no" in found[0].unjudged and "neither" in found[1].unjudged
  assert found[2].answers == {"harmless": True} and len(server.seen) == 3


def test_the_budget_counts_every_request():
  with Server([reply("yes"), 500, reply("no"), reply("yes")]) as server:
    found = dict(judge_of(server, budget=3).judge(items(4)))
  assert len(server.seen) == 3
  assert [found[i].answers for i in range(2)] == [{"harmless": True}, {"harmless": False}]
  assert all("budget of 3" in found[i].unjudged for i in (2, 3))


def test_replies_are_kept_on_disk_by_what_was_asked(tmp_path, monkeypatch):
  monkeypatch.setenv("SOME_KEY", "secret")
  changes = {"cache": str(tmp_path / "cache"), "key": "SOME_KEY"}
  with Server([reply("yes"), reply("no"), reply("yes")]) as server:
    first = dict(judge_of(server, **changes).judge(items(2)))
    assert dict(judge_of(server, **changes, budget=1).judge(items(2))) == first
    assert len(server.seen) == 2
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 2 and not any("secret" in f.read_text("utf-8") for f in files)
    for damaged in ("", "[]", '{"reply": 3}'):
      files[0].write_text(damaged, "utf-8")
      assert len(dict(judge_of(server, **changes).judge(items(2)))) == 2
    assert len(server.seen) == 5
    other = dict(judge_of(server, **changes, model="judge-2").judge(items(1)))
    assert other[0].answers and len(server.seen) == 6


def test_no_server_at_all():
  with Server([500]) as server:
    pass
  found = dict(judge_of(server, retries=0).judge(items(5)))
  assert all("no connection" in found[i].unjudged for i in range(3))
  assert "not asked" in found[4].unjudged


@pytest.mark.parametrize(
  "changes,says",
  [
    ({"url": ""}, "endpoint.url"),
    ({"model": ""}, "endpoint.model"),
    ({"url": "ftp://x/v1"}, "http"),
    ({"key": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
    ({"url": "http://example.org/v1", "key": "SOME_KEY"}, "https"),
    ({"url": "http://ann:secret@127.0.0.1:9/v1"}, "without a user or password"),
    ({"url": "secret@127.0.0.1"}, "without a user or password"),
    ({"url": "http://127.0.0.1:9/v1?key=secret"}, "without . or #"),
    ({"url": "http://127.0.0.1:port/v1"}, "endpoint.url: expected http"),
    ({"url": "http://127.0.0.1:9/v1\r\nX: y"}, "endpoint.url: expected http"),
    ({"url": "http://[::1/v1"}, "endpoint.url: expected http"),
    ({"key": "sk-secret"}, "the name of an environment variable .* not the key itself"),
    ({"key": "secret"}, "the name of an environment variable"),
    ({"key": "ODD_KEY"}, "endpoint.key='ODD_KEY': what the variable holds is no key"),
    ({"key": "BLANK_KEY"}, "no such environment variable, or empty"),
    ({"timeout": 0.0}, "endpoint.timeout=0.0: expected a number above 0"),
    ({"timeout": float("nan")}, "endpoint.timeout=nan"),
    ({"retries": -1}, "endpoint.retries=-1"),
    ({"retries": 10**9}, "endpoint.retries=1000000000"),
    ({"budget": -1}, "endpoint.budget=-1"),
    ({"budget": 1.5}, "endpoint.budget=1.5"),
  ],
)
def test_settings_that_cannot_work_are_one_line(monkeypatch, changes, says):
  monkeypatch.setenv("SOME_KEY", "secret")
  monkeypatch.setenv("ODD_KEY", "sec\nret secret")
  monkeypatch.setenv("BLANK_KEY", " \n")
  settings = {
    "url": "http://127.0.0.1:9/v1",
    "model": "m",
    "key": "",
    "timeout": 1.0,
    "retries": 0,
    "budget": 0,
    "cache": "",
    **changes,
  }
  with pytest.raises(DataError, match=says) as error:
    EndpointJudge("harmless", settings)
  assert "\n" not in str(error.value) and "secret" not in str(error.value)


# -- keys and proxies -----------------------------------------------------------------


def test_white_space_around_a_key_is_no_part_of_it(monkeypatch):
  monkeypatch.setenv("SOME_KEY", " secret\r\n")
  with Server([reply("yes")]) as server:
    dict(judge_of(server, key="SOME_KEY").judge(items(1)))
  assert server.seen[0][0]["Authorization"] == "Bearer secret"


def test_what_is_not_encrypted_goes_through_no_proxy(monkeypatch):
  monkeypatch.setenv("SOME_KEY", "secret")
  with Server([reply("yes")]) as proxy, Server([reply("no")]) as server:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
      monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
    (verdict,) = dict(judge_of(server, key="SOME_KEY").judge(items(1))).values()
  assert verdict.answers == {"harmless": False} and not proxy.seen


def test_a_proxy_for_what_is_encrypted_is_asked_for_a_tunnel_alone(monkeypatch):
  monkeypatch.setenv("SOME_KEY", "secret")
  with Server([reply("yes")]) as proxy:
    monkeypatch.setenv("https_proxy", proxy.url.replace("http://", "http://ann:pass@"))
    judge = judge_of(proxy, url="https://example.org/v1", key="SOME_KEY", retries=0)
    (verdict,) = dict(judge.judge(items(1))).values()
  assert proxy.tunnels == [("example.org:443", "Basic YW5uOnBhc3M=")] and not proxy.seen
  assert "no connection" in verdict.unjudged and "pass" not in verdict.unjudged
  monkeypatch.setenv("https_proxy", "socks5://ann:pass@127.0.0.1:9")
  with pytest.raises(DataError, match="^https_proxy: expected http://HOST:PORT") as error:
    judge_of(proxy, url="https://example.org/v1")
  assert "pass" not in str(error.value)
  monkeypatch.setenv("no_proxy", "example.org")
  judge_of(proxy, url="https://example.org/v1")


# -- time and size --------------------------------------------------------------------


@pytest.mark.parametrize("act", ["hang", "drip", "headers", "continue"])
def test_who_is_asked_to_stop_does_so_while_a_server_hangs(act):
  begin = time.monotonic()
  with Server([act]) as server:
    judge = EndpointJudge(
      "harmless", settings_of(server, timeout=60.0), stopping=lambda: time.monotonic() > begin + 0.5
    )
    with pytest.raises(Stopped):
      dict(judge.judge(items(1)))
    assert time.monotonic() - begin < 3 and len(server.seen) == 1


def test_who_is_asked_to_stop_does_so_between_two_tries():
  begin = time.monotonic()
  with Server([(429, {"Retry-After": "50"})]) as server:
    settings = settings_of(server)
    judge = EndpointJudge("harmless", settings, stopping=lambda: time.monotonic() > begin + 0.5)
    with pytest.raises(Stopped):
      dict(judge.judge(items(1)))
  assert time.monotonic() - begin < 3


def test_a_body_without_an_end_is_that_responses_alone():
  with Server(["huge", reply("yes")]) as server:
    found = dict(judge_of(server, timeout=30.0).judge(items(2)))
  assert "an answer of more than 1048576 bytes" in found[0].unjudged
  assert found[1].answers == {"harmless": True} and len(server.seen) == 2


@pytest.mark.parametrize(
  "value, least, most",
  [
    ("7", 7, 7),
    ("0.5", 1, 1),
    ("1e9", 1, 1),
    ("-5", 1, 1),
    ("9" * 400, 60, 60),
    ("\u00b2", 1, 1),
    ("Fri, 31 Dec 9999 23:59:59 -2359", 60, 60),
    (lambda: email.utils.formatdate(time.time() + 20, usegmt=True), 17, 20),
    (lambda: email.utils.formatdate(time.time() - 20, usegmt=True), 1, 1),
    (lambda: email.utils.formatdate(time.time() + 9999, usegmt=True), 60, 60),
    ("Wed, 99 Nov 2026 00:00:00 GMT", 1, 1),
    ("soon", 1, 1),
  ],
)
def test_a_server_says_when_to_ask_again(value, least, most):
  waits = []
  header = value if isinstance(value, str) else value()
  with Server([(503, {"Retry-After": header}), reply("yes")]) as server:
    (verdict,) = dict(judge_of(server, waits).judge(items(1))).values()
  assert verdict.answers and len(waits) == 1 and least <= waits[0] <= most


# -- what concerns one response, one parameter, or all that follow --------------------


def error_of(message, **more):
  return json.dumps({"error": {"message": message, **more}}).encode()


FILTER = error_of("The response was filtered", code="content_filter")
TOKENS = error_of(
  "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
  " 'max_completion_tokens' instead.",
  param="max_tokens",
)
NEWER = error_of("Unsupported parameter: 'max_completion_tokens'.", param="max_completion_tokens")
SILENT = error_of("You are not allowed to request logprobs from this model.")
LIKELIEST = {"logprobs": True, "top_logprobs": 5}
WARM = error_of("Unsupported value: 'temperature' does not support 0 with this model.")


@pytest.mark.parametrize(
  "act",
  [
    (400, {"body": FILTER}),
    (403, {"body": error_of("flagged by moderation")}),
    (400, {"body": error_of("maximum context length is 4096 tokens, max_tokens is 8")}),
    (413, {}),
    (422, {"body": b"no"}),
    json.dumps({"choices": [{"message": {"content": None, "refusal": "I cannot"}}]}).encode(),
    b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}',
  ],
)
def test_what_one_response_is_refused_for_leaves_the_rest_to_be_asked(act):
  with Server([act] * 5 + [reply("yes")]) as server:
    found = dict(judge_of(server).judge(items(6)))
  assert all(found[i].unjudged and not found[i].answers for i in range(5))
  assert found[5].answers == {"harmless": True} and len(server.seen) == 6


@pytest.mark.parametrize(
  "refusals, sent",
  [
    ([TOKENS], {"max_completion_tokens": 2048, "temperature": 0, **LIKELIEST}),
    ([WARM], {"max_tokens": 8, **LIKELIEST}),
    ([WARM, TOKENS], {"max_completion_tokens": 2048, **LIKELIEST}),
    ([TOKENS, NEWER], {"temperature": 0, **LIKELIEST}),
    ([SILENT], {"max_tokens": 8, "temperature": 0}),
    ([SILENT, WARM, TOKENS], {"max_completion_tokens": 2048}),
  ],
)
def test_a_model_that_refuses_a_parameter_is_asked_without(tmp_path, refusals, sent):
  acts = [(403 if body == SILENT else 400, {"body": body}) for body in refusals]
  with Server([*acts, reply("yes"), reply("no")]) as server:
    found = dict(judge_of(server, retries=0, cache=str(tmp_path)).judge(items(2)))
    assert [found[i].answers["harmless"] for i in range(2)] == [True, False]
    for _, body in server.seen[len(refusals) :]:
      assert {k: v for k, v in body.items() if k not in ("model", "messages")} == sent
    assert dict(judge_of(server, cache=str(tmp_path)).judge(items(2))) == found
    assert len(server.seen) == len(refusals) + 2


def likely(text, *shares, **more):
  """A reply whose first token could have been others, of these probabilities."""
  top = [{"token": token, "logprob": math.log(share)} for token, share in shares]
  content = [{"token": "?", "logprob": 0.0, "top_logprobs": top, **more}]
  choice = {"message": {"content": text}, "logprobs": {"content": content}}
  return json.dumps({"choices": [choice]}).encode()


@pytest.mark.parametrize(
  "act, judged",
  [
    (likely("NO", ("YES", 0.6), ("NO", 0.3)), True),
    (likely("Well, yes", (" no", 0.3), ("No", 0.25), ("yes", 0.45)), False),
    (likely("yes", ("NO", 0.3), ("I", 0.6)), True),  # it says something else
    (likely("yes", ("YES", 0.4), ("NO", 0.4)), True),
    (likely("no", ("YES", 0.9), top_logprobs="odd"), False),
    (likely("no", ("YES", 0.9), top_logprobs=[{"token": "YES", "logprob": None}]), False),
    (likely("no", ("YES", 0.9), top_logprobs=[{"token": "YES", "logprob": float("nan")}]), False),
    (b'{"choices": [{"message": {"content": "no"}, "logprobs": {"content": []}}]}', False),
    (b'{"choices": [{"message": {"content": "no"}, "logprobs": null}]}', False),
  ],
)
def test_the_likelier_word_counts_where_a_server_tells(tmp_path, act, judged):
  with Server([act]) as server:
    for _ in range(2):  # the second time from the cache
      found = dict(judge_of(server, cache=str(tmp_path)).judge(items(1)))
      assert found[0].answers == {"harmless": judged}
  assert len(server.seen) == 1


def thought(content, name="reasoning_content", ended="stop"):
  message = {"content": content, name: "Let me see ..."}
  return json.dumps({"choices": [{"message": message, "finish_reason": ended}]}).encode()


@pytest.mark.parametrize(
  "first",
  [
    thought(None),
    thought(None, "reasoning", "length"),
    thought(""),
    b'{"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}',
    reply("<think>Well, let me"),
  ],
)
def test_a_model_that_thinks_first_gets_room_for_it(first):
  with Server([first, thought("yes"), reply("<think>\nNo?\n</think>\n\nno")]) as server:
    found = dict(judge_of(server).judge(items(2)))
  assert [found[i].answers["harmless"] for i in range(2)] == [True, False]
  assert [body["max_tokens"] for _, body in server.seen] == [8, 2048, 2048]


def test_thoughts_are_no_answer():
  with Server([thought(None)]) as server:
    found = dict(judge_of(server).judge(items(5)))
  assert all(found[i].unjudged == "reasoning, and no answer after it" for i in range(5))
  assert len(server.seen) == 6  # once more to learn that there has to be room


@pytest.mark.parametrize(
  "act",
  [
    (429, {"body": error_of("You exceeded your current quota", code="insufficient_quota")}),
    (402, {"body": error_of("Insufficient Balance")}),
  ],
)
def test_a_quota_that_is_used_up_ends_it_at_once(act):
  waits = []
  with Server([reply("yes"), act]) as server:
    found = dict(judge_of(server, waits).judge(items(4)))
  assert found[0].answers and len(server.seen) == 2 and waits == []
  assert found[1].unjudged.startswith("the account's quota is used up (HTTP 4")
  assert all(found[i].unjudged.startswith("not asked: the account's quota") for i in (2, 3))


@pytest.mark.parametrize("place", ["file", "file/below", "full"])
def test_a_cache_that_cannot_be_written_costs_no_verdict(tmp_path, monkeypatch, caplog, place):
  (tmp_path / "file").write_text("")
  if place == "full":

    def no_space(*args, **kwargs):
      raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(endpoint.pathlib.Path, "mkdir", no_space)
  with Server([reply("yes")]) as server:
    found = dict(judge_of(server, cache=str(tmp_path / place)).judge(items(3)))
  assert all(found[i].answers for i in range(3)) and len(server.seen) == 3
  assert caplog.text.count("replies are not kept from here on") == 1
  assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("key", ["no", "x", "e", "EMPTY", "1"])
def test_the_key_of_a_local_server_may_be_any_word_of_its_replies(monkeypatch, key):
  monkeypatch.setenv("SOME_KEY", key)
  with Server([reply("no"), reply("yes")]) as server:
    found = dict(judge_of(server, key="SOME_KEY").judge(items(2)))
  assert [found[i].answers for i in range(2)] == [{"harmless": False}, {"harmless": True}]


@pytest.mark.parametrize("echo", [r"sk-a\/b+c=", r"sk-a/b\u002Bc=", r"sk-a\u002fb\u002bc\u003d"])
def test_a_key_is_hidden_as_json_escapes_it_too(tmp_path, monkeypatch, echo):
  monkeypatch.setenv("SOME_KEY", "sk-a/b+c=")
  said = b'{"choices": [{"message": {"content": "yes %s"}}]}' % echo.encode()
  with Server([(400, {"body": b"bad key " + echo.encode()}), said]) as server:
    found = dict(judge_of(server, key="SOME_KEY", cache=str(tmp_path)).judge(items(2)))
  assert found[0].unjudged == "HTTP 400 b'bad key ***'" and found[1].answers
  (kept,) = tmp_path.iterdir()
  assert json.loads(kept.read_text("utf-8")) == {"reply": "yes ***"}


@pytest.mark.parametrize("kind", ["thinking", "reasoning"])
def test_an_answer_in_parts_is_read(kind):
  def parts(*more):
    content = [{"type": kind, kind: "No?"}, *more]
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()

  whole = parts({"type": "text", "text": "Y"}, {"type": "text", "text": "es."})
  with Server([parts(), whole, reply("no")]) as server:
    found = dict(judge_of(server).judge(items(2)))
  assert [found[i].answers["harmless"] for i in range(2)] == [True, False]
  assert [body["max_tokens"] for _, body in server.seen] == [8, 2048, 2048]
