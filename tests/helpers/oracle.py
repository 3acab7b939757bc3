"""A plain program of the search, to hold the library's arrays against.

One prompt at a time, with objects and dicts, written from the description of the method
(docs/architecture.md, section 2; RAIN, sections 3.1 and 3.2) and sharing no code with the library. The
model is a `Script`: functions of the text, given as a tuple of token sets, so that a
table can stand in for a language model. Every branch taken is counted, and so is every
decision that rounding could have turned the other way.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

RUNNING = "running"
EXHAUSTED = "exhausted"

# Everything that a search can do; tests assert that each was done.
BRANCHES = (
  "select_tie",
  "select_untried",
  "expand_first",
  "expand_deeper",
  "expand_nothing",
  "duplicate_dropped",
  "redraw_stopped_early",
  "redraw_ran_out",
  "greedy_alone",
  "greedy_clipped_up",
  "greedy_clipped_down",
  "greedy_unclipped",
  "similarity_update",
  "similarity_refused",
  "grow_first_joined",
  "grow_first_nobody",
  "grow_root_joined",
  "grow_deeper_joined",
  "grow_nobody",
  "grow_two_joined",
  "grow_no_room_for_second",
  "grow_refused_good",
  "grow_refused_varied",
  "grow_refused_full",
  "finished_revisited",
  "reroot_inherited",
  "remix_unnormalised",
  "commit_trusted",
  "commit_limit",
  "commit_limit_inherited",
  "commit_inherited",
  "over_own_limit",
  "commit_finished",
  "best_tie_by_q",
  "best_tie_by_age",
  "exhausted",
)

Text = tuple[tuple[int, ...], ...]


class Proposal(NamedTuple):
  """A continuation: tokens, log of the product of their probabilities, finish reason."""

  tokens: tuple[int, ...]
  log_weight: float
  finish: str


class Script(Protocol):
  """What stands in for the language model."""

  def first(self) -> list[Proposal]:
    """The most probable first tokens, most probable first, as many as a node may grow."""

  def draw(self, text: Text, times: int, sampled: int) -> list[Proposal]:
    """One greedy and `sampled` sampled continuations; `times` this text was grown."""

  def verdict(self, text: Text) -> float:
    """The value of a rollout from `text`."""

  def embedding(self, text: Text, leaf: Text) -> np.ndarray:
    """Of the text from the last set of `text` to the end of a rollout from `leaf`."""


@dataclasses.dataclass(eq=False)
class Node:
  """A node of the search tree; `text` holds the token sets from the response's start."""

  parent: "Node | None"
  text: Text
  p: float
  finish: str
  n: float = 0.0
  f: int = 0
  q: float = 0.0
  e: Any = None
  grown: int = 0
  children: list["Node"] = dataclasses.field(default_factory=list)
  proposals: list[Proposal] = dataclasses.field(default_factory=list)

  @property
  def depth(self) -> int:
    """Token sets between the start of the response and the node."""
    return len(self.text)


def _whole(node: Node) -> bool:
  """Whether no similarity update has touched the node's visit weight."""
  return node.n == node.f


def _same(a: Node, b: Node) -> bool:
  """Whether two nodes tie however one rounds: the same numbers, none of them shared."""
  return _whole(a) and (a.n, a.q, a.p) == (b.n, b.q, b.p)


def clip(proposals: list[Proposal], count: collections.Counter) -> list[Proposal]:
  """Brings the weight of the greedy proposal, the first, into line with the sampled."""
  greedy, sampled = proposals[0], [math.exp(c.log_weight) for c in proposals[1:]]
  if not sampled:
    count["greedy_alone"] += 1
    return proposals
  own = math.exp(greedy.log_weight)
  weight = max(min(own, sum(sampled)), max(sampled) + min(sampled))
  kind = "up" if weight > own else "down"
  count["greedy_unclipped" if weight == own else f"greedy_clipped_{kind}"] += 1
  return [greedy._replace(log_weight=math.log(weight)), *proposals[1:]]


