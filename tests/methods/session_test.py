"""Texts longer than the model was made for are told once a run, and refused beyond twice that."""

import dataclasses
import gc
import json
import logging
import shutil
import weakref

import pytest

from rain_jax import api
from rain_jax.methods.session import Session
from rain_jax.models import loading, testing
from rain_jax.models.config import ModelConfig
from rain_jax.runs import job
from rain_jax.tasks import Record
from rain_jax.text.formats import CHAT
from rain_jax.types import DataError
from tests.helpers.small_runs import API_CONFIG, CONFIG

LLAMA3 = testing.FAMILIES["llama3"]["rope_scaling"]


@pytest.mark.parametrize(
  "positions, scaling, context",
  [
    (256, None, 256),
    (256, {"rope_type": "default"}, 256),
    (256, {"type": "linear", "factor": 4.0}, 1024),
    (256, {"type": "linear", "factor": 1.5}, 384),
    (512, LLAMA3, 512),  # 8 * 64, as its files say themselves
    (131072, LLAMA3 | {"original_max_position_embeddings": 8192}, 131072),
    (8192, LLAMA3 | {"original_max_position_embeddings": 8192}, 65536),
  ],
)
def test_positions_as_the_scaling_extends_them(positions, scaling, context):
  fields = {"max_position_embeddings": positions, "rope_scaling": scaling}
  assert ModelConfig.from_hf(testing.FAMILIES["llama2"] | fields).context == context


@pytest.fixture
def short(checkpoint, tmp_path):
  """The tests' model as if it had been made for few positions."""

  def make(positions):
    folder = shutil.copytree(checkpoint, tmp_path / str(positions))
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"max_position_embeddings": positions}
    path.write_text(json.dumps(config))
    return folder

  return make


PROMPTS = ["the cat sat", "on a mat"]


def longest(loaded):
  """Tokens of the longest text of a session on a model of many positions."""
  session = api.Rain(loaded).session(PROMPTS, "harmless", API_CONFIG)
  asked = max(map(len, session.preference.suffix_ids))
  said = max(len(query.evaluating) for query in session.queries)
  return len(session.preference.prefix_ids) + said + API_CONFIG.max_response + asked


def test_longer_texts_are_told_once_a_run_and_refused_beyond_twice(checkpoint, short, caplog):
  with caplog.at_level(logging.WARNING, "rain_jax"):
    length = longest(loading.load(str(checkpoint)))
    api.Rain(loading.load(str(short(length)))).session(PROMPTS, "harmless", API_CONFIG)
    assert not caplog.messages
    rain = api.Rain(loading.load(str(short(length - 1))))
    rain.session(PROMPTS, "harmless", API_CONFIG)
    rain.session(PROMPTS, "harmless", API_CONFIG)
  assert len(caplog.messages) == 1
  assert f"up to {length} tokens, the model was made for {length - 1}" in caplog.messages[0]
  with caplog.at_level(logging.WARNING, "rain_jax"):
    loaded = loading.load(str(short(-(-length // 2))))
    api.Rain(loaded).session(PROMPTS, "harmless", API_CONFIG)  # another run
  assert len(caplog.messages) == 2
  small = loading.load(str(short((length - 1) // 2)))
  with pytest.raises(DataError, match=f"{length} tokens.*: lower limits.max_prompt") as caught:
    api.Rain(small).session(PROMPTS, "harmless", API_CONFIG)
  assert "\n" not in str(caught.value)


def test_a_plan_tells_it_too(checkpoint, short, caplog):
  config = dict(CONFIG) | {"prompts": CONFIG["prompts"] | {"text": PROMPTS[0]}}
  length = longest(loading.load(str(checkpoint)))
  with caplog.at_level(logging.WARNING, "rain_jax"):
    job.plans(config | {"model": {"path": str(short(length - 20)), "dtype": "float32"}})
  assert len([m for m in caplog.messages if "the model was made for" in m]) == 1
  with pytest.raises(DataError, match="the model was made for 99"):
    job.plans(config | {"model": {"path": str(short(99)), "dtype": "float32"}})


def test_a_session_is_gone_with_its_last_reference(checkpoint):
  rain = api.Rain(loading.load(str(checkpoint)))
  session = weakref.ref(rain.session(["the cat"], "harmless", API_CONFIG))
  gc.disable()
  try:
    assert session() is not None
    del rain
    assert session() is None
  finally:
    gc.enable()


def test_a_prompt_that_the_chat_template_does_not_take_is_rejected_alone(checkpoint):
  loaded = loading.load(str(checkpoint))
  loaded.tokenizer.chat_template = (
    "{% for m in messages %}{{ raise_exception('no sats') if 'sat' in m.content else m.content }}"
    "{% endfor %}"
  )
  config = dataclasses.replace(API_CONFIG, format=CHAT)
  rain = api.Rain(loaded)
  session = rain.session(PROMPTS, "harmless", config)
  assert [q.record.id for q in session.queries] == ["1"]
  assert session.rejected[0].error.endswith("does not take this conversation: no sats")
  loaded.tokenizer.chat_template = "{{ nothing.at.all }}"
  with pytest.raises(ValueError, match="does not take this conversation"):
    Session(loaded, session.config, [Record("0", "a mat")])
