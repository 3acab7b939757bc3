"""Draws follow their probabilities, to the last token and without ever leaving them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax.policy import sampling
from tests.helpers import scripts


@pytest.mark.parametrize("vocab", [5, 128, 1000])
def test_tokens_come_as_often_as_their_probabilities_say(vocab):
  rng = np.random.default_rng(vocab)
  logits = jnp.asarray(rng.normal(0, 2, vocab), jnp.float32)
  expected = np.asarray(jax.nn.softmax(logits))
  count = 40_000
  # Evenly spread numbers: every token gets its share, up to one number per block and token.
  uniform = (jnp.arange(count) + 0.5) / count
  tokens, broken = sampling.categorical(uniform, jnp.broadcast_to(logits, (count, vocab)))
  share = np.bincount(np.asarray(tokens), minlength=vocab) / count
  np.testing.assert_allclose(share, expected, atol=3 / count)
  assert not broken.any()


def test_impossible_tokens_are_never_drawn():
  logits = jnp.full(300, -jnp.inf).at[jnp.array([0, 130, 131, 290])].set(0.0)
  uniform = jnp.concatenate([jnp.linspace(0, 1, 1001)[:-1], jnp.array([1 - 2.0**-24, 1.0])])
  tokens = np.asarray(sampling.categorical(uniform, jnp.broadcast_to(logits, (1002, 300)))[0])
  assert set(tokens.tolist()) == {0, 130, 131, 290}
  assert (np.diff(tokens) >= 0).all()


def test_a_draw_tells_where_in_its_weight_it_fell():
  index, inside = sampling.draw(jnp.array([0.0, 1.0, 3.0, 0.0]), jnp.float32(0.625))
  assert int(index) == 2 and float(inside) == pytest.approx(0.5)


def test_filtered_probabilities_are_those_of_the_kept_tokens():
  logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
  tokens, log_probs, broken = sampling.filtered(logits, 1.0, 2)
  assert tokens.tolist() == [1, 3] and not broken
  np.testing.assert_allclose(np.exp(log_probs), [4 / 7, 3 / 7], rtol=1e-6)
  hot, log_probs, _ = sampling.filtered(logits, 2.0, 9)
  assert sorted(hot.tolist()) == [0, 1, 2, 3]
  root = np.sqrt([0.4, 0.3, 0.2, 0.1])
  np.testing.assert_allclose(np.exp(log_probs), root / root.sum(), rtol=1e-6)


def test_samples_of_the_most_probable_tokens_keep_their_shares():
  logits = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3])), (1000, 4))
  uniform = (jnp.arange(1000) + 0.5) / 1000
  share = lambda k: np.bincount(sampling.sample(uniform, logits, k)[0], minlength=4) / 1000
  np.testing.assert_allclose(share(2), [0, 4 / 7, 0, 3 / 7], atol=2e-3)
  np.testing.assert_allclose(share(0), [0.1, 0.4, 0.2, 0.3], atol=2e-3)
  assert sampling.sample(uniform[:1], jnp.full((1, 4), jnp.nan), 2)[1].all()


@pytest.mark.parametrize("size,k", [(128 * 7, 3), (128 * 7 + 1, 3), (1000, 2)])
def test_the_largest_of_many_values_are_found_by_blocks(size, k):
  rng = np.random.default_rng(size)
  apart = rng.permutation(size).astype(np.float32)
  tied = rng.integers(0, 4, size).astype(np.float32)  # of equal values the first
  few = np.full(size, -np.inf, np.float32)
  few[[5, size - 1]] = 1.0
  values = np.stack([apart, tied, few, np.zeros(size, np.float32)])
  found, places = sampling.largest(jnp.asarray(values), k)
  order = np.argsort(-values, axis=-1, kind="stable")[:, :k]
  np.testing.assert_array_equal(places, order)
  np.testing.assert_array_equal(found, np.take_along_axis(values, order, axis=-1))


def test_tokens_that_were_said_are_penalised_once():
  logits = jnp.array([[2.0, -1.0, 0.5, 0.0], [2.0, -1.0, 0.5, 3.0]])
  said = jnp.array([[0, 1, 0, -1], [-1, 3, -1, -1]])
  found = sampling.penalised(logits, said, 2.0)
  np.testing.assert_allclose(found, [[1.0, -2.0, 0.5, 0.0], [2.0, -1.0, 0.5, 1.5]])
  assert sampling.penalised(logits, said, 1.0) is logits


def test_a_mesh_that_splits_the_vocabulary_draws_the_same_tokens():
  scripts.on_eight_devices("policy/sampling_sharded.py")
