"""Scripted models: tables of numbers in a language model's place.

One set of tables serves the library, as a `types.Model`, and the plain program of
`oracle.py`, as its `Script`. What happens at a text is read from the tables at a hash of
its tokens; both sides fold the hash token by token in 32-bit arithmetic, so they agree to
the bit. A text also has a mood, a small number that each token set may change and that
decides how verdicts fall, so that some branches of a tree are better than others.

Styles, rows of the tables that a prompt picks from, make different things frequent:
trusted moves, limits, ties, duplicates, dynamic node addition.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import types
from rain_jax.types import Array, Commit, Evaluation, Request, SearchConfig
from tests.helpers import oracle

STYLES = 12
EMBEDDING_SIZE = 6
_MOODS = 4
_SIZE = 64  # entries of a table that a hash selects from
_TOKENS = 97
_FIRSTS = 20  # most probable first tokens, at most
_MASK = 0xFFFFFFFF


def mix(h: Any, x: Any) -> Any:
  """Folds `x` into the hash `h`; Python integers, or uint32 arrays that wrap around."""
  h, x = h & _mask(h), x & _mask(x)
  h = ((h ^ x) * _like(h, 0x9E3779B1)) & _mask(h)
  h = h ^ (h >> _like(h, 15))
  h = (h * _like(h, 0x85EBCA77)) & _mask(h)
  return h ^ (h >> _like(h, 13))


def _like(h: Any, number: int) -> Any:
  return number if isinstance(h, int) else np.uint32(number)


def _mask(h: Any) -> Any:
  return _like(h, _MASK)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What a scripted response depends on.

  Attributes:
    seed: of the hash of the empty response.
    style: row of the tables.
    limit: tokens of the longest response.
  """

  seed: int
  style: int
  limit: int


def make_prompts(count: int, seed: int, shortest: int, longest: int) -> list[Prompt]:
  """`count` prompts, all styles in turn, with random seeds and limits."""
  rng = np.random.default_rng(seed)
  return [
    Prompt(int(rng.integers(2**32)), i % STYLES, int(rng.integers(shortest, longest + 1)))
    for i in range(count)
  ]


