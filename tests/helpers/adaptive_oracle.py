"""A plain program of the adaptive mode, one response at a time, to hold the library against.

The search is that of `oracle.Search`, begun at any text; the rest is written from the state machine
of docs/method.md. Drafts are a script's, numbered from 0 at each root.
"""

import collections
import math
from typing import Any, NamedTuple, Protocol

from tests.helpers import oracle
from tests.helpers.oracle import RUNNING, Text

# Everything that the mode can do; tests assert that each was done.
BRANCHES = (
  "draft_good",
  "draft_good_in_second_round",
  "draft_ends",
  "draft_banned",
  "round_all_banned",
  "draft_of_equal_margin",
  "draft_kept_best",
  "draft_kept_from_an_earlier_round",
  "rewind_after_drafts",
  "rewind_after_search",
  "rewind_over_a_searched_move",
  "rewind_twice_in_a_row",
  "rewind_to_the_beginning",
  "no_rewind_left",
  "nothing_to_take_back",
  "search_at_the_beginning",
  "search_begun_later",
  "search_goes_on",
  "search_trusted",
  "search_kept_best",
  "search_ends",
  "search_exhausted",
  "search_without_children_taken_back",
)


class Draft(NamedTuple):
  """One draft of the next segment: tokens, finish reason, margin of its verdict."""

  tokens: tuple[int, ...]
  finish: str
  margin: float


class DraftingScript(Protocol):
  """What stands in for the language model."""

  def draft(self, text: Text, number: int) -> Draft:
    """Draft number `number` after a text."""

  def after(self, text: Text) -> oracle.Script:
    """The script of a search whose root is at a text."""


class Adaptive:
  """Adaptive RAIN for one response.

  Attributes:
    pieces: token sets and drafts committed so far.
    finish: why the response ended, or RUNNING.
    count: branch or quantity -> how often; the counts of all searches are among them.
    gaps: as in `oracle.Search`.
  """

  def __init__(self, script: DraftingScript, config: Any):
    self.script, self.config = script, config
    self.pieces: list[tuple[int, ...]] = []
    self.finish = RUNNING
    self.count: collections.Counter = collections.Counter()
    self.gaps: dict[str, float] = {}
    self.banned: set[Text] = set()
    self.drafts: list[
      int
    ] = []  # how many pieces there were before each draft that can be taken back
    self.search: oracle.Search | None = None  # the one whose root is here, if there was any
    self.inherited = 0

  def run(self) -> "Adaptive":
    """To the end of the response."""
    while self.finish == RUNNING:
      best, drawn_last = self._drafted()
      if best is not None and best.margin > self.config.draft_threshold:
        self._commit_draft(best)
      elif self._can_rewind() and self.count["taken_back"] < self.config.search_after:
        self._rewind("rewind_after_drafts")
      elif not self.config.searches or (
        best is not None and best.margin >= self.config.search_below
      ):
        self.count["kept_though_taken_back"] += best is None
        best = best or self.script.draft(tuple(self.pieces), 0)
        self.count["kept_best"] += 1
        self.count["draft_kept_best"] += 1
        self.count["draft_kept_from_an_earlier_round"] += not drawn_last
        self._commit_draft(best)
      else:
        self._search()
    self._close_search()
    return self

  def _drafted(self) -> tuple[Draft | None, bool]:
    """The best draft, the first good one if there is any, and whether the last round drew it."""
    c, text, tried = self.config, tuple(self.pieces), 0
    best, drawn_last = None, False
    while tried < c.root_tries and (best is None or best.margin <= c.draft_threshold):
      drawn = [self.script.draft(text, tried + row) for row in range(c.root_rows)]
      allowed = [one for one in drawn if (*text, one.tokens) not in self.banned]
      self.count["draft_banned"] += len(allowed) < len(drawn)
      self.count["round_all_banned"] += not allowed
      tried += c.root_rows
      self.count["drafts"] += c.root_rows
      self.count["steps"] += 1
      drawn_last = False
      if not allowed:
        continue
      new = max(allowed, key=lambda one: one.margin)  # the first of equal ones
      self.count["draft_of_equal_margin"] += sum(o.margin == new.margin for o in allowed) > 1
      if best is None or new.margin > best.margin:
        best, drawn_last = new, True
    good = best is not None and best.margin > c.draft_threshold
    self.count["draft_good"] += good
    self.count["draft_good_in_second_round"] += good and tried > c.root_rows
    return best, drawn_last

  def _commit_draft(self, best: Draft) -> None:
    self._close_search()
    self.drafts.append(len(self.pieces))
    self.pieces.append(best.tokens)
    self.finish = best.finish
    self.count["draft_ends"] += best.finish != RUNNING
    self.count["moves"] += 1
    self.last_was_rewind = False

  def _can_rewind(self) -> bool:
    left = self.count["taken_back"] < self.config.max_rewinds
    self.count["no_rewind_left"] += not left
    self.count["nothing_to_take_back"] += not self.drafts
    return left and bool(self.drafts)

  last_was_rewind = False

  def _rewind(self, why: str) -> None:
    self._close_search()
    begin = self.drafts.pop()
    self.banned.add(tuple(self.pieces[: begin + 1]))
    self.count["rewind_over_a_searched_move"] += len(self.pieces) > begin + 1
    self.count["rewind_to_the_beginning"] += begin == 0
    self.count["rewind_twice_in_a_row"] += self.last_was_rewind
    self.last_was_rewind = True
    del self.pieces[begin:]
    self.count["taken_back"] += 1
    self.count[why] += 1

  def _search(self) -> None:
    """Iterations to a move, or to the limit and back."""
    if self.search is None:
      self.count["search_begun_later" if self.pieces else "search_at_the_beginning"] += 1
      self.search, self.inherited = (
        oracle.Search(self.script.after(tuple(self.pieces)), self.config),
        0,
      )
    else:
      self.count["search_goes_on"] += 1
    search, grown = self.search, self.search.count["grows"]
    enough = False
    while not enough:
      search._iterate()
      self.count["steps"] += 1
      enough = search._enough(self.inherited)
    self.count["steps"] += search.count["grows"] - grown
    best = search._best()
    trusted = best is not None and search._trusted(best)
    if not trusted and self._can_rewind():
      self.count["search_without_children_taken_back"] += best is None
      self._rewind("rewind_after_search")
      return
    self.inherited = search._commit()
    if best is None:
      self.finish = search.finish
      self.count["search_exhausted"] += 1
      return
    self.pieces.append(best.text[-1])
    self.finish = best.finish
    self.count["moves"] += 1
    self.count["searched_moves"] += 1
    self.count["search_trusted" if trusted else "search_kept_best"] += 1
    self.count["kept_best"] += not trusted
    self.count["search_ends"] += best.finish != RUNNING
    self.last_was_rewind = False

  def _close_search(self) -> None:
    """A search's root is left for good: what it counted joins the rest."""
    if self.search is None:
      return
    for name, count in self.search.count.items():
      self.count[name] += 0 if name == "moves" else count
    for kind, gap in self.search.gaps.items():
      self.gaps[kind] = min(gap, self.gaps.get(kind, math.inf))
    self.search = None
