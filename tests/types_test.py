"""What a model answers is checked where the search asks it, when its program is traced."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from rain_jax import decode, types
from tests.helpers import scripted
from tests.helpers.serving import BATCH, CONFIG, LONGEST


@dataclasses.dataclass(frozen=True)
class Wrong(scripted.TableModel):
  """Answers with something else in one place; `field` names it for the reader of a failure."""

  field: str = ""
  change: object = None

  def evaluate(self, params, state, request, keys):
    answer, state = super().evaluate(params, state, request, keys)
    if self.field == "state":
      return answer, self.change(state)
    return self.change(answer), state

  def commit(self, params, state, commit):
    state = super().commit(params, state, commit)
    return self.change(state) if self.field == "committed" else state


def trace(field, change):
  """Traces one step and its commits; nothing is compiled."""
  model = Wrong(CONFIG, field=field, change=change)
  state = decode.init(BATCH, model.init(BATCH), CONFIG, model.embedding_size, LONGEST)
  if field == "committed":
    call = lambda s, p: decode.commit(s, model, p, s.active, CONFIG)
  else:
    call = lambda s, p: decode.step(s, model, p, CONFIG)
  return jax.eval_shape(call, state, jax.tree.map(jnp.asarray, scripted.make_tables()))


def of_answer(**change):
  return lambda answer: answer.replace(
    **{name: fn(getattr(answer, name)) for name, fn in change.items()}
  )


def rolled(tokens, finish):
  """Any answer with a rollout of these shapes and dtypes."""
  rollout = lambda: types.Rollout(jnp.zeros(*tokens), jnp.zeros(*finish))
  return lambda answer: answer.replace(rollout=rollout())


C, L, E = CONFIG.draws, CONFIG.max_set_length, scripted.EMBEDDING_SIZE
INT = jnp.int32


@pytest.mark.parametrize(
  "field,change,message",
  [
    (
      "tokens",
      of_answer(tokens=lambda a: a[..., :-1]),
      f"tokens must be int32[{BATCH}, 1, {C}, {L}], is int32[{BATCH}, 1, {C}, {L - 1}]",
    ),
    (
      "lengths",
      of_answer(lengths=lambda a: a.astype(jnp.float32)),
      f"lengths must be int32[{BATCH}, 1, {C}], is float32[{BATCH}, 1, {C}]",
    ),
    (
      "value",
      of_answer(value=lambda a: a[..., None]),
      f"value must be float[{BATCH}, 1], is float32[{BATCH}, 1, 1]",
    ),
    (
      "value",
      of_answer(value=lambda a: a.astype(INT)),
      f"value must be float[{BATCH}, 1], is int32[{BATCH}, 1]",
    ),
    (
      "embeddings",
      of_answer(embeddings=lambda a: a[..., 1:]),
      f"embeddings must be float[{BATCH}, 1, {CONFIG.max_path}, {E}], is",
    ),
    (
      "rollout",
      rolled(((BATCH, 1, 7), INT), ((BATCH,), INT)),
      f"rollout.finish must be int32[{BATCH}, 1], is int32[{BATCH}]",
    ),
    (
      "rollout",
      rolled(((BATCH, 7), INT), ((BATCH, 1), INT)),
      f"rollout.tokens must be int32[{BATCH}, 1, 7], is int32[{BATCH}, 7]",
    ),
    (
      "state",
      lambda state: {**state, "grown": state["grown"].astype(jnp.float32)},
      f"evaluate: state['grown'] must stay int32[{BATCH}, {CONFIG.max_visited}], is float32[",
    ),
    ("state", lambda state: {**state, "more": state["hash"]}, "must keep its structure"),
    (
      "committed",
      lambda state: {**state, "length": state["length"][:, None]},
      f"commit: state['length'] must stay int32[{BATCH}], is int32[{BATCH}, 1]",
    ),
  ],
)
def test_an_answer_of_another_shape_gets_one_line(field, change, message):
  with pytest.raises(ValueError) as raised:
    trace(field, change)
  assert message in str(raised.value)
  assert "\n" not in str(raised.value)


def test_answers_of_the_right_shapes_pass():
  trace("", lambda answer: answer)
  trace("rollout", rolled(((BATCH, 1, 7), INT), ((BATCH, 1), INT)))
  trace("value", of_answer(value=lambda a: a.astype(jnp.bfloat16)))
