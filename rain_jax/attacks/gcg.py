"""Greedy Coordinate Gradient (Zou et al., arXiv 2307.15043) on the project's own models.

A *control* of C tokens stands after a request. One step takes the gradient of the loss by every
token of the vocabulary at every place, draws candidates that differ from the control in one of the
`top_k` most promising tokens of a place, reads them all, and goes on with the best.

What stands before the control is read once and kept as a segment that all candidates share. A
candidate counts only if its text becomes its own tokens again: an attack is text in the end.

The loss is that of a `Text`, or the sum over several: one behaviour or many (universal), one model
or many (transfer), the response alone or also the verdict on it (adaptive).
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from rain_jax.attacks import AttackError, Behaviour
from rain_jax.methods.session import Session
from rain_jax.models import NO_POSITION, Segment, forward, unembed
from rain_jax.policy.context import prefix as fixed_prefix
from rain_jax.policy.params import Side
from rain_jax.text import control, encoding
from rain_jax.types import Array, ranges


@dataclasses.dataclass(frozen=True)
class Config:
  """Numbers of an attack; the defaults are those of the attack's published code.

  Attributes:
    candidates: read in a step (its batch size).
    top_k: most promising tokens of a place that candidates draw from.
    steps: at most.
    chunk: candidates read by one call; bounds memory, changes nothing else.
    verdict_weight: weight of the verdict's good label beside the target's mean loss; 0 leaves the
      verdict alone, above it the attack is adaptive.
    progressive: several behaviours are taken up one by one, each when those before are won.
    stop_loss: a control is good enough only with a loss per text at or below this.
  """

  candidates: int = 512
  top_k: int = 256
  steps: int = 500
  chunk: int = 64
  verdict_weight: float = 0.0
  progressive: bool = True
  stop_loss: float = math.inf

  def __post_init__(self):
    wrong = ranges.fault(ranges.GCG, vars(self), "gcg.")
    if wrong:
      raise AttackError(wrong)


@dataclasses.dataclass(frozen=True)
class Text:
  """A text with a place for the control, as one model reads it.

  Attributes:
    session: whose model and tokenizer.
    side: "proposing" or "evaluating", which prefix stands before it.
    goal: the request, in whose prompt the control stands.
    before: token ids between prefix and control.
    rest: token ids of the prompt after the control.
    after: token ids after the prompt.
    weights: of the loss -log p of each token in `after`.
  """

  session: Session
  side: Side
  goal: str
  before: tuple[int, ...]
  rest: tuple[int, ...]
  after: tuple[int, ...]
  weights: tuple[float, ...]

  def keeps(self, control: Sequence[int], text: str) -> bool:
    """Whether the prompt with the control's text has the control's tokens in it."""
    ids = self.session.prompt_ids(self.side, self.goal + text)
    return list(ids) == [*self.before, *control, *self.rest]


def texts_of(
  session: Session, behaviour: Behaviour, control: str, verdict_weight: float = 0.0
) -> list[Text]:
  """The texts whose losses add up to that of a behaviour.

  Args:
    session: the model, its format and preference.
    behaviour: what the control is to bring about.
    control: text of the control to begin with; see `tokens_of`.
    verdict_weight: see `Config`.

  Returns:
    The prompt with the target after it, whose loss is the mean over the target's tokens; and, with
    a weight above 0, for each reading of the verdict the conversation, the target, the question and
    the good label, of which only the label counts.

  Raises:
    AttackError: the control has other tokens in its prompt than alone.
  """
  tokenizer = session.loaded.tokenizer
  ids = tokens_of(session, control)
  # A response follows its prompt by a space, unless the format puts white space there itself.
  _, last = session.config.format.encode(tokenizer, behaviour.goal)
  space = "" if last.isspace() else " "
  target = encoding.encode_continuation(tokenizer, space + behaviour.target)

  def text(side, after, weights):
    whole = list(session.prompt_ids(side, f"{behaviour.goal} {control}"))
    places = [i for i in range(len(whole)) if whole[i : i + len(ids)] == ids]
    if not places:
      raise AttackError(
        f"gcg.control={control!r} becomes other tokens after {behaviour.goal[-30:]!r}; choose"
        " another text to begin with."
      )
    at = places[-1]
    before, rest = tuple(whole[:at]), tuple(whole[at + len(ids) :])
    return Text(session, side, behaviour.goal, before, rest, tuple(after), tuple(weights))

  texts = [text("proposing", target, [1 / len(target)] * len(target))]
  if verdict_weight:
    preference = session.preference
    share = verdict_weight / len(preference.suffix_ids)
    for suffix, good in zip(preference.suffix_ids, preference.good_ids, strict=True):
      after = [*target, *suffix, good[0]]
      texts.append(text("evaluating", after, [0.0] * (len(after) - 1) + [share]))
  return texts


def tokens_of(session: Session, control: str) -> list[int]:
  """Token ids of a control's text as it stands after a space. Raises AttackError if it has none."""
  if not control or control != control.strip():
    raise AttackError(f"gcg.control={control!r}: expected text without space around it.")
  return encoding.encode_continuation(session.loaded.tokenizer, f" {control}")


