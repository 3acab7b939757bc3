"""The endpoint judge against a local server that misbehaves in every way."""

import json
import time

import pytest

from rain_jax.judges.endpoint import EndpointJudge
from rain_jax.tasks import Record
from rain_jax.types import DataError
from tests.helpers.chat_server import Server, judge_of, reply


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
    (["drop"], "no connection"),
    (["half"], "connection|completion"),
    ([b"not json"], "not a chat completion"),
    ([b'{"choices": []}'], "not a chat completion"),
    ([b'{"error": "x"}'], "not a chat completion"),
    ([b"[1]"], "not a chat completion"),
    ([b'{"choices": [{"message": {"content": null}}]}'], "without text"),
  ],
)
def test_what_stays_broken_is_unjudged_after_all_tries(acts, says):
  waits = []
  with Server(acts) as server:
    (verdict,) = dict(judge_of(server, waits).judge(items(1))).values()
  assert not verdict.answers and len(server.seen) == 3 and waits == [1.0, 2.0]
  assert any(word in verdict.unjudged for word in says.split("|")) and "\n" not in verdict.unjudged


@pytest.mark.parametrize("act", ["hang", "drip"])
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
  ],
)
def test_settings_that_cannot_work_are_one_line(monkeypatch, changes, says):
  monkeypatch.setenv("SOME_KEY", "secret")
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
