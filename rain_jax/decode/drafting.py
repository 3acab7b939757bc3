"""Steps of the modes that draft whole segments: segment-level rejection, and adaptive RAIN.

Adaptive RAIN drafts where a draft is good enough, takes back what leads nowhere, and searches where
neither helps. A response is in one of two states, and each step does one thing to it:

    DRAFT   `root_rows` drafts after the committed text, each with a verdict on the text with it.
              the best is good             it is committed, and can be taken back; a fresh tree; DRAFT
              fewer than `root_tries`      DRAFT
              taken back < `search_after`, and there is a draft to take back   REWIND
              the best reaches `search_below`, or there is no search   it is committed, as if it
                                                 were good; DRAFT
              otherwise                    SEARCH
    SEARCH  one iteration of the exact search, in the tree whose root is the end of the text.
              a move is trusted            it is committed, with its subtree; DRAFT
              the search is at its limit   REWIND if it can, otherwise the best move is committed; DRAFT
    REWIND  (within the step) the newest draft that can be taken back is, with all after it; that
            draft will not be committed there again; a fresh tree; DRAFT. A response can do so
            `max_rewinds` times.

A draft whose text ends the response ends it. The search is `exact.iterate` and `exact.commit`; only
its roots differ: a fresh one stands at depth 0, as the beginning of a response does.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rain_jax import types
from rain_jax.decode import exact
from rain_jax.decode.state import DecodeState, Revocable, appended, replanted
from rain_jax.parallel.loops import at_most_once
from rain_jax.search import drafts
from rain_jax.types import NO_TOKEN, Array, SearchConfig


def segment_step(
  state: DecodeState, model: types.Drafter, params: Any, config: SearchConfig
) -> DecodeState:
  """Some drafts more for every active response, and the best one committed or not."""
  state, made = _draft(state, model, params, state.active, config.draft_tries, config)
  take = made.good | made.over
  state = _commit_draft(state, model, params, made.best, take)
  old = state.counters
  return state.replace(
    tried=jnp.where(take, 0, state.tried),
    counters=old.replace(kept_best=old.kept_best + made.over),
  )


def adaptive_step(
  state: DecodeState, model: types.Reviser, params: Any, config: SearchConfig
) -> DecodeState:
  """One step of every active response: drafts or an iteration, then commits and rewinds."""
  searching = state.active & _held(state).searching
  drafting = state.active & ~searching
  none = jnp.zeros_like(drafting)
  # Most steps have no tree that searches, or none that drafts: that half costs nothing then.
  state, left = at_most_once(
    drafting.any(),
    lambda at: draft_round(at[0], model, params, drafting, config)[::2],
    (state, none),
  )
  back = left
  if config.searches:
    state, given_up = at_most_once(
      searching.any(),
      lambda at: after_search(
        *exact.iterate(at[0], model, params, config, searching)[:2], model, params, config
      ),
      (state, none),
    )
    back |= given_up
  return at_most_once(back.any(), lambda state: rewind(state, model, params, back, config), state)


def _draft(
  state: DecodeState,
  model: types.Drafter,
  params: Any,
  mask: Array,
  tries: int,
  config: SearchConfig,
) -> tuple[DecodeState, drafts.Drafts]:
  """`drafts_at_once` more drafts in the responses of `mask` bool[B]; nothing is committed."""
  keys = jax.vmap(jax.random.fold_in)(state.keys, state.counters.steps)
  best, drafted = model.draft(params, state.model, mask, keys)
  types.check_state(drafted, state.model, "draft")
  made = drafts.judge(best, state.tried, mask, tries, config)
  old = state.counters
  state = state.replace(
    model=drafted,
    active=state.active & ~made.failed,
    finish=jnp.where(made.failed, types.FAILED, state.finish),
    tried=made.tried,
    counters=old.replace(
      steps=old.steps + mask, drafts=old.drafts + jnp.where(mask, config.drafts_at_once, 0)
    ),
  )
  return state, made


def _commit_draft(
  state: DecodeState, model: types.Drafter, params: Any, best: types.BestDraft, take: Array
) -> DecodeState:
  """Commits the best drafts in the responses of `take` bool[B]."""
  after = model.commit_draft(params, state.model, take)
  types.check_state(after, state.model, "commit_draft")
  finish = jnp.where(take, best.finish, state.finish)
  length = jnp.where(take, best.length, 0)
  return state.replace(
    model=after,
    active=state.active & (finish == types.RUNNING),
    finish=finish,
    response=appended(state, best.tokens, length),
    response_length=state.response_length + length,
    counters=state.counters.replace(moves=state.counters.moves + take),
  )


def draft_round(
  state: DecodeState, model: types.Reviser, params: Any, drafting: Array, config: SearchConfig
) -> tuple[DecodeState, drafts.Drafts, Array]:
  """DRAFT in the responses of `drafting` bool[B].

  Returns:
    The state; the drafts, `good` where the best one was committed; and which go back, bool[B].
  """
  state, made = _draft(state, model, params, drafting, config.root_tries, config)
  before = state.response_length
  back = made.over & _can_rewind(state, config)
  back &= state.counters.taken_back < config.search_after
  kept = made.over & ~back
  if config.searches:
    kept &= made.best.margin >= config.search_below
  made = made._replace(good=made.good | kept, over=made.over & ~kept)
  state = _commit_draft(state, model, params, made.best, made.good)
  held, old = _held(state), state.counters

  def pushed(stack: Array, newest: Array) -> Array:
    longer = jnp.concatenate([newest[:, None], stack[:, :-1]], axis=1)
    return jnp.where(made.good[:, None], longer, stack)

  state = replanted(state, made.good, config)
  state = state.replace(
    revocable=Revocable(
      searching=held.searching | (made.over & ~back),
      begin=pushed(held.begin, before),
      end=pushed(held.end, state.response_length),
    ),
    counters=old.replace(kept_best=old.kept_best + kept),
  )
  return state, made, back


def after_search(
  state: DecodeState, due: Array, model: types.Reviser, params: Any, config: SearchConfig
) -> tuple[DecodeState, Array]:
  """Ends SEARCH in the responses that are `due` bool[B]: the state, and which go back, bool[B]."""
  trusted = jax.vmap(lambda tree: exact.trusted(tree, config))(state.tree)
  back = due & ~trusted & _can_rewind(state, config)
  moving = due & ~back
  moves = state.counters.moves
  state = exact.commit(state, model, params, moving, config)
  moved, old, held = state.counters.moves - moves, state.counters, _held(state)
  return state.replace(
    tried=jnp.where(moving, 0, state.tried),
    revocable=held.replace(searching=held.searching & ~moving),
    counters=old.replace(
      searched_moves=old.searched_moves + moved,
      kept_best=old.kept_best + jnp.where(trusted, 0, moved),
    ),
  ), back


@jax.named_scope("rewind")
def rewind(
  state: DecodeState, model: types.Reviser, params: Any, back: Array, config: SearchConfig
) -> DecodeState:
  """REWIND in the responses of `back` bool[B]."""
  held = _held(state)
  begin, end = held.begin[:, 0], held.end[:, 0]
  after = model.rewind(params, state.model, back, begin, end)
  types.check_state(after, state.model, "rewind")
  popped = lambda stack: jnp.where(
    back[:, None], jnp.pad(stack[:, 1:], ((0, 0), (0, 1)), constant_values=NO_TOKEN), stack
  )
  gone = back[:, None] & (jnp.arange(state.response.shape[1]) >= begin[:, None])
  old = state.counters
  return replanted(state, back, config).replace(
    model=after,
    response=jnp.where(gone, NO_TOKEN, state.response),
    response_length=jnp.where(back, begin, state.response_length),
    counters=old.replace(taken_back=old.taken_back + back),
    revocable=Revocable(held.searching & ~back, popped(held.begin), popped(held.end)),
  )


def _can_rewind(state: DecodeState, config: SearchConfig) -> Array:
  return (_held(state).begin[:, 0] >= 0) & (state.counters.taken_back < config.max_rewinds)


def _held(state: DecodeState) -> Revocable:
  assert state.revocable is not None, "the state was made for another mode"
  return state.revocable
