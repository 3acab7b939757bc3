"""A language model as the search's propose, roll out and evaluate functions.

This package is the only place where search and language model meet. One `evaluate` costs, for
all leaves of all trees together (docs/architecture.md, section 4):

  1. one call that reads the new leaves' tokens,
  2. a call per token while candidates and rollouts decode side by side,
  3. a call per token of the rollouts that go on longer,
  4. one call that reads what is new to the verdict's own cache, and both orders of the
     options after it, unless every text was judged before.
"""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from rain_jax import decode, types
from rain_jax.models import KV, NO_POSITION, ModelConfig, arrays, forward
from rain_jax.models import cache as caches
from rain_jax.models.cache import PathCache
from rain_jax.models.sharding import AnyMesh, Rules, split
from rain_jax.parallel.loops import ordered_after
from rain_jax.policy import context, decoding, rollout, segments, self_evaluation, translation
from rain_jax.policy.embedders import Embedder
from rain_jax.policy.params import Params
from rain_jax.policy.prompts import Prompt, read_prompt
from rain_jax.policy.segments import Drafted
from rain_jax.policy.translation import Translation
from rain_jax.policy.usage import CONTEXT, Usage, no_usage
from rain_jax.preferences import CompiledPreference
from rain_jax.text import scanner
from rain_jax.text.scanner import ScanState
from rain_jax.types import NO_TOKEN, Array, BestDraft, Commit, Evaluation, Request, SearchConfig


class Memory(flax.struct.PyTreeNode):
  """Verdicts already given in this query, by the judged text's hash (ring of M entries).

  Attributes:
    hash: uint32[B, M, 2].
    value: float32[B, M].
    count: int32[B] verdicts stored since the query began.
  """

  hash: Array
  value: Array
  count: Array


class PolicyState(flax.struct.PyTreeNode):
  """The language model's side of B searches.

  Attributes:
    proposing: cache of prompt and paths, for candidates and rollouts.
    evaluating: cache of the conversation as the verdict reads it, and paths.
    text: `ScanState` [B] of the committed response.
    node_text: `ScanState` [B, V] of each visited node.
    hidden: float32[B, V, E] sum of the hidden states of each node's tokens.
    memory: verdicts given in this query.
    usage: work counters.
    drafted: the best draft of the next segment; None in a mode without drafts.
  """

  proposing: PathCache
  evaluating: PathCache
  text: ScanState
  node_text: ScanState
  hidden: Array
  memory: Memory
  usage: Usage
  drafted: Drafted | None = None