# -- the loss ----------------------------------------------------------------------------


class Context(flax.struct.PyTreeNode):
  """A `Text` on the device; padded, so that few programs serve all.

  Attributes:
    segments: prefix and text before the control, keys and values without batch axes.
    tokens: int32[X] tokens after the control.
    weights: float32[X] of their losses.
    length: int32[] how many tokens are no padding.
    start: int32[] position of the control's first token.
  """

  segments: list[Segment]
  tokens: Array
  weights: Array
  length: Array
  start: Array


def context_of(text: Text) -> Context:
  """Reads what stands before the control."""
  session = text.session
  prefix, shift = fixed_prefix(session.params, text.side)
  before = _padded(text.before, 32)
  at = np.arange(before.size)
  positions = jnp.asarray(np.where(at < len(text.before), at + shift, NO_POSITION), jnp.int32)
  new = _read(session.loaded.model.graphdef, session.params["model"], before, positions, prefix)
  after = [*text.rest, *text.after]
  weights = _padded([0.0] * len(text.rest) + list(text.weights), 8, np.float32)
  return Context(
    segments=[*prefix, new],
    tokens=jnp.asarray(_padded(after, 8)),
    weights=jnp.asarray(weights),
    length=jnp.int32(len(after)),
    start=jnp.int32(shift + len(text.before)),
  )


def _padded(values: Sequence[Any], multiple: int, dtype: Any = np.int32) -> np.ndarray:
  out = np.zeros(multiple * max(1, math.ceil(len(values) / multiple)), dtype)
  out[: len(values)] = values
  return out


@functools.partial(jax.jit, static_argnums=0)
def _read(graphdef, params, tokens, positions, prefix):
  return forward(graphdef, params, tokens, positions, prefix)[1].segment(positions)