class Search:
  """The search for one response.

  Attributes:
    root: the current root.
    response: token sets committed so far.
    finish: why the response ended, or RUNNING.
    count: branch or quantity -> how often.
    gaps: kind of decision -> smallest distance (above 0) from going the other way.
  """

  def __init__(self, script: Script, config: Any):
    """`config` carries the numbers of the method, named as in the library's config."""
    self.script = script
    self.config = config
    self.root = Node(parent=None, text=(), p=0.0, finish=RUNNING)
    self.response: list[tuple[int, ...]] = []
    self.finish = RUNNING
    self.count: collections.Counter = collections.Counter()
    self.gaps: dict[str, float] = {}
    self.last: Node | None = None

  def run(self) -> "Search":
    """Searches to the end of the response."""
    for _ in self.iterations():
      pass
    return self

  def iterations(self) -> Iterator["Search"]:
    """Yields after each iteration, with the commit that followed from it done."""
    inherited = 0
    while self.finish == RUNNING:
      self._iterate()
      if self._enough(inherited):
        inherited = self._commit()
        while self.config.early_commit and self._inherits_trust():
          self.count["commit_inherited"] += 1
          inherited = self._commit()
      yield self

  def _decide(self, kind: str, distance: float, exact: bool = False) -> None:
    """Notes how far from zero the quantity is that a decision depended on.

    Zero itself is no danger if it is `exact`: free of rounding in any order of adding up.
    """
    if not (exact and distance == 0):
      self.gaps[kind] = min(abs(distance), self.gaps.get(kind, math.inf))

  # One iteration: select, evaluate, expand, back up.

  def _iterate(self) -> None:
    self.count["iterations"] += 1
    path = self._select()
    leaf = path[-1] if path else self.root
    self._note_rewind(leaf)
    if leaf.finish != RUNNING:
      self.count["finished_revisited"] += leaf.f > 0
    else:
      self._expand(leaf)
    self._back_up(path, leaf)

  def _select(self) -> list[Node]:
    node, path = self.root, []
    while node.children:
      if self._growth_due(node):
        self._grow_first(node) if node.depth == 0 else self._grow(node)
      scores = [self._score(node, child) for child in node.children]
      best = max(scores)
      top = [i for i, score in enumerate(scores) if score == best]
      self.count["select_tie"] += len(top) > 1
      chosen = node.children[top[0]]
      for child, score in zip(node.children, scores):
        if child is not chosen:
          self._decide("select", best - score, exact=_same(chosen, child))
      node = chosen
      self.count["select_untried"] += node.n == 0
      path.append(node)
    return path

  def _score(self, parent: Node, child: Node) -> float:
    exploit = (child.q + 1) / 2.00001 if child.n > 0 else 0.0
    c = self.config.exploration
    return exploit + c * child.p * math.sqrt(parent.n) / (1 + child.n)

  def _note_rewind(self, leaf: Node) -> None:
    """A rewind: the next path does not go on from where the last one ended."""
    node = leaf
    while node is not None and node is not self.last:
      node = node.parent
    self.count["rewinds"] += self.last is not None and node is None
    self.last = leaf

  def _expand(self, leaf: Node) -> None:
    c = self.config
    if leaf.depth == 0:
      leaf.proposals = self.script.first()
      chosen = leaf.proposals[: c.num_candidates]
      weights = [math.exp(x.log_weight / c.temperature) for x in chosen]
      pairs = sorted(zip(chosen, weights), key=lambda pair: pair[0].tokens)
      self.count["expand_first"] += 1
    else:
      leaf.proposals = self._candidates(leaf)
      pairs = [(x, math.exp(x.log_weight)) for x in leaf.proposals]
      self.count["expand_deeper"] += 1
    self.count["expand_nothing"] += not pairs
    self._join(leaf, pairs)

  def _candidates(self, leaf: Node) -> list[Proposal]:
    """Greedy and sampled candidates without duplicates, the greedy one clipped."""
    c = self.config
    wanted = c.num_candidates
    sampled = 2 * wanted - 1 if c.redraw else wanted - 1
    drawn = self.script.draw(leaf.text, 0, sampled)
    kept: list[Proposal] = []
    for proposal in drawn:
      if len(kept) == wanted:
        self.count["redraw_stopped_early"] += 1
        break
      if any(proposal.tokens == old.tokens for old in kept):
        self.count["duplicate_dropped"] += 1
      else:
        kept.append(proposal)
    if c.redraw and drawn:
      self.count["redraw_ran_out"] += len(kept) < wanted
    return clip(kept, self.count) if kept else []

  def _join(self, node: Node, pairs: list[tuple[Proposal, float]]) -> int:
    """Proposals with their weights become children where they are not; how many did."""
    total, joined = sum(weight for _, weight in pairs), 0
    for proposal, weight in pairs:
      p = weight / total
      if node is self.root:
        p = self.config.root_prior * p + (1 - self.config.root_prior) / len(pairs)
      if any(proposal.tokens == child.text[-1] for child in node.children):
        continue
      if len(node.children) == self.config.max_children:
        self.count["grow_no_room_for_second"] += 1
        continue
      text = node.text + (proposal.tokens,)
      node.children.append(Node(parent=node, text=text, p=p, finish=proposal.finish))
      joined += 1
    return joined

  # Dynamic node addition.

  def _set_length(self, depth: int) -> int:
    lengths = self.config.set_lengths
    return lengths[min(depth, len(lengths) - 1)]

  def _growth_due(self, node: Node) -> bool:
    children = node.children
    if len(children) < 2 or any(child.e is None for child in children):
      return False
    if len(children) >= self.config.max_children:
      self.count["grow_refused_full"] += 1
      return False
    best = max(child.q for child in children)
    self._decide("grow_q", best, exact=True)
    if best >= 0:
      self.count["grow_refused_good"] += 1
      return False
    variance = np.var([child.e for child in children], axis=0, ddof=1)
    limit = self.config.grow_threshold * self._set_length(node.depth)
    norm = math.sqrt(sum(variance**2))
    self._decide("grow_variance", norm - limit)
    self.count["grow_refused_varied"] += norm >= limit
    return norm < limit

  def _grow_first(self, node: Node) -> None:
    """The next most probable token joins; no new draw."""
    considered = node.proposals[: len(node.children) + 1]
    joined = self._join(node, [(x, math.exp(x.log_weight)) for x in considered])
    self.count["grow_first_joined" if joined else "grow_first_nobody"] += 1
    self.count["joined"] += joined

  def _grow(self, node: Node) -> None:
    """A greedy and the first differing sampled continuation go ahead of the proposals."""
    node.grown += 1
    greedy, *sampled = self.script.draw(node.text, node.grown, 3 if self.config.redraw else 1)
    other = [x for x in sampled if x.tokens != greedy.tokens][:1]
    node.proposals = clip([greedy, *other], self.count) + node.proposals
    considered = node.proposals[: len(node.children) + 1]
    joined = self._join(node, [(x, math.exp(x.log_weight)) for x in considered])
    kind = "grow_root_joined" if node is self.root else "grow_deeper_joined"
    self.count[kind if joined else "grow_nobody"] += 1
    self.count["grow_two_joined"] += joined == 2
    self.count["grows"] += 1
    self.count["joined"] += joined

  # Backing up a verdict.

  def _back_up(self, path: list[Node], leaf: Node) -> None:
    v = self.script.verdict(leaf.text)
    for node in [*reversed(path), self.root]:
      node.n += 1
      node.f += 1
      if node is not self.root:
        new = self.script.embedding(node.text, leaf.text)
        node.e = new.copy() if node.e is None else node.e + (new - node.e) / node.f
        self._share(node, v)
      node.q += (v - node.q) / node.n

  def _share(self, node: Node, v: float) -> None:
    """The similarity update."""
    for sibling in node.parent.children:
      if sibling is node or sibling.e is None:
        continue
      size = math.sqrt(float(node.e @ node.e)) * math.sqrt(float(sibling.e @ sibling.e))
      s = float(node.e @ sibling.e) / max(size, 1e-8)
      self._decide("similarity", s - self.config.similarity_threshold)
      if s >= self.config.similarity_threshold:
        w = self.config.similarity_weight * s
        sibling.q = (sibling.q * sibling.n + w * v) / (sibling.n + w)
        sibling.n += w
        self.count["similarity_update"] += 1
      else:
        self.count["similarity_refused"] += 1

  # The outer loop.

  def _trusted(self, child: Node) -> bool:
    return child.f > self.config.min_visits and child.q > self.config.value_threshold

  def _inherits_trust(self) -> bool:
    """Whether a fresh root can be left without a new iteration (an option of ours)."""
    best = self._best()
    if self.finish != RUNNING or best is None:
      return False
    self._note_rivals(best)
    return self._trusted(best)

  def _best(self) -> Node | None:
    """Highest n, ties by q, then by age."""
    return max(self.root.children, key=lambda child: (child.n, child.q), default=None)

  def _enough(self, inherited: int) -> bool:
    c, best = self.config, self._best()
    by_own = self.root.f >= c.max_iterations
    limit = self.root.f >= max(c.max_iterations, inherited + c.extra_iterations)
    trusted = best is not None and self._trusted(best)
    if best is not None:
      self._note_rivals(best, always=limit)
    if trusted:
      self.count["commit_trusted"] += 1
    elif limit:
      late = inherited + c.extra_iterations > c.max_iterations
      self.count["commit_limit_inherited" if late else "commit_limit"] += 1
    elif by_own:
      self.count["over_own_limit"] += 1
    return trusted or limit

  def _note_rivals(self, best: Node, always: bool = False) -> None:
    """Notes how near the choice of the best child was, where a commit hung on it."""
    c, rivals = self.config, self.root.children
    if best.f > c.min_visits:
      self._decide("commit_q", best.q - c.value_threshold)
    if always or any(self._trusted(child) for child in rivals):
      for child in rivals:
        if child is not best:
          self._decide("best_n", best.n - child.n, exact=_whole(child))
          if child.n == best.n:
            self._decide("best_q", best.q - child.q, exact=_same(best, child))

  def _commit(self) -> int:
    """Commits the best child; returns the iterations that the new root inherits."""
    best = self._best()
    if best is None:
      self.finish = EXHAUSTED
      self.count["exhausted"] += 1
      return 0
    rivals = [child for child in self.root.children if child.n == best.n]
    self.count["best_tie_by_q"] += len({child.q for child in rivals}) > 1
    self.count["best_tie_by_age"] += sum(child.q == best.q for child in rivals) > 1
    self.response.append(best.text[-1])
    self.finish = best.finish
    self.root, best.parent = best, None
    self.count["moves"] += 1
    self.count["reroot_inherited"] += any(child.f > 0 for child in best.children)
    self.count["commit_finished"] += best.finish != RUNNING
    self._remix()
    node = self.last
    while node is not None and node is not best:
      node = node.parent
    if node is None:
      self.count["rewinds"] += self.last is not None
      self.last = None
    return best.f

  def _remix(self) -> None:
    """Priors of the new root's children are mixed with the uniform, and sum to one."""
    children, share = self.root.children, self.config.root_prior
    self.count["remix_unnormalised"] += sum(child.p for child in children) > 1 + 1e-6
    mixed = [share * child.p + (1 - share) / len(children) for child in children]
    for child, p in zip(children, mixed):
      child.p = p / sum(mixed)