@dataclasses.dataclass(frozen=True)
class VerdictModel:
  """The static part of a model that judges another's text.

  Attributes:
    graphdef: its structure.
    config: its shapes.
    translation: into its tokens, where its tokenizer is another.
  """

  graphdef: nnx.GraphDef
  config: ModelConfig
  translation: Translation | None = None


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """`types.Model` made of a language model; static, its arrays are in `params`.

  Attributes:
    graphdef: structure of the model.
    config: its shapes.
    search: hyperparameters of the search.
    preference: what to align with, compiled for the tokenizer.
    embedder: makes path embeddings.
    max_prompt: tokens of the longest prompt, as either cache holds it.
    max_response: tokens of the longest response (R).
    read_chunk: text tokens read per verdict call; longer texts take several.
    soft_verdicts: see `self_evaluation.values`.
    verdict: another model that gives the verdicts; None is self-evaluation.
  """

  graphdef: nnx.GraphDef
  config: ModelConfig
  search: SearchConfig
  preference: CompiledPreference
  embedder: Embedder
  max_prompt: int
  max_response: int
  read_chunk: int = 24
  soft_verdicts: bool = False
  verdict: VerdictModel | None = None

  @property
  def embedding_size(self) -> int:
    """Width of a path embedding (E)."""
    return self.embedder.size(self.config)

  @property
  def translation(self) -> Translation | None:
    """Into the tokens of the verdict's model; None where it reads those that are written."""
    return None if self.verdict is None else self.verdict.translation

  @property
  def judged_room(self) -> int:
    """Tokens of a response that are kept free for one verdict."""
    if self.translation is None:
      return self.max_response
    return self.translation.room(self.max_response + self.search.max_set_length)

  @property
  def draft_room(self) -> int:
    """Tokens of the longest draft."""
    return min(self.search.draft_length or self.max_response, self.max_response)

  @property
  def without_search(self) -> "LanguageModel":
    """The same for programs that do not search: one program then serves every method."""
    return dataclasses.replace(self, search=SearchConfig(sample_top_k=self.search.sample_top_k))

  # -- state ----------------------------------------------------------------------

  def init(self, batch: int, params: Params) -> PolicyState:
    """State of `batch` empty slots, with keys and values stored as those of `params`, or of its shapes."""
    kvs = params["proposing_prefix"], params["evaluating_prefix"]
    search_config = self.search
    V, L = search_config.max_visited, search_config.max_set_length
    length = self.max_prompt + self.max_response + L
    # Of a response in other tokens nothing is kept.
    judged = (length, V) if self.translation is None else (self.max_prompt, 1)
    zeros = lambda *shape: jnp.zeros((batch,) + shape, jnp.int32)
    # Every verdict of a query fits: moves of a response, times iterations of a move.
    moves = self.max_response // L + len(search_config.set_lengths)
    entries = moves * (search_config.max_iterations + search_config.extra_iterations)
    return PolicyState(
      proposing=caches.init(kvs[0], batch, length, V, L),
      evaluating=caches.init(kvs[1], batch, *judged, L),
      text=scanner.empty((batch,)),
      node_text=scanner.empty((batch, V)),
      hidden=jnp.zeros((batch, V, self.config.hidden_size), jnp.float32),
      memory=Memory(
        hash=jnp.zeros((batch, entries, 2), jnp.uint32),
        value=jnp.zeros((batch, entries), jnp.float32),
        count=zeros(),
      ),
      usage=no_usage(batch),
      drafted=None if search_config.mode == "exact" else segments.nothing(self, batch, *kvs),
    )

  def empty_slots(self, batch: int, params: Params) -> decode.DecodeState:
    """`init` with the searches around it: the state of `batch` slots in which nothing has begun."""
    state = self.init(batch, params)
    return decode.init(batch, state, self.search, self.embedding_size, self.max_response)

  @staticmethod
  def head_specs(state: Any, mesh: AnyMesh, rules: Rules = Rules()) -> Any:
    """How a state is split over a mesh beside its batch: caches by their heads."""
    heads = lambda a: PartitionSpec(
      *(None,) * (a.ndim - 3), split(a.shape[-3], rules.kv_heads, mesh)
    )
    whole = lambda a: PartitionSpec()
    is_kv = lambda node: isinstance(node, KV)
    return jax.tree.map(
      lambda node: jax.tree.map(heads if is_kv(node) else whole, node), state, is_leaf=is_kv
    )

  def start(
    self, params: Params, state: PolicyState, slot: Array, proposing: Prompt, evaluating: Prompt
  ) -> PolicyState:
    """Begins a query in a slot: its prompt is read into both caches.

    Args:
      params: see `params.make_params`.
      state: of the batch.
      slot: int32[] which slot; nothing begins if there is none of that number.
      proposing: the prompt after which the response is generated.
      evaluating: the same conversation as the verdict reads it.
    """
    usage = state.usage
    usage = usage.replace(
      calls=usage.calls.at[slot].set(0),
      tokens=usage.tokens.at[slot].set(0),
      verdicts_read=usage.verdicts_read.at[slot].set(0),
      verdicts_remembered=usage.verdicts_remembered.at[slot].set(0),
    )
    # A search's first visit of the root needs the logits after the prompt, so its last token is left
    # for that; drafts keep what follows it.
    upto = proposing.length - 1 if state.drafted is None else proposing.length
    first, hidden, usage = read_prompt(
      self, params, state.proposing, slot, proposing, upto, "proposing", usage
    )
    second, _, usage = read_prompt(
      self, params, state.evaluating, slot, evaluating, evaluating.length, "evaluating", usage
    )
    text = scanner.empty(()).replace(ends=proposing.ends)
    if state.drafted is not None:
      state = state.replace(drafted=segments.begin(state.drafted, slot, hidden, proposing.ends))
    return state.replace(
      proposing=first,
      evaluating=second,
      text=jax.tree.map(lambda new, old: old.at[slot].set(new), text, state.text),
      memory=state.memory.replace(count=state.memory.count.at[slot].set(0)),
      usage=usage,
    )

  def commit(self, params: Params, state: PolicyState, commit: Commit) -> PolicyState:
    """Makes committed tokens part of both contexts; see `types.Model`."""
    move = lambda cache: caches.commit(
      cache, commit.mask, commit.page, commit.tokens, commit.length
    )
    tokens = jnp.where(commit.mask[:, None], commit.tokens, NO_TOKEN)
    if state.drafted is not None:
      state = state.replace(drafted=segments.forget(state.drafted, commit.mask))
    return state.replace(
      proposing=move(state.proposing),
      evaluating=state.evaluating if self.translation else move(state.evaluating),
      text=scanner.advance_all(params["tables"], state.text, tokens),
    )

  # -- drafts of whole segments -----------------------------------------------------

  def draft(
    self, params: Params, state: PolicyState, wanted: Array, keys: Array
  ) -> tuple[BestDraft, PolicyState]:
    """Samples and judges drafts of the next segment; see `types.Drafter`."""
    return segments.draft(self, params, state, wanted, keys)

  def commit_draft(self, params: Params, state: PolicyState, mask: Array) -> PolicyState:
    """Makes the best drafts part of both contexts; see `types.Drafter`."""
    return segments.commit_draft(state, mask)

  def rewind(
    self, params: Params, state: PolicyState, mask: Array, begin: Array, end: Array
  ) -> PolicyState:
    """Takes back what was committed after `begin` tokens; see `types.Reviser`."""
    return segments.rewind(self, params, state, mask, begin, end)

  # -- evaluation -----------------------------------------------------------------

  def evaluate(
    self, params: Params, state: PolicyState, request: Request, keys: Array
  ) -> tuple[Evaluation, PolicyState]:
    """Candidates, rollout and verdict for every leaf asked for; see `types.Model`."""
    uniforms = rollout.draw_uniforms(self, keys)
    fresh = request.first_visit
    state = state.replace(
      proposing=caches.forget(state.proposing, request.leaf_page, fresh),
      evaluating=caches.forget(state.evaluating, request.leaf_page, fresh),
    )
    logits, state = self._read_leaves(params, state, request)
    text, state = self._leaf_text(params, state, request)
    drawn, state = self._decode(params, state, request, text, logits, uniforms)
    value, state = self._self_evaluate(params, state, request, drawn)
    with jax.named_scope("embed"):
      embeddings = self.embedder.embed(self, params, state, request, drawn)
    answer = Evaluation(
      tokens=drawn.tokens,
      lengths=drawn.lengths,
      log_weights=drawn.log_weights,
      finish=drawn.finish,
      value=value,
      embeddings=embeddings,
      rollout=types.Rollout(drawn.rollout, drawn.rollout_finish),
    )
    return answer, state

  @jax.named_scope("read_leaves")
  def _read_leaves(
    self, params: Params, state: PolicyState, request: Request
  ) -> tuple[Array, PolicyState]:
    """Reads the tokens of new leaves: logits float32[B, W, vocab] after each leaf."""
    cache, L = state.proposing, self.search.max_set_length
    paths = context.paths(request)
    total = paths.total(cache)
    growing = request.mode == types.GROW
    wanted = request.first_visit | growing
    # A growing node's last token is read again, for the logits after it, and so is that of a
    # root after which drafts were made.
    begin = jnp.where(growing, total - 1, jnp.minimum(caches.known(cache, paths), total - 1))
    at = begin[..., None] + jnp.arange(L)
    valid = wanted[..., None] & (at < total[..., None])
    where = caches.locate(cache, paths, at)
    prefix, shift = context.prefix(params, "proposing")
    hidden, new = forward(
      self.graphdef,
      params["model"],
      where.token,
      jnp.where(valid, at + shift, NO_POSITION),
      [*prefix, *caches.segments(cache, paths, jnp.where(wanted, begin, 0), shift)],
    )
    keep = valid & ~growing[..., None]
    cache = caches.write(cache, ordered_after(hidden, new), where, keep)
    cache = caches.mark(cache, paths, total, wanted & ~growing)
    last = jnp.clip(total - 1 - begin, 0, L - 1)
    after = jnp.take_along_axis(hidden, last[..., None, None], axis=2)[:, :, 0]
    in_node = keep & (at >= state.proposing.length[:, None, None])
    summed = jnp.sum(jnp.where(in_node[..., None], hidden.astype(jnp.float32), 0.0), axis=2)
    store = jnp.where(request.first_visit, request.leaf_page, self.search.max_visited)
    rows = jnp.arange(store.shape[0])[:, None]
    return decoding.next_logits(self, params, after), state.replace(
      proposing=cache,
      hidden=state.hidden.at[rows, store].set(summed, mode="drop"),
      usage=state.usage.count(CONTEXT, valid),
    )

  @jax.named_scope("read_leaves")
  def _leaf_text(
    self, params: Params, state: PolicyState, request: Request
  ) -> tuple[ScanState, PolicyState]:
    """The `ScanState` [B, W] of each leaf, stored for its descendants."""
    depth = request.path_length
    parent_at = jnp.maximum(depth - 2, 0)[..., None]
    parent = jnp.take_along_axis(request.path_pages, parent_at, axis=-1)[..., 0]
    pick = lambda of_root, of_node: arrays.where(
      depth >= 2, arrays.gather(of_node, parent), of_root[:, None]
    )
    before = jax.tree.map(pick, state.text, state.node_text)
    at = jnp.maximum(depth - 1, 0)[..., None, None]
    tokens = jnp.take_along_axis(request.path_tokens, at, axis=2)[:, :, 0]
    tokens = jnp.where((depth > 0)[..., None], tokens, NO_TOKEN)
    text = scanner.advance_all(params["tables"], before, tokens)
    page = jnp.where(request.mode == types.VISIT, request.leaf_page, self.search.max_visited)
    rows = jnp.arange(page.shape[0])[:, None]
    store = lambda old, new: old.at[rows, page].set(new, mode="drop")
    return text, state.replace(node_text=jax.tree.map(store, state.node_text, text))

  def finish(self, text: ScanState, token: Array) -> Array:
    """Why a text ends with `token`, or RUNNING; int32[...]."""
    eos = jnp.isin(token, jnp.asarray(self.config.eos_ids, jnp.int32))
    full = text.length >= self.max_response
    return jnp.where(
      eos,
      types.EOS,
      jnp.where(text.stopped, types.STOP, jnp.where(full, types.LENGTH, types.RUNNING)),
    )

  def _decode(
    self,
    params: Params,
    state: PolicyState,
    request: Request,
    text: ScanState,
    logits: Array,
    uniforms: rollout.Uniforms,
  ) -> tuple[rollout.Draft, PolicyState]:
    """Decodes candidates and rollouts side by side, then the longer rollouts alone."""
    with jax.named_scope("candidates"):
      said = context.response(state.proposing, request, state.text.length, self.max_response)
      draft = rollout.start_draft(self, params, request, text, said, logits, uniforms)
      draft, begun, usage = rollout.decode_together(self, params, state, request, draft, uniforms)
    with jax.named_scope("rollout"):
      draft, usage, _ = rollout.decode_rollouts(
        self, params, state, request, draft, begun, usage, uniforms.rollout
      )
    with jax.named_scope("candidates"):
      draft = rollout.first_tokens(self, params, request, text, logits, draft)
    return draft, state.replace(usage=usage)

  @jax.named_scope("self_evaluation")
  def _self_evaluate(
    self, params: Params, state: PolicyState, request: Request, drawn: rollout.Draft
  ) -> tuple[Array, PolicyState]:
    """The verdict on each leaf's text and rollout, float32[B, W] in [-1, 1], or NaN."""
    visit = request.mode == types.VISIT
    judged, key = self.judged(drawn.text, drawn.rollout_finish)
    memory = state.memory
    stored = jnp.arange(memory.value.shape[-1]) < memory.count[:, None]
    same = jnp.all(memory.hash[:, None] == key[:, :, None], axis=-1) & stored[:, None]
    remembered = visit & same.any(-1)
    recalled = jnp.take_along_axis(memory.value, jnp.argmax(same, axis=-1), axis=-1)
    asked = visit & ~remembered

    paths = context.paths(request, drawn.rollout)
    margins, cache, _, usage = translation.read_verdicts(
      self, params, state, paths, judged, asked, state.usage
    )
    value = self_evaluation.values(margins, self.soft_verdicts)
    value = params["override"].apply(value, key)
    order = memory.count[:, None] + jnp.cumsum(asked, axis=-1) - 1
    entry = jnp.where(asked, order % memory.value.shape[-1], memory.value.shape[-1])
    rows = jnp.arange(entry.shape[0])[:, None]
    memory = Memory(
      hash=memory.hash.at[rows, entry].set(key, mode="drop"),
      value=memory.value.at[rows, entry].set(value, mode="drop"),
      count=memory.count + asked.sum(-1),
    )
    usage = usage.replace(
      verdicts_read=usage.verdicts_read + asked.sum(-1),
      verdicts_remembered=usage.verdicts_remembered + remembered.sum(-1),
    )
    value = jnp.where(remembered, recalled, value)
    broken = drawn.failed | (asked & jnp.isnan(margins).any(-1))
    value = jnp.where(broken, jnp.nan, value)
    return value, state.replace(evaluating=cache, memory=memory, usage=usage)

  def judged(self, text: ScanState, finish: Array) -> tuple[Array, Array]:
    """How many response tokens are judged, int32[...], and the hash of their text."""
    length = text.length - (finish == types.EOS)
    # At a second user turn the conversation is cut where that turn begins.
    length = jnp.where(finish == types.STOP, text.tokens_before_stop, length)
    if not self.preference.cut:
      return length, text.hash
    cut = (text.tokens_at_full_stop > 0) & (text.tokens_at_full_stop <= length)
    length = jnp.where(cut, text.tokens_at_full_stop, length)
    return length, jnp.where(cut[..., None], text.hash_at_full_stop, text.hash)