def loss(graphdef: Any, params: Any, context: Context, control: Array) -> tuple[Array, Array]:
  """The weighted loss of one control.

  Args:
    graphdef: structure of the model.
    params: of the model.
    context: the text around the control.
    control: int32[C], or float[C, vocab] mixtures of tokens.

  Returns:
    float32[] sum of weights times -log p, and bool[] whether each token of a weight is the most
    probable one.
  """
  C, X = control.shape[0], context.tokens.shape[0]
  after = context.tokens
  if control.ndim == 2:
    after = jax.nn.one_hot(after, control.shape[1], dtype=control.dtype)
  at = jnp.arange(C + X)
  positions = jnp.where(at < C + context.length, at + context.start, NO_POSITION)
  tokens = jnp.concatenate([control, after])
  hidden, _ = forward(graphdef, params, tokens, positions, context.segments)
  logits = unembed(graphdef, params, hidden[C - 1 : -1])
  picked = jnp.take_along_axis(logits, context.tokens[:, None], axis=-1)[:, 0]
  losses = jax.nn.logsumexp(logits, axis=-1) - picked
  won = (picked >= logits.max(-1)) | (context.weights == 0)
  return jnp.sum(context.weights * losses), won.all()


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradient(
  graphdef: Any, vocab_size: int, params: Any, context: Context, control: Array
) -> Array:
  """Derivative of the loss by every token at every place, float32[C, vocab]; control int32[C]."""
  one_hot = jax.nn.one_hot(
    control, vocab_size, dtype=jax.tree.leaves(context.segments[-1].keys)[0].dtype
  )
  of = lambda soft: loss(graphdef, params, context, soft)[0]
  return jax.grad(of)(one_hot).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def losses(
  graphdef: Any, chunk: int, params: Any, context: Context, controls: Array
) -> tuple[Array, Array]:
  """`loss` of each of S controls int32[S, C], `chunk` at a time: float32[S] and bool[S]."""
  one = functools.partial(loss, graphdef, params, context)
  return jax.lax.map(one, controls, batch_size=min(chunk, controls.shape[0]))


@functools.partial(jax.jit, static_argnums=1)
def promising(slope: Array, top_k: int, allowed: Array) -> Array:
  """The `top_k` allowed tokens of steepest descent at each place, int32[C, k]."""
  return jax.lax.top_k(jnp.where(allowed, -slope, -jnp.inf), top_k)[1]


def allowed_tokens(session: Session) -> np.ndarray:
  """bool[vocab]: tokens that are printable ASCII text, so that a control can be typed."""
  tokenizer, size = session.loaded.tokenizer, session.loaded.model.config.vocab_size
  not_text = set(control.control_ids(tokenizer))
  known = [i for i in range(min(size, len(tokenizer))) if i not in not_text]
  texts = tokenizer.batch_decode([[i] for i in known], clean_up_tokenization_spaces=False)
  allowed = np.zeros(size, bool)
  allowed[known] = [text != "" and text.isascii() and text.isprintable() for text in texts]
  return allowed


# -- the search --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Found:
  """A control and what it does.

  Attributes:
    step: steps taken.
    control: its text, without the space before it.
    loss: mean over the behaviours taken up, summed over the models.
    active: how many behaviours are taken up.
    won: every target of theirs is what the model would greedily say, and the loss is low enough.
  """

  step: int
  control: str
  loss: float
  active: int
  won: bool


