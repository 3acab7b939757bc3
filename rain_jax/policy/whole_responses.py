"""What RAIN is compared with: vanilla sampling and self-evaluated best-of-N.

Both use the search's model, caches, sampling and verdict template. The samples of one
prompt are rows of one query: they share the prompt's keys and values.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rain_jax import types
from rain_jax.models import NO_POSITION, forward
from rain_jax.parallel.batch_sharding import ROWS, WHOLE, over_data
from rain_jax.policy import context, decoding, sampling, self_evaluation
from rain_jax.policy.decoding import Decoding
from rain_jax.policy.language_model import LanguageModel
from rain_jax.policy.params import Params
from rain_jax.policy.prompts import Prompt, read_prompts
from rain_jax.text import scanner
from rain_jax.text.scanner import ScanState
from rain_jax.types import NO_TOKEN, Array


class Samples(flax.struct.PyTreeNode):
  """N whole responses for each of B prompts.

  Attributes:
    tokens: int32[B, N, R], the finishing token included, then NO_TOKEN.
    length: int32[B, N].
    finish: int32[B, N] why they ended.
    text: `ScanState` [B, N] after them.
    calls: int32[B] sequential model calls the prompt took part in.
    forwarded: int32[B] tokens forwarded for the prompt.
  """

  tokens: Array
  length: Array
  finish: Array
  text: ScanState
  calls: Array
  forwarded: Array


class Judged(NamedTuple):
  """Responses as the verdict reads them, where its model has another tokenizer.

  Attributes:
    tokens: int32[B, N, T].
    length: int32[B, N] how many are judged; negative where a response has no such tokens.
  """

  tokens: Array
  length: Array


class _Texts(NamedTuple):
  """Responses that are decoded, and the work done for them; fields as in `Samples`."""

  tokens: Array
  length: Array
  finish: Array
  text: ScanState
  calls: Array
  forwarded: Array

  @property
  def running(self) -> Array:
    """bool[B, N]: the response goes on."""
    return self.finish == types.RUNNING


@functools.partial(jax.jit, static_argnames=("lm", "samples", "mesh"))
def sample(
  lm: LanguageModel,
  params: Params,
  prompts: Prompt,
  keys: Array,
  first: Array | int,
  samples: int,
  mesh: Mesh | None = None,
) -> Samples:
  """Samples whole responses at temperature 1 (vanilla decoding, with its cache).

  Args:
    lm: the language model; only its model, limits, stop conditions and `sample_top_k` are used.
    params: from `params.make_params`.
    prompts: fields [B, ...].
    keys: [B] random keys.
    first: int32[] number of the first sample, so that more can be drawn later.
    samples: how many to draw for each prompt (N).
    mesh: to spread the prompts over, if any.
  """
  draw: Callable[..., Samples] = functools.partial(_sample, lm, samples)
  if mesh is not None:
    draw = over_data(draw, mesh, (WHOLE, ROWS, ROWS, WHOLE), ROWS)
  return draw(params, prompts, keys, first)


def _sample(
  lm: LanguageModel, samples: int, params: Params, prompts: Prompt, keys: Array, first: Array
) -> Samples:
  B, N, R = prompts.length.shape[0], samples, lm.max_response
  hidden, shared, end = read_prompts(lm, params, prompts, "proposing")
  hidden = jnp.take_along_axis(hidden, (prompts.length - 1)[:, None, None], axis=1)[:, 0]
  uniforms_of = lambda key, i: jax.random.uniform(jax.random.fold_in(key, i), (R,))
  uniforms = jax.vmap(lambda key: jax.vmap(lambda i: uniforms_of(key, i))(first + jnp.arange(N)))(
    keys
  )

  def draw(texts: _Texts, logits: Array, step: Array | int) -> _Texts:
    drawn, broken = sampling.sample(uniforms[..., step], logits, lm.search.sample_top_k)
    broken &= texts.running
    token = jnp.where(texts.running, drawn, NO_TOKEN)
    text = scanner.advance(params["tables"], texts.text, token)
    finish = jnp.where(texts.running, lm.finish(text, token), texts.finish)
    return texts._replace(
      tokens=texts.tokens.at[..., step].set(jnp.where(broken, NO_TOKEN, token)),
      length=texts.length + (texts.running & ~broken),
      finish=jnp.where(broken, types.FAILED, finish),
      text=text,
    )

  def last(texts: _Texts, step: Array) -> tuple[Array, Array]:
    token = jax.lax.dynamic_index_in_dim(texts.tokens, step - 1, 2, keepdims=False)
    return token, texts.running

  def extend(texts: _Texts, hidden: Array, step: Array) -> _Texts:
    running = texts.running
    texts = draw(texts, decoding.next_logits(lm, params, hidden), step)
    return texts._replace(
      calls=texts.calls + running.any(-1), forwarded=texts.forwarded + running.sum(-1)
    )

  zeros = jnp.zeros((B, N), jnp.int32)
  texts = _Texts(
    tokens=jnp.full((B, N, R), NO_TOKEN, jnp.int32),
    length=zeros,
    finish=zeros,
    text=scanner.empty((B, N)).replace(ends=jnp.repeat(prompts.ends[:, None], N, 1)),
    calls=jnp.ones(B, jnp.int32),
    forwarded=prompts.length,
  )
  logits = decoding.next_logits(lm, params, hidden)[:, None]
  texts = draw(texts, jnp.broadcast_to(logits, (B, N, logits.shape[-1])), 0)
  scratch = params["proposing_prefix"].zeros(B, N, slots=R)
  done = decoding.decode(
    lm,
    params,
    shared,
    end[:, None],
    Decoding(jnp.int32(1), texts, scratch),
    goes_on=lambda texts, step: texts.running,
    last=last,
    extend=extend,
  )
  return Samples(**done.texts._asdict())


@functools.partial(jax.jit, static_argnames=("lm", "mesh"))
def self_evaluate(
  lm: LanguageModel,
  params: Params,
  prompts: Prompt,
  samples: Samples,
  mesh: Mesh | None = None,
  texts: Judged | None = None,
) -> tuple[Array, Array, Array]:
  """The model's own verdict on whole responses (RAIN, section 3.2), as a method uses it.

  The verdicts are those that `params["override"]` lets count; `review` gives the model's own.

  Args:
    lm: the language model.
    params: from `params.make_params`.
    prompts: the conversations as the verdict reads them, fields [B, ...].
    samples: the responses.
    mesh: to spread the prompts over, if any; not with `texts`.
    texts: the responses in other tokens, see `Judged`.

  Returns:
    value float32[B, N] in [-1, 1], margins float32[B, N, readings] (how much more probable
    the good label is than the bad one), both NaN where the model's output was not finite,
    and int32[B] tokens forwarded.
  """
  read: Callable[..., tuple[Array, Array, Array]] = functools.partial(_overridden, lm, texts)
  if mesh is not None:
    read = over_data(read, mesh, (WHOLE, ROWS, ROWS), ROWS)
  return read(params, prompts, samples)


def _overridden(
  lm: LanguageModel, texts: Judged | None, params: Params, prompts: Prompt, samples: Samples
) -> tuple[Array, Array, Array]:
  value, margins, forwarded = _self_evaluate(lm, texts, params, prompts, samples)
  _, key = lm.judged(samples.text, samples.finish)
  counts = params["override"].apply
  return counts(value, key), counts(margins, key[..., None, :]), forwarded


@functools.partial(jax.jit, static_argnames=("lm", "mesh"))
def review(
  lm: LanguageModel,
  params: Params,
  proposing: Prompt,
  evaluating: Prompt,
  samples: Samples,
  mesh: Mesh | None = None,
  texts: Judged | None = None,
) -> tuple[Array, Array, Array]:
  """What the model says of whole responses: its verdict, and how probable it finds them.

  Args:
    lm: the language model.
    params: from `params.make_params`.
    proposing: the prompts as they were answered, fields [B, ...].
    evaluating: the conversations as the verdict reads them, fields [B, ...].
    samples: the responses.
    mesh: to spread the prompts over, if any; not with `texts`.
    texts: the responses in other tokens, see `Judged`.

  Returns:
    value float32[B, N] as of `self_evaluate`, but the model's own whatever `params["override"]` says,
    int32[B] tokens forwarded for it, and the log-likelihood
    float32[B, N] in nats of each response's tokens, its end mark included, by plain sampling at
    temperature 1; NaN where the model's output was not finite.
  """
  read: Callable[..., tuple[Array, Array, Array]] = functools.partial(_review, lm, texts)
  if mesh is not None:
    read = over_data(read, mesh, (WHOLE, ROWS, ROWS, ROWS), ROWS)
  return read(params, proposing, evaluating, samples)


def _review(
  lm: LanguageModel,
  texts: Judged | None,
  params: Params,
  proposing: Prompt,
  evaluating: Prompt,
  samples: Samples,
) -> tuple[Array, Array, Array]:
  value, _, forwarded = _self_evaluate(lm, texts, params, evaluating, samples)
  return value, forwarded, _log_likelihood(lm, params, proposing, samples)


def _log_likelihood(lm: LanguageModel, params: Params, prompts: Prompt, samples: Samples) -> Array:
  hidden, shared, end = read_prompts(lm, params, prompts, "proposing")
  first = jnp.take_along_axis(hidden, (prompts.length - 1)[:, None, None], axis=1)
  B, N, R = samples.tokens.shape
  at = jnp.arange(R)
  drawn = at < samples.length[..., None]
  hidden, _ = forward(
    lm.graphdef,
    params["model"],
    jnp.maximum(samples.tokens, 0),
    jnp.where(drawn, end[:, None, None] + at, NO_POSITION),
    shared,
  )
  first = jnp.broadcast_to(first[:, None], (B, N, 1, first.shape[-1]))
  before = jnp.concatenate([first, hidden[:, :, :-1]], axis=2)

  def add(total: Array, step: Array) -> tuple[Array, None]:
    # One token of each text at a time: all logits at once would take far more memory than the model.
    token = jnp.maximum(jnp.take(samples.tokens, step, axis=-1), 0)
    logits = decoding.logits(lm, params, jnp.take(before, step, axis=2))
    chance = sampling.chosen(logits, token[..., None]).log_probabilities[..., 0]
    return total + jnp.where(jnp.take(drawn, step, axis=-1), chance, 0.0), None

  total, _ = jax.lax.scan(add, jnp.zeros((B, N), jnp.float32), at)
  return jnp.where(samples.finish == types.FAILED, jnp.nan, total)


def _self_evaluate(
  lm: LanguageModel, texts: Judged | None, params: Params, prompts: Prompt, samples: Samples
) -> tuple[Array, Array, Array]:
  _, shared, end = read_prompts(lm, params, prompts, "evaluating")
  if texts is None:
    texts = Judged(samples.tokens, lm.judged(samples.text, samples.finish)[0])
  tokens, judged = texts.tokens, jnp.maximum(texts.length, 0)
  R = tokens.shape[-1]
  suffixes = self_evaluation.Suffixes.of(lm.preference, R)
  at = jnp.arange(R)
  in_text = at < judged[..., None]
  positions, tokens, valid = suffixes.after_text(
    jnp.broadcast_to(end[:, None, None] + at, tokens.shape),
    self_evaluation.spoken(lm.preference, tokens),
    in_text,
    end[:, None] + judged,
    jnp.ones(judged.shape, bool),
  )
  hidden, _ = forward(
    *context.reader(lm, params, "evaluating"),
    jnp.maximum(tokens, 0),
    jnp.where(valid, positions, NO_POSITION),
    shared,
    suffixes.mask(judged.shape),
  )
  logits = decoding.logits(lm, params, hidden[:, :, suffixes.last], "evaluating")
  margins = self_evaluation.margins(lm.preference, logits, params["correction"])
  failed = ((samples.finish == types.FAILED) | (texts.length < 0))[..., None]
  margins = jnp.where(failed, jnp.nan, margins)
  value = self_evaluation.values(margins, lm.soft_verdicts)
  return value, margins, prompts.length + valid.sum((1, 2))
