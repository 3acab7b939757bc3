"""Drawing tokens from logits by uniform numbers.

Callers draw all uniform numbers of a text at once: a random generator in a decoding loop
costs as much as a small model's layer.

Over a mesh that splits the vocabulary (`decoding.logits`), each shard looks at its own part of
it, and what it found is exchanged: a few numbers of each row, not the logits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rain_jax.models.sharding import Rules, split
from rain_jax.types import Array

_BLOCK = 128  # words of the vocabulary searched at once, in `categorical` and `largest`


class _Part(NamedTuple):
  """Logits of consecutive tokens, the whole vocabulary or a shard of it.

  logits: float[..., tokens].
  first: number of the first token, int or int32[].
  axes: the mesh axes over which the vocabulary is split, none of which may be left out.
  """

  logits: Array
  first: Array | int
  axes: tuple[str, ...]

  def gathered(self, found: Array) -> Array:
    """What each shard found, float32[..., n], as float32[..., shards, n] in the order of tokens."""
    if not self.axes:
      return found[..., None, :]
    return jnp.moveaxis(jax.lax.all_gather(found, self.axes), 0, -2)

  def chosen(self, tokens: Array) -> tuple[Array, Array]:
    """Places of tokens int32[...] in this part, and which of them are in it."""
    at = tokens - self.first
    inside = (at >= 0) & (at < self.logits.shape[-1])
    return jnp.where(inside, at, 0), inside


def vocabulary_axes(vocab: int) -> tuple[str, ...]:
  """The mesh axes over which the logits of a vocabulary are split where this is traced."""
  mesh = jax.sharding.get_abstract_mesh()
  names = None if mesh.empty else split(vocab, Rules().vocab, mesh)
  names = (names,) if isinstance(names, str) else names or ()
  return names if any(mesh.shape[name] > 1 for name in names) else ()


def _by_parts(fn: Callable, logits: Array, *others: Array, whole: bool = True) -> Any:
  """`fn(part, *others)`, once for each shard; its results are the same on all, or not `whole`."""
  axes = vocabulary_axes(logits.shape[-1])
  if not axes:
    return fn(_Part(logits, 0, ()), *others)
  apart = PartitionSpec(*(None,) * (logits.ndim - 1), axes)

  def one(logits: Array, *others: Array) -> Any:
    return fn(_Part(logits, jax.lax.axis_index(axes) * logits.shape[-1], axes), *others)

  return jax.shard_map(
    one,
    in_specs=(apart, *(PartitionSpec(),) * len(others)),
    out_specs=PartitionSpec() if whole else apart,
    axis_names=set(axes),
    check_vma=False,
  )(logits, *others)


def filtered(logits: Array, temperature: float, top_k: int) -> tuple[Array, Array, Array]:
  """The `top_k` most probable tokens and their log probabilities among themselves.

  Args:
    logits: float[..., vocab].
    temperature: above 0.
    top_k: k, at most the vocabulary's size is used.

  Returns:
    tokens int32[..., k], most probable first, of equal ones the lowest number first; their log
    probabilities float32[..., k]; and bool[...] where nothing can be drawn, logits being not finite.
  """

  def best(part: _Part) -> tuple[Array, Array, Array]:
    own = min(top_k, part.logits.shape[-1])
    values, tokens = largest(part.logits.astype(jnp.float32) / temperature, own)
    broken = not_finite(part.logits)
    if part.axes:
      # As floats, which numbers of tokens fit into: one exchange.
      places = (part.first + tokens).astype(jnp.float32)
      found = part.gathered(jnp.concatenate([values, places, broken[..., None]], axis=-1))
      joined = lambda a: a.reshape(*a.shape[:-2], -1)
      k = min(top_k, logits.shape[-1])
      values, at = jax.lax.top_k(joined(found[..., :own]), k)
      tokens = jnp.take_along_axis(joined(found[..., own:-1]), at, axis=-1).astype(jnp.int32)
      broken = jnp.any(found[..., -1] > 0, axis=-1)
    return tokens, jax.nn.log_softmax(values, axis=-1), broken

  return _by_parts(best, logits)


def largest(values: Array, k: int) -> tuple[Array, Array]:
  """The k largest float[..., k] of values float[..., n], and their places; as `jax.lax.top_k`.

  What is among the k largest lies in one of the k blocks with the largest maxima (of equal ones
  the first, there as here). A TPU sorts all that it is to find the largest of: so it sorts the
  blocks' maxima, and then k blocks, in place of the vocabulary.
  """
  count = -(-values.shape[-1] // _BLOCK)
  if count <= 2 * k:
    return jax.lax.top_k(values, k)
  blocks = _blocks(values, -jnp.inf)
  _, best = jax.lax.top_k(blocks.max(-1), k)
  best = jnp.sort(best, axis=-1)  # so that of equal values the first comes first
  near = jnp.take_along_axis(blocks, best[..., None], axis=-2)
  found, at = jax.lax.top_k(near.reshape(*values.shape[:-1], k * _BLOCK), k)
  return found, jnp.take_along_axis(best, at // _BLOCK, axis=-1) * _BLOCK + at % _BLOCK


def penalised(logits: Array, said: Array, penalty: float) -> Array:
  """Logits in which tokens that were said are less probable (CTRL, arXiv 1909.05858, section 4.1).

  A positive logit is divided by the penalty, a negative one multiplied with it; how often a token
  was said does not count.

  Args:
    logits: float[..., vocab].
    said: int32[..., T] tokens, negative where there is none.
    penalty: 1 or more; 1 changes nothing.
  """
  if penalty == 1.0:
    return logits

  def lowered(part: _Part, said: Array) -> Array:
    at, inside = part.chosen(said)
    found = jnp.take_along_axis(part.logits, at, axis=-1)
    found = jnp.where(found > 0, found / penalty, found * penalty)
    at = jnp.where(inside, at, part.logits.shape[-1])
    return jnp.put_along_axis(part.logits, at, found, axis=-1, inplace=False, mode="drop")

  return _by_parts(lowered, logits, said, whole=False)


def draw(weights: Array, uniform: Array) -> tuple[Array, Array]:
  """An index in proportion to its weight.

  Args:
    weights: float32[..., k], none negative, one or more above 0.
    uniform: float32[...] in [0, 1).

  Returns:
    index int32[...], and where in its weight the number fell, float32[...] in [0, 1].
  """
  cumulative = jnp.cumsum(weights, axis=-1)
  total = cumulative[..., -1]
  # Below the total even after rounding, so that no weight of 0 at the end is drawn.
  target = jnp.minimum(uniform * total, total * (1 - 2.0**-23))[..., None]
  index = jnp.sum(cumulative <= target, axis=-1, dtype=jnp.int32)
  index = jnp.minimum(index, weights.shape[-1] - 1)
  end, weight = (jnp.take_along_axis(a, index[..., None], axis=-1) for a in (cumulative, weights))
  inside = (target - (end - weight)) / jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
  return index, jnp.clip(inside[..., 0], 0, 1)


def categorical(uniform: Array, logits: Array) -> tuple[Array, Array]:
  """A token from the whole vocabulary, int32[...], and where logits are not finite, bool[...].

  First a block of the vocabulary is drawn, then a token in it, with what the number `uniform`
  leaves over. Shards exchange the weights of their blocks, so that all draw the same one; then one
  of them finds the token. They add up other blocks than one device does, from weights that are
  relative to their own largest: where `uniform` falls on the border of two tokens, rounding decides.

  Args:
    uniform: float32[...] in [0, 1).
    logits: float[..., vocab].
  """

  def drawn(part: _Part, uniform: Array) -> tuple[Array, Array]:
    values = part.logits.astype(jnp.float32)
    highest = values.max(-1, keepdims=True)
    possible = jnp.maximum(highest, jnp.finfo(jnp.float32).min)  # a shard may have no token to draw
    blocks = _blocks(jnp.exp(values - possible), 0.0)
    sums, broken = blocks.sum(-1), not_finite(part.logits)
    count = sums.shape[-1]
    if part.axes:
      found = part.gathered(jnp.concatenate([sums, highest, broken[..., None]], axis=-1))
      highest = found[..., -2:-1]
      sums = found[..., :-2] * jnp.exp(highest - highest.max(-2, keepdims=True))
      sums = sums.reshape(*sums.shape[:-2], -1)
      broken = jnp.any(found[..., -1] > 0, axis=-1)
    block, rest = draw(sums, uniform)
    at = block - part.first // part.logits.shape[-1] * count
    inside = (at >= 0) & (at < count)
    at = jnp.where(inside, at, 0)
    within = jnp.take_along_axis(blocks, at[..., None, None], axis=-2)[..., 0, :]
    token = part.first + at * _BLOCK + draw(within, rest)[0]
    if part.axes:
      token = jax.lax.psum(jnp.where(inside, token, 0), part.axes)
    return token, broken

  return _by_parts(drawn, logits, uniform)


def sample(uniform: Array, logits: Array, top_k: int) -> tuple[Array, Array]:
  """As `categorical`, from the `top_k` most probable tokens; 0 is the whole vocabulary."""
  if not top_k:
    return categorical(uniform, logits)
  tokens, log_probs, broken = filtered(logits, 1.0, top_k)
  index, _ = draw(jnp.exp(log_probs), uniform)
  return jnp.take_along_axis(tokens, index[..., None], axis=-1)[..., 0], broken


class Chosen(NamedTuple):
  """What the logits say of a few tokens; NaN where not all of a row's logits are finite.

  logits: float32[..., n] of the tokens.
  highest: float32[..., 1] the largest logit of all tokens.
  total: float32[..., 1] sum of exp(logit - highest) over all tokens.
  """

  logits: Array
  highest: Array
  total: Array

  @property
  def probabilities(self) -> Array:
    """float32[..., n] of the tokens among all."""
    return jnp.exp(self.logits - self.highest) / self.total

  @property
  def log_probabilities(self) -> Array:
    """float32[..., n], in nats."""
    return self.logits - (self.highest + jnp.log(self.total))


def chosen(logits: Array, tokens: Array) -> Chosen:
  """Logits float[..., vocab] of tokens int32[..., n], 0 or more."""

  def look_up(part: _Part, tokens: Array) -> Chosen:
    values = part.logits.astype(jnp.float32)
    at, inside = part.chosen(tokens)
    own = jnp.where(inside, jnp.take_along_axis(values, at, axis=-1), -jnp.inf)
    highest = jnp.where(not_finite(values), jnp.nan, values.max(-1))[..., None]
    total = jnp.exp(values - highest).sum(-1, keepdims=True)
    if part.axes:
      found = part.gathered(jnp.concatenate([own, highest, total], axis=-1))
      own, each = found[..., :-2].max(-2), found[..., -2]
      highest = each.max(-1, keepdims=True)
      total = jnp.sum(found[..., -1] * jnp.exp(each - highest), axis=-1, keepdims=True)
    return Chosen(jnp.where(jnp.isnan(highest), jnp.nan, own), highest, total)

  return _by_parts(look_up, logits, tokens)


def not_finite(logits: Array) -> Array:
  """Rows of logits float[..., vocab] in which nothing can be drawn, bool[...]."""
  return ~jnp.all(jnp.isfinite(logits), axis=-1)


def _blocks(values: Array, after: float) -> Array:
  """Values float[..., n] as [..., blocks, _BLOCK], filled up with `after`."""
  pad = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % _BLOCK)]
  padded = jnp.pad(values, pad, constant_values=after)
  return padded.reshape(*values.shape[:-1], -1, _BLOCK)