def make_tables(seed: int = 0) -> dict[str, np.ndarray]:
  """The tables, one row per style.

  Keys:
    first: [S, 8, 20] log weights of first tokens, falling along the last axis.
    firsts: [S] how many first tokens there are.
    weight: [S, 64] log weights of continuations.
    codes: [S] how many continuations there are to draw from: few make duplicates.
    finish: [S, 64] finish codes of continuations.
    barren: [S, 64] the text has no continuations at all.
    mood: [S, 4, 64] mood of a continuation, from that of the text before.
    value: [S, 4, 64] verdicts, by mood.
    cluster: [S, 64] row of `vectors` for an embedding.
    vectors: [64, E] in four clusters.
  """
  rng = np.random.default_rng(seed)
  S, M = STYLES, _SIZE
  steep = rng.choice([0.3, 1.0, 3.0], S)
  steep[[0, 3]] = 1.0, 6.0
  # Weights of any size: simple ratios would make scores tie but for rounding. Equal
  # weights tie whatever the rounding.
  weight = rng.uniform(-5, -0.3, (S, M)) * steep[:, None]
  weight[[1, 2]] = -0.7
  gaps = rng.uniform(0, 0.5, (S, 8, _FIRSTS)) * (rng.random((S, 8, _FIRSTS)) < 0.7)
  first = -0.5 - np.cumsum(gaps, axis=-1) * steep[:, None, None]
  first[1] = -1.1

  finish = np.where(rng.random((S, M)) < 0.08, rng.choice([types.EOS, types.STOP], (S, M)), 0)
  finish[[0, 4]] = types.RUNNING
  barren = np.zeros((S, M), bool)
  barren[[5, 9], :3] = True

  # Good, so-so, bad, anything.
  chances = np.array([[0.02, 0.05, 0.93], [0.2, 0.3, 0.5], [0.93, 0.06, 0.01], [0.4, 0.2, 0.4]])
  value = np.stack(
    [[rng.choice([-1.0, 0.0, 1.0], M, p=chances[m]) for m in range(_MOODS)] for _ in range(S)]
  )
  odd = rng.random((S, _MOODS, M)) < np.array([0.0, 0.1, 0.03, 0.5])[None, :, None]
  value = np.where(odd, rng.uniform(-1, 1, value.shape), value)
  mood = np.where(
    rng.random((S, _MOODS, M)) < 0.8,
    np.arange(_MOODS)[None, :, None],
    rng.integers(0, _MOODS, (S, _MOODS, M)),
  )
  mood[[2, 6, 7]] = 2  # all bad: growth and limits
  mood[10] = 0
  value[[2, 6], 2] = -1.0
  # Style 3: one steep favourite of middling value, to the limit with much inherited.
  mood[3], value[3] = 1, rng.uniform(0.55, 0.75, (_MOODS, M))

  centres = np.linalg.qr(rng.normal(size=(EMBEDDING_SIZE, EMBEDDING_SIZE)))[0][:4]
  vectors = np.repeat(centres, 16, axis=0) + 0.06 * rng.normal(size=(64, EMBEDDING_SIZE))
  spread = np.array([64, 64, 16, 32, 64, 32, 16, 24, 64, 20, 64, 32])
  return dict(
    first=first,
    firsts=np.where(np.arange(S) % 4 == 2, 13, _FIRSTS).astype(np.int32),
    weight=weight,
    codes=np.array([40, 6, 30, 60, 8, 14, 20, 5, 100, 3, 60, 12], np.uint32),
    finish=finish.astype(np.int32),
    barren=barren,
    mood=mood.astype(np.int32),
    value=value,
    cluster=(rng.integers(0, 2**30, (S, M)) % spread[:, None]).astype(np.int32),
    vectors=vectors,
  )


class TableScript(oracle.Script):
  """The tables as the plain program reads them, for one prompt."""

  def __init__(self, tables: dict[str, np.ndarray], prompt: Prompt, config: SearchConfig):
    self.tables = {
      name: table if name == "vectors" else table[prompt.style].tolist()
      for name, table in tables.items()
    }
    self.prompt = prompt
    self.config = config
    self.known: dict[oracle.Text, tuple[int, int, int]] = {(): (prompt.seed, 0, 0)}

  def fold(self, text: oracle.Text) -> tuple[int, int, int]:
    """Hash, mood and length of a text."""
    if text not in self.known:
      h, mood, length = self.fold(text[:-1])
      digest = 1
      for token in text[-1]:
        digest = mix(digest, token)
      h = mix(h, digest)
      mood = self.tables["mood"][mood][h % _SIZE]
      self.known[text] = h, mood, length + len(text[-1])
    return self.known[text]

  def first(self) -> list[oracle.Proposal]:
    h, _, _ = self.fold(())
    weights = self.tables["first"][mix(h, 3) % 8]
    rows = range(min(self.config.max_children, self.tables["firsts"]))
    return self._proposals(h, 0, [1000 + row for row in rows], [weights[row] for row in rows])

  def draw(self, text: oracle.Text, times: int, sampled: int) -> list[oracle.Proposal]:
    h, _, _ = self.fold(text)
    rows = range(1 + sampled)
    codes = [mix(h, 1 + row + 64 * times) % self.tables["codes"] for row in rows]
    weights = [self.tables["weight"][mix(h, 2000 + code) % _SIZE] for code in codes]
    return self._proposals(h, len(text), codes, weights, self.fold(text)[2])

  def _proposals(self, h, depth, codes, weights, length=0) -> list[oracle.Proposal]:
    if self.tables["barren"][mix(h, 5) % _SIZE]:
      return []
    lengths = self.config.set_lengths
    size, room = lengths[min(depth, len(lengths) - 1)], self.prompt.limit - length
    made = []
    for code, weight in zip(codes, weights):
      x = mix(mix(h, 7), code)
      finish = self.tables["finish"][x % _SIZE]
      cut = 1 + (x >> 8) % size if finish else size
      if cut > room or (cut == room and not finish):
        finish, cut = types.LENGTH, room
      tokens = tuple(token_of(h, code, place) for place in range(cut))
      made.append(oracle.Proposal(tokens, weight, types.FINISH_REASONS[finish]))
    return made

  def verdict(self, text: oracle.Text) -> float:
    h, mood, _ = self.fold(text)
    return self.tables["value"][mood][mix(h, 11) % _SIZE]

  def embedding(self, text: oracle.Text, leaf: oracle.Text) -> np.ndarray:
    mixed = mix(self.fold(text)[0], self.fold(leaf)[0])
    return self.tables["vectors"][self.tables["cluster"][mixed % _SIZE]]


