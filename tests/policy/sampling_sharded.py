"""Draws from a vocabulary that a mesh splits; run by sampling_test.py in a process of its own."""

import conftest  # noqa: F401, the suite's compilation cache
import jax
import jax.numpy as jnp
import numpy as np

from rain_jax.experiments.compiled import hlo
from rain_jax.models.sharding import make_mesh
from rain_jax.parallel.batch_sharding import DATA, ROWS, over_data
from rain_jax.policy import sampling

ROWS_EACH, K, SAID = 32, 15, 6


def draws(logits, uniform, said):
  """Everything that is drawn or looked up, of logits [rows, vocab]."""
  after = sampling.penalised(logits, said, 1.5)
  tokens, log_probs, broken = sampling.filtered(after, 0.7, K)
  token, failed = sampling.categorical(uniform, after)
  labels = jnp.broadcast_to(jnp.array([0, 3, logits.shape[-1] - 1]), (logits.shape[0], 3))
  found = sampling.chosen(logits, labels)
  return tokens, log_probs, broken, token, failed, found.probabilities, found.log_probabilities


def main():
  assert jax.device_count() == 8, jax.devices()
  # Eight shards of whole blocks; of blocks and a rest; and a vocabulary that no mesh can split.
  for vocab, tensor in ((2048, 8), (2000, 4), (2001, 4)):
    mesh = make_mesh(tensor, 8 // tensor, kv_heads=2)
    rng = np.random.default_rng(vocab)
    rows = ROWS_EACH * mesh.shape[DATA]
    logits = rng.normal(0, 3, (rows, vocab)).astype(np.float32)
    logits[1] = rng.integers(0, 3, vocab)  # many of equal probability
    logits[2] = 0.0
    logits[3, [5, vocab - 1]] = 40.0
    logits[4, vocab // 2], logits[5, 7], logits[6, vocab - 1] = np.nan, np.inf, -np.inf
    said = rng.integers(-1, vocab, (rows, SAID))
    uniform = rng.random(rows, np.float32)
    want = jax.jit(draws)(logits, uniform, said)
    split = (
      jax.jit(over_data(draws, mesh, (ROWS,) * 3, ROWS)).lower(logits, uniform, said).compile()
    )
    got = split(logits, uniform, said)
    fine = np.setdiff1d(np.arange(rows), (4, 5, 6))
    for name, one, other in zip(
      "tokens log_probs broken token failed probabilities log_probabilities".split(), want, got
    ):
      one, other = np.asarray(one), np.asarray(other)
      if name in ("broken", "failed"):
        np.testing.assert_array_equal(np.flatnonzero(one), (4, 5, 6))
        np.testing.assert_array_equal(other, one)
      elif "prob" in name:
        np.testing.assert_allclose(other[fine], one[fine], rtol=3e-6, atol=1e-6, err_msg=name)
        if name != "log_probs":
          assert np.isnan(one[4:7]).all() and np.isnan(other[4:7]).all()
      elif name == "token":  # where a number falls on the border of two, rounding decides
        assert np.mean(other[fine] == one[fine]) >= 0.97, vocab
      else:
        np.testing.assert_array_equal(other[fine], one[fine], err_msg=f"{name} of {vocab}")

    kinds = [c.kind for c in hlo.collectives(hlo.parse(split.as_text()), 8)]
    print(vocab, sorted(kinds))
    assert "collective-permute" not in kinds
    assert len(kinds) <= 4 and (not kinds) == (vocab == 2001)
  print("all checks passed")


if __name__ == "__main__":
  main()
