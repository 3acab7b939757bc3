"""The search without a language model: eight queens, none of which attacks another.

  python examples/queens.py

A "token" is the column of the queen in the next row, a "response" is a board. The model is
the rules of the game: the next row's free columns as candidates, a random game to the end
as rollout, and as verdict whether all eight queens found a place. The search commits a
queen at a time, and rewinds from boards that lead nowhere.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rain_jax import decode, types

QUEENS = 8
CONFIG = types.SearchConfig(
  set_lengths=(1,),  # one queen per tree edge
  num_candidates=QUEENS,
  max_children=QUEENS,
  similarity_threshold=1.1,  # boards share no verdicts
  grow_threshold=0.0,  # all candidates there are join at once
  max_nodes=512,
  max_visited=128,
  max_path=QUEENS + 1,
)


def free(board: jax.Array, row: jax.Array) -> jax.Array:
  """Columns of a row that no queen above attacks, bool[QUEENS]; board int32[QUEENS]."""
  rows, columns = jnp.arange(QUEENS), jnp.arange(QUEENS)[:, None]
  attacked = (board == columns) | (jnp.abs(board - columns) == row - rows)
  return ~jnp.any(attacked & (rows < row), axis=1)


def play(board: jax.Array, row: jax.Array, key: jax.Array) -> jax.Array:
  """Places queens at random from a row on; the number that stand at the end, int32[]."""

  def place(carry, key):
    board, row = carry
    columns = free(board, row)
    column = jax.random.categorical(key, jnp.where(columns, 0.0, -jnp.inf))
    goes = columns.any() & (row < QUEENS)
    board = board.at[jnp.where(goes, row, QUEENS)].set(column, mode="drop")
    return (board, row + goes), None

  (_, row), _ = jax.lax.scan(place, (board, row), jax.random.split(key, QUEENS))
  return row


@dataclasses.dataclass(frozen=True)
class Queens:
  """`types.Model` of the puzzle; its state holds the committed queens of each board."""

  embedding_size: int = 1

  def init(self, batch: int) -> dict[str, jax.Array]:
    """Empty boards."""
    return {"board": jnp.zeros((batch, QUEENS), jnp.int32), "row": jnp.zeros(batch, jnp.int32)}

  def start(self, state: dict, slots: list[int]) -> dict:
    """Clears the boards in some slots."""
    return {name: array.at[jnp.array(slots)].set(0) for name, array in state.items()}

  def evaluate(self, params: Any, state: dict, request: types.Request, keys: jax.Array):
    """Candidates, rollout and verdict for one leaf of each board."""

    def one(board, row, path, length, key):
      at = jnp.where(jnp.arange(path.shape[0]) < length, row + jnp.arange(path.shape[0]), QUEENS)
      board, row = board.at[at].set(path[:, 0], mode="drop"), row + length
      columns = free(board, row) & (row < QUEENS)
      last = jnp.where(row == QUEENS - 1, types.LENGTH, types.RUNNING)
      return types.Evaluation(
        tokens=jnp.where(columns, jnp.arange(QUEENS), types.NO_TOKEN)[:, None],
        lengths=columns.astype(jnp.int32),
        log_weights=jnp.zeros(QUEENS),
        finish=jnp.where(columns, last, types.RUNNING),
        value=2.0 * (play(board, row, key) == QUEENS) - 1,
        embeddings=jnp.zeros((path.shape[0], 1)),
      )

    leaf = lambda array: array[:, 0]  # one leaf per board: config.leaves is 1
    answer = jax.vmap(one)(
      state["board"], state["row"], leaf(request.path_tokens), leaf(request.path_length), keys
    )
    return jax.tree.map(lambda array: array[:, None], answer), state

  def commit(self, params: Any, state: dict, commit: types.Commit) -> dict:
    """Puts the committed queen on the board."""
    put = lambda board, row, column, mask: board.at[jnp.where(mask, row, QUEENS)].set(
      column, mode="drop"
    )
    board = jax.vmap(put)(state["board"], state["row"], commit.tokens[:, 0], commit.mask)
    return {"board": board, "row": state["row"] + commit.mask}


def solve(boards: int, batch: int = 4, seed: int = 0) -> list[decode.Result]:
  """Searches `boards` boards, `batch` at a time, in the order in which they end."""
  model = Queens()
  state = decode.init(batch, model.init(batch), CONFIG, model.embedding_size, QUEENS)
  start = lambda state, fresh: state.replace(model=model.start(state.model, list(fresh)))
  keys = jax.random.split(jax.random.key(seed), boards)
  queue = ((i, keys[i], None) for i in range(boards))
  return [r for r, _ in decode.serve(state, model, None, CONFIG, queue, start)]


def main() -> None:
  """Prints the boards and how often the search went back."""
  for result in solve(4):
    print(
      f"\nboard {result.index}: {len(result.tokens)} queens, {result.counters['rewinds']} rewinds"
    )
    for column in result.tokens:
      print(" ".join("Q" if c == column else "." for c in range(QUEENS)))


if __name__ == "__main__":
  main()