def token_of(h: Any, code: Any, place: int) -> Any:
  """Token number `place` of continuation `code`; codes from 1000 are first tokens.

  First tokens differ from each other (steps of 29 round a prime number of tokens).
  """
  if isinstance(code, int):
    first = (h % _TOKENS + 29 * (code % 1000)) % _TOKENS
    return first if code >= 1000 else mix(code, 17 * place) % _TOKENS
  first = (h % np.uint32(_TOKENS) + np.uint32(29) * (code % np.uint32(1000))) % np.uint32(_TOKENS)
  other = mix(code, jnp.full_like(code, 17 * place)) % np.uint32(_TOKENS)
  return jnp.where(code >= 1000, first, other)


@dataclasses.dataclass(frozen=True)
class TableModel:
  """The tables as the library reads them; `params` are the tables."""

  config: SearchConfig
  embedding_size: int = EMBEDDING_SIZE

  def init(self, batch: int) -> dict[str, Array]:
    """A state for `batch` trees; hash, mood and length are of the committed text."""
    zeros = jnp.zeros(batch, jnp.int32)
    return dict(
      hash=jnp.zeros(batch, jnp.uint32),
      mood=zeros,
      length=zeros,
      style=zeros,
      limit=zeros,
      grown=jnp.zeros((batch, self.config.max_visited), jnp.int32),
    )

  def start(self, state: dict[str, Array], prompts: dict[int, Prompt]) -> dict[str, Array]:
    """The state with `prompts`, by slot, about to be answered."""
    host = {name: np.array(array) for name, array in state.items()}
    for slot, prompt in prompts.items():
      host["hash"][slot] = prompt.seed
      host["mood"][slot] = host["length"][slot] = 0
      host["style"][slot], host["limit"][slot] = prompt.style, prompt.limit
    return {name: jnp.asarray(array) for name, array in host.items()}

  def evaluate(self, params, state, request: Request, keys) -> tuple[Evaluation, dict]:
    """Answers a request from the tables; `keys` are not needed."""
    own = {name: table[state["style"]] for name, table in params.items() if name != "vectors"}
    answer = functools.partial(self._answer, vectors=params["vectors"])
    one_tree = lambda own, state, request: jax.vmap(lambda leaf: answer(own, state, leaf))(request)
    grow = request.mode == types.GROW
    count = lambda grown, slot, add, first: (
      grown.at[jnp.where(first, slot, grown.shape[0])]
      .set(0, mode="drop")
      .at[jnp.where(add, slot, grown.shape[0])]
      .add(1, mode="drop")
    )
    grown = jax.vmap(count)(state["grown"], request.leaf_page, grow, request.first_visit)
    state = {**state, "grown": grown}
    return jax.vmap(one_tree)(own, state, request), state

  def _answer(self, own, state, leaf: Request, vectors: Array) -> Evaluation:
    """One leaf of one tree."""
    c, K = self.config, self.config.max_children
    start = state["hash"], state["mood"], state["length"]
    (h, mood, length), hashes = jax.lax.scan(
      lambda text, edge: self._fold(own, text, *edge),
      start,
      (leaf.path_tokens, leaf.path_lengths),
    )
    times = jnp.where(leaf.mode == types.GROW, state["grown"][leaf.leaf_page], 0)
    first, row = leaf.depth == 0, jnp.arange(c.draws)
    drawn = jnp.where(leaf.mode == types.GROW, 1 + c.grow_draws, 1 + c.sampled_draws)
    used = row < jnp.where(first, jnp.minimum(K, own["firsts"]), drawn)
    seed = (1 + row + 64 * times).astype(jnp.uint32)
    codes = mix(jnp.full_like(seed, 1) * h, seed) % own["codes"]
    weights = own["weight"][self._at(h, 2000 + codes)]
    codes = jnp.where(first, 1000 + row, codes).astype(jnp.uint32)
    ranked = own["first"][mix(h, np.uint32(3)) % 8][jnp.minimum(row, _FIRSTS - 1)]
    weights = jnp.where(first, ranked, weights)

    x = mix(jnp.full_like(codes, 1) * mix(h, np.uint32(7)), codes)
    finish = own["finish"][x % _SIZE]
    sizes = jnp.asarray(c.set_lengths, jnp.int32)
    size = sizes[jnp.minimum(leaf.depth, len(c.set_lengths) - 1)]
    room = state["limit"] - length
    cut = jnp.where(finish > 0, 1 + ((x >> 8) % size.astype(jnp.uint32)).astype(jnp.int32), size)
    over = (cut > room) | ((cut == room) & (finish == 0))
    finish = jnp.where(over, types.LENGTH, finish)
    cut = jnp.where(over, room, cut)
    cut = jnp.where(used & ~own["barren"][self._at(h, np.uint32(5))], cut, 0)
    tokens = jnp.stack([token_of(h, codes, place) for place in range(c.max_set_length)], -1)
    inside = jnp.arange(c.max_set_length) < cut[:, None]
    return Evaluation(
      tokens=jnp.where(inside, tokens.astype(jnp.int32), types.NO_TOKEN),
      lengths=cut,
      log_weights=weights,
      finish=finish,
      value=own["value"][mood, self._at(h, np.uint32(11))],
      embeddings=vectors[own["cluster"][self._at(hashes, h)]],
    )

  @staticmethod
  def _at(h: Array, x: Array) -> Array:
    """Where in a table the hash of `h` and `x` points."""
    h, x = jnp.broadcast_arrays(h, x)
    return mix(h, x.astype(jnp.uint32)) % np.uint32(_SIZE)

  @staticmethod
  def _fold(own, text, tokens, length):
    """One token set more, if it has tokens: ((hash, mood, length), hash)."""
    h, mood, total = text
    digest = jnp.uint32(1)
    for place in range(tokens.shape[-1]):
      more = mix(digest, tokens[place].astype(jnp.uint32))
      digest = jnp.where(place < length, more, digest)
    after = mix(h, digest)
    new = after, own["mood"][mood, after % np.uint32(_SIZE)], total + length
    text = jax.tree.map(lambda new, old: jnp.where(length > 0, new, old), new, text)
    return text, text[0]

  def commit(self, params, state, commit: Commit) -> dict[str, Array]:
    """Folds the committed tokens into the text."""
    mood = params["mood"][state["style"]]
    old = state["hash"], state["mood"], state["length"]
    length = jnp.where(commit.mask, commit.length, 0)
    (h, mood, length), _ = jax.vmap(lambda m, *rest: self._fold({"mood": m}, *rest))(
      mood, old, commit.tokens, length
    )
    return {**state, "hash": h, "mood": mood, "length": length}
