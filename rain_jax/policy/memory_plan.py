"""How much memory a search will need, before anything is compiled or allocated.

What stays (weights, prefixes, caches, trees) is exact: its shapes come from the functions
that will make it, evaluated abstractly. What comes and goes inside a step is a formula:
the largest of its phases, each the buffers that are alive together in it (docs/architecture.md, section 4).
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax

from rain_jax.models import KV, Model, backend
from rain_jax.models.arrays import nbytes
from rain_jax.models.sharding import AnyMesh, Rules, shardings, shards, split
from rain_jax.parallel.batch_sharding import DATA, BatchSharding
from rain_jax.policy.context import shapes
from rain_jax.policy.language_model import LanguageModel
from rain_jax.policy.params import Side, make_params
from rain_jax.text.vocab import TokenTables

_LANES = 128  # to which a TPU pads the innermost axis of an array
_SUBLANES = 8  # and the one around it
_LOGIT_COPIES = 3  # logits, and what sampling makes of them
# Keys by which a run is made smaller, and a benchmark.
RUN = {
  "batch": "batch_size",
  "lengths": "limits.max_prompt, limits.max_response",
  "dtype": "model.dtype",
}
BENCHMARK = {"batch": "batches", "lengths": "workload.prompt, workload.response", "dtype": "dtype"}


@dataclasses.dataclass(frozen=True)
class Plan:
  """Bytes by what they are for, on each device.

  Attributes:
    parts: name -> bytes, in the order in which they are printed.
    batch: trees side by side.
  """

  parts: dict[str, int]
  batch: int

  @property
  def total(self) -> int:
    """All parts together."""
    return sum(self.parts.values())

  def table(self) -> str:
    """One line per part, and the total."""
    lines = [*self.parts.items(), ("total", self.total)]
    return "\n".join(f"{name:<34}{size / 2**20:>12,.1f} MiB" for name, size in lines)


def plan(
  model: Model,
  lm: LanguageModel,
  batch: int,
  tables: TokenTables,
  proposing_prefix: int = 0,
  mesh: AnyMesh | None = None,
  verdict: Model | None = None,
) -> Plan:
  """The memory of a search for `batch` prompts side by side, on each device.

  Args:
    model: the language model; an abstract one (`models.llama.abstract_model`) costs nothing.
    lm: the static part, with search, preference and limits.
    batch: trees side by side (B).
    tables: over the vocabulary, for the format's stop strings; abstract ones will do.
    proposing_prefix: tokens of the fixed prefix before every prompt.
    mesh: of the devices, which may be abstract; None for one device.
    verdict: the model of `lm.verdict`, if there is one.
  """
  config, rules = lm.config, Rules()
  over = lambda size, rule: 1 if mesh is None else shards(split(size, rule, mesh), mesh)
  parts = Parts(
    trees=1 if mesh is None else mesh.shape[DATA],
    heads=over(config.num_heads, rules.heads),
    mlp=over(config.intermediate_size, rules.mlp),
    vocab=over(config.vocab_size, rules.vocab),
  )
  own = jax.eval_shape(
    lambda params, tables, judge: make_params(params, tables, lm, [], verdict_params=judge),
    *(model.params, tables, None if verdict is None else verdict.params),
  )

  def bytes_of_token(side: Side, kv: KV) -> int:
    one = jax.eval_shape(functools.partial(kv.zeros, slots=1))
    return nbytes(one) // over(shapes(lm, side).num_kv_heads, rules.kv_heads)

  token = bytes_of_token("proposing", own["proposing_prefix"])
  judged = bytes_of_token("evaluating", own["evaluating_prefix"])
  make = functools.partial(lm.empty_slots, params=own)
  state = jax.eval_shape(lambda: make(batch))
  places, weights = None, None
  if mesh is not None:
    places = BatchSharding.of(mesh, make, lambda state: lm.head_specs(state, mesh)).shardings
    weights = shardings(model, mesh)
  size = lambda pick: nbytes(pick(state), None if places is None else pick(places))
  contexts = size(lambda s: (s.model.proposing.context, s.model.evaluating.context))
  pools = size(lambda s: (s.model.proposing.pool, s.model.evaluating.pool))
  trees = size(lambda s: s.tree)
  drafts = size(lambda s: s.model.drafted)
  prefixes = token * proposing_prefix + judged * len(lm.preference.prefix_ids)
  # Of two models' phases the larger one's keys and values are counted in all.
  kvs = own["proposing_prefix"], own["evaluating_prefix"]
  copies = max(backend.gathered_copies(isinstance(kv.keys, tuple)) for kv in kvs)
  passing = temporaries(lm, batch, max(token, judged), proposing_prefix, parts, copies)
  if backend.lays_caches_anew():
    # In the loops caches lie as scatters want them, heads along the lanes; one side's context is
    # there as attention reads it, too; and of the tables with two words a token each row is a tile.
    wide = _padded(config.head_size, _LANES)
    passing += (contexts + pools) * wide // config.head_size + contexts // 2
    passing += nbytes((tables.hash, tables.shift)) * _LANES // 2
  others = {}
  if verdict is not None:
    placed = None if mesh is None else shardings(verdict, mesh)
    others["weights of the verdict's model"] = nbytes(verdict.params, placed)
  sizes = {
    "weights": nbytes(model.params, weights),
    **others,
    "prefixes": prefixes,
    "vocabulary tables": nbytes(tables),
    "contexts of both caches": contexts,
    "visited nodes of both caches": pools,
    "trees": trees,
    "texts, hidden states, verdicts": size(lambda s: s) - contexts - pools - trees - drafts,
    "temporaries of a step": passing,
  }
  if drafts:
    sizes["best drafts"] = drafts
  return Plan(sizes, batch)


@dataclasses.dataclass(frozen=True)
class Parts:
  """Into how many parts, each on a device of its own, a step is divided.

  Attributes:
    trees: of the batch.
    heads: of the query heads.
    mlp: of the MLP's inner width.
    vocab: of the logits.
  """

  trees: int = 1
  heads: int = 1
  mlp: int = 1
  vocab: int = 1


def temporaries(
  lm: LanguageModel,
  batch: int,
  token: int,
  proposing_prefix: int,
  parts: Parts = Parts(),
  copies: int = 1,
) -> int:
  """Bytes of the largest phase of one step; `token` is the bytes of a token's keys and values.

  A phase holds `copies` of the gathered path of each leaf, see `backend.gathered_copies`, the scratch
  of its rows, the keys and values of its new tokens, and the largest of what one layer's attention or
  one unembedding needs. A TPU pads all of these, and the zeros that scratch begins with, which are the
  same in every step, are there beside all phases.
  """
  search, R, L = lm.search, lm.max_response, lm.search.max_set_length
  trees = batch // parts.trees
  suffixes, tiled = lm.preference.suffix_ids, backend.lays_caches_anew()
  size = lambda places: _tiled(places, lm.config.head_size) if tiled else places

  def largest(leaves: int, path: int, rows: int, rolled: int, kept: int) -> int:
    """Of `leaves` in all, `path` tokens each; `rows` candidates, rollouts of `rolled`, `kept` of them."""
    context = lm.max_prompt + R + L + path
    judged = rolled if lm.translation is None else lm.judged_room
    asked = min(lm.read_chunk, judged) + sum(map(len, suffixes))

    def arithmetic(
      tokens: int, prefix: int, seen: int, logits: int, side: Side = "proposing"
    ) -> tuple[int, int]:
      """Attention and MLP of one layer, and then the logits, of `tokens` of every leaf."""
      config = shapes(lm, side)
      heads, hidden = config.num_heads // parts.heads, config.hidden_size
      mlp = 3 * config.intermediate_size // parts.mlp
      if backend.skips_empty_blocks():
        # Scores of the prefix and of the tokens themselves, before the exponential and after, of the
        # rest those of a block; and then the MLP in their place.
        layer = max(2 * heads * (prefix + tokens) + 5 * hidden, mlp + 3 * hidden)
      else:
        layer = heads * (prefix + seen) + mlp + 6 * hidden
      words = _LOGIT_COPIES * logits * config.vocab_size // parts.vocab
      return 4 * leaves * tokens * layer, 4 * leaves * words

    def decoded(places: int, tokens: int, own: int) -> int:
      """Scratch of `places` a leaf, and a layer's arithmetic or the logits."""
      scratch = token * leaves * places
      layer, logits = arithmetic(tokens, proposing_prefix, context + own, tokens)
      return scratch + max(layer, logits)

    zeros = token * leaves * (rows * size(L) + size(rolled)) if tiled else 0
    decoding = decoded(rows * size(L), rows, L)
    rolling = token * leaves * rows * size(L) + decoded(size(rolled), 1, rolled)
    prefix, seen = len(lm.preference.prefix_ids), context + judged + asked
    evaluating = token * leaves * (size(kept) + size(judged) + size(asked))
    evaluating += max(arithmetic(asked, prefix, seen, len(suffixes), "evaluating"))
    gathered = copies * token * leaves * size(path)
    return zeros + gathered + max(decoding, rolling, evaluating)

  searching = largest(trees * search.leaves, search.max_path * L, 2 + search.sampled_draws, R, 0)
  T = lm.draft_room
  drafting = largest(trees * search.drafts_at_once, 0, 0, T, T)
  return max(searching if search.searches else 0, drafting if search.mode != "exact" else 0)


