"""Tests of Greedy Coordinate Gradient: its gradients, its loss, its candidates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax import types
from rain_jax.attacks import AttackError, Behaviour, gcg
from rain_jax.methods.session import Session, SessionConfig
from rain_jax.models import forward, unembed
from rain_jax.models.loading import load
from rain_jax.preferences import load_preference
from rain_jax.text.formats import DIALOGUE

GOALS = [
  Behaviour("a", "the cat, sat. on a mat; and?", "then it was gone"),
  Behaviour("b", "see us all again", "far away; to see"),
]
CONTROL = "! ! ! ! !"
SMALL = gcg.Config(candidates=24, top_k=16, steps=6, chunk=8, progressive=False)


@pytest.fixture(scope="module")
def session(checkpoint):
  session_config = SessionConfig(DIALOGUE, load_preference("harmless"), types.harmless_search())
  return Session(load(str(checkpoint)), session_config, [])


@pytest.fixture(scope="module")
def other(session):
  """Another model with the same tokenizer, its prompts after a fixed prefix."""
  model = session.loaded.model
  params = jax.tree.map(lambda a: 1.1 * a, model.params)
  loaded = dataclasses.replace(
    session.loaded, model=dataclasses.replace(model, params=params), name="other"
  )
  format = dataclasses.replace(DIALOGUE, prefix="Human: a cat\n\nAssistant: sat.")
  return Session(loaded, dataclasses.replace(session.config, format=format), [])


def slope_of(text, control):
  loaded = text.session.loaded
  return gcg.gradient(
    loaded.model.graphdef,
    loaded.model.config.vocab_size,
    text.session.params["model"],
    gcg.context_of(text),
    jnp.asarray(control),
  )


def loss_of(text, control):
  loaded = text.session.loaded
  loss, hit = jax.jit(gcg.loss, static_argnums=0)(
    loaded.model.graphdef, text.session.params["model"], gcg.context_of(text), jnp.asarray(control)
  )
  return float(loss), bool(hit)


def whole(text, control):
  """Token ids of prefix, prompt and target, as one text without caches."""
  session = text.session
  prefix = session.preference.prefix_ids if text.side == "evaluating" else session.prefix_ids
  return [*prefix, *text.before, *control, *text.rest, *text.after]


def plain_log_probs(text, control):
  """Log probabilities of the tokens of `text.after`, by reading everything at once."""
  ids = jnp.asarray(whole(text, control))
  model = text.session.loaded.model
  hidden, _ = forward(model.graphdef, model.params, ids, jnp.arange(len(ids)))
  logits = jax.nn.log_softmax(unembed(model.graphdef, model.params, hidden))
  n = len(text.after)
  return np.asarray(jnp.take_along_axis(logits[-n - 1 : -1], ids[-n:, None], axis=-1)[:, 0])


def test_loss_is_that_of_the_whole_text(session, other):
  for one in (session, other):
    control = gcg.tokens_of(one, CONTROL)
    target, *verdicts = gcg.texts_of(one, GOALS[0], CONTROL, verdict_weight=0.5)
    np.testing.assert_allclose(
      loss_of(target, control)[0], -plain_log_probs(target, control).mean(), rtol=1e-5
    )
    assert len(verdicts) == 2  # one for each order of the options
    for text, good in zip(verdicts, one.preference.good_ids, strict=True):
      assert text.after[-1] == good[0]
      np.testing.assert_allclose(
        loss_of(text, control)[0], -0.25 * plain_log_probs(text, control)[-1], rtol=1e-5
      )


def test_gradient_equals_finite_differences(session):
  for text in gcg.texts_of(session, GOALS[0], CONTROL, verdict_weight=1.0)[:2]:
    control = np.array(gcg.tokens_of(session, CONTROL))
    slope = np.asarray(slope_of(text, control))
    vocab = slope.shape[1]
    hot = np.eye(vocab, dtype=np.float32)[control]
    steepest = np.argsort(-np.abs(slope), axis=1)[:, :2]
    for place in range(len(control)):
      for token in steepest[place]:
        step = np.zeros_like(hot)
        step[place, token] = 1e-2
        ahead, behind = loss_of(text, hot + step)[0], loss_of(text, hot - step)[0]
        found = slope[place, token]
        assert abs((ahead - behind) / 2e-2 - found) < 2e-2 * np.abs(slope).max(), (place, token)


def test_gradient_equals_pytorchs(session, checkpoint):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
  table = theirs.get_input_embeddings().weight.detach()
  for text in gcg.texts_of(session, GOALS[0], CONTROL, verdict_weight=1.0)[:2]:
    control = gcg.tokens_of(session, CONTROL)
    ids = torch.tensor(whole(text, control))
    begin = len(ids) - len(text.after) - len(text.rest) - len(control)
    hot = torch.nn.functional.one_hot(torch.tensor(control), table.shape[0]).float()
    hot.requires_grad_()
    rows = table[ids]
    embeds = torch.cat([rows[:begin], hot @ table, rows[begin + len(control) :]])
    logits = theirs(inputs_embeds=embeds[None]).logits[0].log_softmax(-1)
    n = len(text.after)
    picked = logits[-n - 1 : -1].gather(1, ids[-n:, None])[:, 0]
    (-(picked * torch.tensor(text.weights)).sum()).backward()
    slope = np.asarray(slope_of(text, control))
    want = hot.grad.numpy()
    assert np.abs(slope - want).max() / np.abs(want).max() < 1e-4


def test_loss_falls_and_controls_keep_their_tokens(session):
  attack = gcg.Attack([session], GOALS[:1], CONTROL, SMALL)
  found = list(attack.run(seed=0))
  assert [one.step for one in found] == list(range(len(found)))
  assert min(one.loss for one in found[1:]) < 0.9 * found[0].loss
  text = gcg.texts_of(session, GOALS[0], CONTROL)[0]
  for one in found:
    ids = gcg.tokens_of(session, one.control)
    assert len(ids) == len(gcg.tokens_of(session, CONTROL))
    assert text.keeps(ids, f" {one.control}") and one.control.isprintable()
    np.testing.assert_allclose(loss_of(text, ids)[0], one.loss, rtol=1e-4)
  again = list(gcg.Attack([session], GOALS[:1], CONTROL, SMALL).run(seed=0))
  assert again == found


def test_universal_over_behaviours_and_models(session, other):
  attack = gcg.Attack([session, other], GOALS, CONTROL, SMALL)
  found = list(attack.run(seed=0))
  assert min(one.loss for one in found[1:]) < 0.9 * found[0].loss
  last = found[-1]
  total = sum(
    loss_of(text, gcg.tokens_of(session, last.control))[0]
    for goal in GOALS
    for one in (session, other)
    for text in gcg.texts_of(one, goal, last.control)
  )
  np.testing.assert_allclose(total / 2, last.loss, rtol=1e-4)  # mean over behaviours


def test_behaviours_are_taken_up_as_they_are_won(session, monkeypatch):
  config = dataclasses.replace(SMALL, progressive=True)
  attack = gcg.Attack([session], GOALS, CONTROL, config)
  monkeypatch.setattr(attack, "_step", lambda control, active, rng: (control, 1.0, True))
  found = list(attack.run(seed=0))
  assert [one.active for one in found] == [1, 1, 2] and found[-1].won
  high = dataclasses.replace(config, stop_loss=0.5)
  attack = gcg.Attack([session], GOALS, CONTROL, high)
  monkeypatch.setattr(attack, "_step", lambda control, active, rng: (control, 1.0, True))
  assert [one.active for one in attack.run(seed=0)] == [1] * 7  # never good enough


def test_a_model_of_another_tokenizer_is_refused(session):
  class Other:
    get_vocab = staticmethod(lambda: {"x": 0})

  loaded = dataclasses.replace(session.loaded, tokenizer=Other(), name="strange")
  strange = object.__new__(Session)
  strange.loaded = loaded
  with pytest.raises(AttackError, match="strange and .* different tokenizers"):
    gcg.Attack([session, strange], GOALS, CONTROL, SMALL)


@pytest.mark.parametrize("control", ["", " !", "! "])
def test_bad_controls_are_refused(session, control):
  with pytest.raises(AttackError, match="without space around it"):
    gcg.tokens_of(session, control)


def test_bad_numbers_are_refused():
  with pytest.raises(AttackError, match="gcg.steps=0"):
    gcg.Config(steps=0)
  with pytest.raises(AttackError, match="verdict_weight=-1"):
    gcg.Config(verdict_weight=-1)
