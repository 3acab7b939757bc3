"""Automata over the bytes of a text: stop strings, and well-formed UTF-8."""

from collections.abc import Sequence

import numpy as np


def stop_automaton(stops: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
  """Aho-Corasick automaton: int16[states, 256], state 0 first, "complete" last.

  All accepting states are one, and it is absorbing: the first complete stop string ends
  a response, so what would follow is of no interest.

  Returns:
    The next states, and int16[states, 256] how many bytes of a stop string they stand for.
  """
  children: list[dict[int, int]] = [{}]
  accepts, depth = [False], [0]
  for stop in stops:
    state = 0
    for byte in stop:
      if byte not in children[state]:
        children[state][byte] = len(children)
        children.append({})
        accepts.append(False)
        depth.append(depth[state] + 1)
      state = children[state][byte]
    accepts[state] = True

  count = len(children)
  if count >= np.iinfo(np.int16).max:
    raise ValueError(f"Stop strings of {count - 1} bytes in all: expected 32765 or fewer.")
  delta = np.zeros((count, 256), np.int64)
  fallback = [0] * count
  queue = [0]
  for state in queue:  # breadth first: a state's fallback is complete before the state
    if state:
      if accepts[fallback[state]] and not accepts[state]:
        accepts[state], depth[state] = True, depth[fallback[state]]
      delta[state] = delta[fallback[state]]
    for byte, child in children[state].items():
      fallback[child] = int(delta[fallback[state], byte]) if state else 0
      delta[state, byte] = child
      queue.append(child)

  running = [state for state in range(count) if not accepts[state]]
  number = np.full(count, len(running), np.int16)
  number[running] = np.arange(len(running))
  absorbing = np.full((1, 256), len(running), np.int16)
  found = np.array(depth, np.int16)[delta[running]]
  return np.concatenate([number[delta[running]], absorbing]), np.concatenate([found, absorbing])


def depths(delta: np.ndarray, found: np.ndarray) -> np.ndarray:
  """int16[states] how many bytes of a stop string each state but the last stands for."""
  deepest = np.zeros(len(delta), np.int16)
  np.maximum.at(deepest, delta[:-1], found[:-1])
  deepest[-1] = 0
  return deepest


def _utf8_automaton() -> np.ndarray:
  """int32[9, 256]: validity of a run of bytes as UTF-8 (Unicode, table 3-7).

  State 0: a whole number of characters. 1, 2, 3: that many continuation bytes are
  missing. 4 to 7: after E0, ED, F0 and F4, whose next byte is restricted. 8: broken.
  """
  table = np.full((9, 256), 8, np.int32)
  table[0, :0x80] = 0
  table[0, 0xC2:0xE0] = 1
  table[0, 0xE0:0xF0] = 2
  table[0, 0xF0:0xF5] = 3
  table[0, [0xE0, 0xED, 0xF0, 0xF4]] = [4, 5, 6, 7]
  for state in (1, 2, 3):
    table[state, 0x80:0xC0] = state - 1
  table[4, 0xA0:0xC0] = 1
  table[5, 0x80:0xA0] = 1
  table[6, 0x90:0xC0] = 2
  table[7, 0x80:0x90] = 2
  return table


UTF8 = _utf8_automaton()