class Attack:
  """Descent on one control for behaviours against models.

  Args:
    sessions: the models; one tokenizer for all of them.
    behaviours: in the order in which they are taken up.
    control: text to begin with.
    config: numbers of the attack.

  Raises:
    AttackError: different tokenizers, or a control that does not fit.
  """

  def __init__(
    self,
    sessions: Sequence[Session],
    behaviours: Sequence[Behaviour],
    control: str,
    config: Config,
  ):
    first = sessions[0].loaded
    for session in sessions[1:]:
      if session.loaded.tokenizer.get_vocab() != first.tokenizer.get_vocab():
        raise AttackError(
          f"models: {session.loaded.name} and {first.name} have different tokenizers; attack"
          " models that share one."
        )
    self.config = config
    self._texts = [
      [text for s in sessions for text in texts_of(s, behaviour, control, config.verdict_weight)]
      for behaviour in behaviours
    ]
    self._contexts = [[context_of(text) for text in texts] for texts in self._texts]
    self._tokenizer = first.tokenizer
    self._start = tokens_of(sessions[0], control)
    self._allowed = jnp.asarray(allowed_tokens(sessions[0]))
    self._top_k = min(config.top_k, int(self._allowed.sum()))

  def run(self, seed: int, done: int = 0, active: int = 0) -> Iterator[Found]:
    """Takes steps until the attack is won or out of steps; yields after each of them.

    Args:
      seed: of the candidates.
      done: steps that were taken before, when an attack goes on from their control.
      active: behaviours that had been taken up.
    """
    control = list(self._start)
    everyone = len(self._texts)
    active = active or (1 if self.config.progressive else everyone)
    loss, hit = self._losses(np.array([control]), active)
    yield self._found(done, control, loss[0], active, hit[0])
    for step in range(done + 1, self.config.steps + 1):
      rng = np.random.default_rng((seed, step))
      control, loss, hit = self._step(control, active, rng)
      found = self._found(step, control, loss, active, hit)
      yield found
      if found.won and active == everyone:
        return
      active += found.won

  def _found(self, step, control, loss, active, hit) -> Found:
    loss = float(loss) / active
    won = bool(hit) and loss <= self.config.stop_loss
    return Found(step, self._text(0, control)[1:], loss, active, won)

  def _step(self, control, active, rng):
    tokens = np.asarray(promising(self._slope(control, active), self._top_k, self._allowed))
    candidates = self._candidates(control, tokens, rng)
    if not candidates:
      candidates = [control]
    size = self.config.candidates
    # One program serves all steps: copies of the first candidate fill the batch up.
    rows = np.array(candidates + [candidates[0]] * (size - len(candidates)))
    loss, hit = self._losses(rows, active)
    for i in np.argsort(loss, kind="stable"):
      if all(self._keeps(text, rows[i]) for texts in self._texts for text in texts):
        return rows[i].tolist(), loss[i], hit[i]
    loss, hit = self._losses(np.array([control]), active)
    return control, loss[0], hit[0]

  def _slope(self, control, active) -> Array:
    """Gradient summed over texts; several models count alike at every place."""
    slopes: dict[int, Array] = {}
    for text, context in self._active(active):
      loaded = text.session.loaded
      slope = gradient(
        loaded.model.graphdef,
        loaded.model.config.vocab_size,
        text.session.params["model"],
        context,
        jnp.asarray(control),
      )
      slopes[id(text.session)] = slopes.get(id(text.session), 0) + slope
    if len(slopes) == 1:
      return next(iter(slopes.values()))
    return sum(s / jnp.linalg.norm(s, axis=-1, keepdims=True) for s in slopes.values())

  def _losses(self, controls: np.ndarray, active: int) -> tuple[np.ndarray, np.ndarray]:
    total, won = np.zeros(len(controls)), np.ones(len(controls), bool)
    for text, context in self._active(active):
      model = text.session.loaded.model
      loss, hit = losses(
        model.graphdef,
        self.config.chunk,
        text.session.params["model"],
        context,
        jnp.asarray(controls),
      )
      total += np.asarray(loss)
      won &= np.asarray(hit)
    return total, won

  def _active(self, count: int):
    for texts, contexts in zip(self._texts[:count], self._contexts):
      yield from zip(texts, contexts, strict=True)

  def _candidates(self, control, tokens, rng) -> list[list[int]]:
    """Controls one token away that stay their own tokens in the first behaviour's prompt."""
    places, k = tokens.shape
    found = []
    for pick in rng.permutation(places * k):
      place, token = pick // k, int(tokens[pick // k, pick % k])
      if token == control[place]:
        continue
      candidate = [*control[:place], token, *control[place + 1 :]]
      if self._keeps(self._texts[0][0], candidate):
        found.append(candidate)
        if len(found) == self.config.candidates:
          break
    return found

  def _keeps(self, text: Text, control: Sequence[int]) -> bool:
    written = encoding.decode_response(self._tokenizer, text.before, control)
    return written.startswith(" ") and written == written.rstrip() and text.keeps(control, written)

  def _text(self, behaviour: int, control: Sequence[int]) -> str:
    return encoding.decode_response(self._tokenizer, self._texts[behaviour][0].before, control)