def _padded(size: int, tile: int) -> int:
  return -(-size // tile) * tile


def _tiled(places: int, head: int) -> int:
  """What [places, head] numbers take on a TPU, whose tiles pad both axes, in heads, rounded up.

  Its compiler puts along the lanes whichever axis takes less room there.
  """
  heads = _padded(places, _SUBLANES) * _padded(head, _LANES)
  return -(-min(heads, _padded(places, _LANES) * _padded(head, _SUBLANES)) // head)


def check(needed: Plan, available: int, names: Mapping[str, str] = RUN) -> None:
  """Stops a run that cannot fit.

  Args:
    needed: its plan.
    available: bytes of a device's memory.
    names: of the keys that the configuration has for batch, lengths and dtype.

  Raises:
    ValueError: one line that says how much is missing, and what to lower.
  """
  if needed.total <= available:
    return
  if needed.parts["weights"] > available:
    lower = f"{names['dtype']} (bfloat16, int8)"
  else:
    fixed = sum(needed.parts[name] for name in ("weights", "prefixes", "vocabulary tables"))
    fits = (available - fixed) * needed.batch // max(1, needed.total - fixed)
    lower = f"{names['batch']} to {fits}" if fits else "search.max_visited"
    lower += f", or {names['lengths']}, search.max_visited or {names['dtype']}"
  raise ValueError(
    f"{needed.total / 2**30:.1f} GiB needed for {needed.batch} prompts side by side,"
    f" {available / 2**30:.1f} GiB available: lower {lower}."
  )
