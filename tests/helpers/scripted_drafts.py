"""Scripted models that draft whole segments, too: `scripted` for the adaptive mode.

A draft is read from the tables at the hash of the text and its number since the text was last
changed, so that a text that is gone back to is drafted from in the same way again.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import types
from rain_jax.types import NO_TOKEN, Array, BestDraft, Commit
from tests.helpers import oracle, scripted
from tests.helpers.adaptive_oracle import Draft
from tests.helpers.scripted import _SIZE, mix

LONGEST_DRAFT = 5
_TOKENS = 97


def make_tables() -> dict[str, np.ndarray]:
  """The tables of `scripted`, but in half of the styles a good text may turn bad, or lead nowhere."""
  tables, rng = scripted.make_tables(), np.random.default_rng(1)
  changing = [0, 1, 2, 5, 7, 8, 9]
  shape = tables["mood"][changing].shape
  # From good (0), so-so and bad (2) to any; a bad one seldom turns good again.
  onward = np.where(rng.random(shape) < 0.6, rng.choice([0, 1, 2, 2], shape), np.arange(4)[:, None])
  tables["mood"][changing] = onward
  tables["barren"][[5, 9], :20] = True
  return tables


class Script(scripted.TableScript):
  """The tables as the plain program reads them, for one prompt."""

  def draft(self, text: oracle.Text, number: int) -> Draft:
    h, _, length = self.fold(text)
    code = mix(h, 9000 + number) % self.tables["codes"]
    size, finish = 1 + code % LONGEST_DRAFT, self.tables["finish"][mix(mix(h, 13), code) % _SIZE]
    room = self.prompt.limit - length
    if size > room or (size == room and not finish):
      size, finish = room, types.LENGTH
    tokens = tuple(mix(code, 17 * place) % _TOKENS for place in range(size))
    after, mood, _ = self.fold((*text, tokens))
    margin = self.tables["value"][mood][mix(after, 19) % _SIZE]
    return Draft(tokens, types.FINISH_REASONS[finish], margin)

  def after(self, text: oracle.Text) -> "_After":
    return _After(self, text)


class _After(oracle.Script):
  """The script of a search whose root stands at a text: its texts begin there."""

  def __init__(self, script: Script, text: oracle.Text):
    self.script, self.text = script, text

  def first(self) -> list[oracle.Proposal]:
    h, _, length = self.script.fold(self.text)
    tables = self.script.tables
    rows = range(min(self.script.config.max_children, tables["firsts"]))
    weights = tables["first"][mix(h, 3) % 8]
    codes = [1000 + row for row in rows]
    return self.script._proposals(h, 0, codes, [weights[row] for row in rows], length)

  def draw(self, text: oracle.Text, times: int, sampled: int) -> list[oracle.Proposal]:
    h, _, length = self.script.fold(self.text + text)
    codes = [mix(h, 1 + r + 64 * times) % self.script.tables["codes"] for r in range(1 + sampled)]
    weights = [self.script.tables["weight"][mix(h, 2000 + code) % _SIZE] for code in codes]
    return self.script._proposals(h, len(text), codes, weights, length)

  def verdict(self, text: oracle.Text) -> float:
    return self.script.verdict(self.text + text)

  def embedding(self, text: oracle.Text, leaf: oracle.Text) -> np.ndarray:
    return self.script.embedding(self.text + text, self.text + leaf)


@dataclasses.dataclass(frozen=True)
class Model(scripted.TableModel):
  """The tables as the library reads them.

  Attributes:
    longest: tokens of the longest response.
  """

  longest: int = 26

  def init(self, batch: int) -> dict[str, Array]:
    zeros = lambda *shape: jnp.zeros((batch, *shape), jnp.int32)
    return super().init(batch) | {
      "number": zeros(),  # of the next draft
      "best_tokens": jnp.full((batch, LONGEST_DRAFT), NO_TOKEN, jnp.int32),
      "best_length": zeros(),
      "best_finish": zeros(),
      "best_margin": jnp.full(batch, -jnp.inf, float),
      # Hash and mood of the text when it had so many tokens.
      "hashes": zeros(self.longest + 1).astype(jnp.uint32),
      "moods": zeros(self.longest + 1),
      "banned": zeros(max(self.config.max_rewinds, 1)).astype(jnp.uint32),
      "bans": zeros(),
    }

  def start(self, state, prompts):
    state = super().start(state, prompts)
    host = {name: np.array(array) for name, array in state.items()}
    for slot, prompt in prompts.items():
      host["number"][slot] = host["bans"][slot] = host["best_length"][slot] = 0
      host["best_margin"][slot] = -np.inf
      host["hashes"][slot, 0], host["moods"][slot, 0] = prompt.seed, 0
    return {name: jnp.asarray(array) for name, array in host.items()}

  def draft(self, params: Any, state: dict, wanted: Array, keys: Array) -> tuple[BestDraft, dict]:
    own = {name: table[state["style"]] for name, table in params.items() if name != "vectors"}
    rows = jax.vmap(self._drafts)(own, state)
    tokens, length, finish, margin = rows
    pick = jnp.argmax(margin, axis=1)
    of = lambda a: jax.vmap(lambda one, i: one[i])(a, pick)
    better = wanted & ((of(margin) > state["best_margin"]) | (state["best_length"] == 0))
    update = lambda new, old: jnp.where(better.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)
    state = state | {
      "number": state["number"] + jnp.where(wanted, self.config.root_rows, 0),
      "best_tokens": update(of(tokens), state["best_tokens"]),
      "best_length": update(of(length), state["best_length"]),
      "best_finish": update(of(finish), state["best_finish"]),
      "best_margin": update(of(margin), state["best_margin"]),
    }
    return _best(state), state

  def _drafts(self, own, state) -> tuple[Array, Array, Array, Array]:
    """`root_rows` drafts of one tree: tokens, lengths, finishes, margins."""

    def one(number: Array) -> tuple[Array, Array, Array, Array]:
      h, u = state["hash"], np.uint32
      code = mix(h, (u(9000) + number.astype(jnp.uint32))) % own["codes"]
      size = 1 + (code % u(LONGEST_DRAFT)).astype(jnp.int32)
      finish = own["finish"][mix(mix(h, u(13)), code) % u(_SIZE)]
      room = state["limit"] - state["length"]
      over = (size > room) | ((size == room) & (finish == 0))
      size, finish = jnp.where(over, room, size), jnp.where(over, types.LENGTH, finish)
      tokens = jnp.stack([mix(code, u(17 * i)) % u(_TOKENS) for i in range(LONGEST_DRAFT)])
      tokens = jnp.where(jnp.arange(LONGEST_DRAFT) < size, tokens.astype(jnp.int32), NO_TOKEN)
      (after, mood, _), _ = self._fold(own, (h, state["mood"], state["length"]), tokens, size)
      margin = own["value"][mood, mix(after, u(19)) % u(_SIZE)]
      banned = (state["banned"] == after) & (jnp.arange(state["banned"].size) < state["bans"])
      return tokens, size, finish, jnp.where(banned.any(), -jnp.inf, margin)

    return jax.vmap(one)(state["number"] + jnp.arange(self.config.root_rows))

  def commit_draft(self, params: Any, state: dict, mask: Array) -> dict:
    best = _best(state)
    return self.commit(params, state, Commit(mask, mask, best.tokens, best.length, best.finish))

  def commit(self, params, state, commit: Commit):
    after = super().commit(params, state, commit)
    place = jnp.where(commit.mask, after["length"], self.longest + 1)
    put = jax.vmap(lambda log, i, value: log.at[i].set(value, mode="drop"))
    return self._changed(after, commit.mask) | {
      "hashes": put(after["hashes"], place, after["hash"]),
      "moods": put(after["moods"], place, after["mood"]),
    }

  def rewind(self, params: Any, state: dict, mask: Array, begin: Array, end: Array) -> dict:
    at = lambda log, i: jax.vmap(lambda one, j: one[j])(log, jnp.maximum(i, 0))
    pick = lambda new, old: jnp.where(mask, new, old)
    place = jnp.where(mask, state["bans"], state["banned"].shape[1])
    ban = jax.vmap(lambda banned, i, h: banned.at[i].set(h, mode="drop"))
    return self._changed(state, mask) | {
      "banned": ban(state["banned"], place, at(state["hashes"], end)),
      "bans": state["bans"] + mask,
      "hash": pick(at(state["hashes"], begin), state["hash"]),
      "mood": pick(at(state["moods"], begin), state["mood"]),
      "length": pick(begin, state["length"]),
    }

  @staticmethod
  def _changed(state: dict, mask: Array) -> dict:
    """The state of texts that have changed where `mask` bool[B]: no drafts yet."""
    return state | {
      "number": jnp.where(mask, 0, state["number"]),
      "best_length": jnp.where(mask, 0, state["best_length"]),
      "best_margin": jnp.where(mask, -jnp.inf, state["best_margin"]),
    }


def _best(state: dict) -> BestDraft:
  return BestDraft(*(state[f"best_{name}"] for name in ("tokens", "length", "finish", "margin")))


MODEL = Model(
  types.SearchConfig(
    mode="adaptive",
    set_lengths=(1, 2, 3),
    num_candidates=4,
    max_children=7,
    similarity_threshold=0.9,
    grow_threshold=0.05,
    min_visits=2,
    value_threshold=0.6,
    max_iterations=12,
    extra_iterations=5,
    max_nodes=160,
    max_visited=40,
    max_path=12,
    root_rows=2,
    root_tries=4,
    max_rewinds=3,
    search_after=1,
    search_below=-0.02,
  )
)
