"""A search on meshes of eight virtual devices; run by batch_sharding_test.py in a process of its own.

Arguments: a checkpoint folder, or "demo"; how many prompts; methods; meshes, such as 8x1 4x2.
"""

import re
import sys
import time

import conftest  # noqa: F401, the suite's compilation cache
import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import decode, preferences, tasks
from rain_jax.methods import best_of_n, rain, vanilla
from rain_jax.methods.adaptive import adaptive, with_drafts
from rain_jax.methods.session import Session, SessionConfig, search_config
from rain_jax.models import forward, unembed
from rain_jax.models.loading import load
from rain_jax.models.sharding import make_mesh
from rain_jax.policy.embedders import HiddenStates

TOLERANCE = 1e-4
SMALL = dict(
  max_nodes=128, max_visited=16, max_path=4, max_iterations=4, extra_iterations=2, min_visits=2
)


def session_of(folder, records, mesh):
  """A session on a mesh of (data, tensor), or on one device.

  Devices that share two cores meet slowly: many prompts go many at a time, by fewer meetings.
  """
  session_config = SessionConfig(
    format=tasks.find_task("dialogue").format,
    preference=preferences.load_preference("harmless"),
    search=search_config("harmless", SMALL, HiddenStates()),
    max_prompt=64,
    max_response=12,
    batch_size=8 if len(records) < 32 else 32,
  )
  mesh_of = lambda config: mesh and make_mesh(mesh[1], mesh[0], config.num_kv_heads)
  return Session(load(str(folder), mesh_of=mesh_of), session_config, records)


def logits_of(session):
  """Logits after every token of the first prompts, read by the sharded model."""
  lm, tokens = session.lm, np.zeros((8, 32), np.int32)
  for row, query in enumerate(session.queries[:8]):
    tokens[row, : len(query.proposing[:32])] = query.proposing[:32]

  @jax.jit
  def read(params, tokens):
    hidden, _ = forward(lm.graphdef, params, tokens, jnp.broadcast_to(jnp.arange(32), tokens.shape))
    return unembed(lm.graphdef, params, hidden)

  return np.asarray(read(session.params["model"], tokens))


def answers_of(session, methods):
  ways = {
    "rain": lambda: rain(session, 0),
    "vanilla": lambda: vanilla(session, 0),
    "adaptive": lambda: adaptive(session, 0),
    "best": lambda: best_of_n(session, 0, samples=2),
  }
  return {(m, a.record.id): (a.tokens, a.finish_reason) for m in methods for a in ways[m]()}


def groups_of(line):
  """The devices that take part in a collective of a compiled program, as lists.

  XLA writes them out, as a transposed range, or by names of a mesh's axes; none are all devices.
  """
  groups = re.search(r"replica_groups=(.*?)(, [a-z]\w*=|$)", line)[1]
  numbers = lambda text: [int(n) for n in text.split(",")]
  if groups == "{}":
    return [list(range(jax.device_count()))]
  if found := re.fullmatch(r"\{(\{[\d,{}]*\})\}", groups):
    return [numbers(group) for group in re.findall(r"\{([\d,]+)\}", found[1])]
  if found := re.fullmatch(r"mesh\[([\w',=]+)\] \{([\w',]+)\}", groups):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
    named = re.findall(r"'(\w+)'", found[2])
    devices = np.arange(np.prod(list(sizes.values()))).reshape(*sizes.values())
    within = [list(sizes).index(name) for name in named]
    count = np.prod([sizes[name] for name in named])
    return np.moveaxis(devices, within, range(-len(within), 0)).reshape(-1, count).tolist()
  shape, order, transpose = re.fullmatch(
    r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups
  ).groups()
  devices = np.arange(np.prod(numbers(order))).reshape(numbers(order))
  if transpose:
    devices = devices.transpose(numbers(transpose))
  return devices.reshape(numbers(shape)).tolist()


def check_collectives(session, sharding):
  """No shard of `data` speaks to another, in the whole of the loop's program."""
  state = jax.eval_shape(lambda: session.empty(session.slots))
  state = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, sharding.shardings
  )
  lowered = decode.advance.lower(
    state, session.lm, session.params, session.config.search, 16, sharding=sharding
  )
  text = lowered.compile().as_text()
  lines = [
    line
    for line in text.splitlines()
    if re.search(r" ((ragged-)?all-[\w-]+|collective-[\w-]+|reduce-scatter)(-start)?\(", line)
  ]
  shard = np.argwhere(sharding.mesh.device_ids >= 0)[:, 0]  # of each device, in the mesh's order
  for line in lines:
    # A permutation waits for every device there is, on CPUs at least.
    assert "collective-permute" not in line, line
    groups = groups_of(line)
    for group in groups:
      assert len({int(shard[device]) for device in group}) == 1, line
  return len(lines)


def main():
  folder, count, methods, *meshes = sys.argv[1:]
  methods = methods.split(",")
  assert jax.device_count() == 8, jax.devices()
  words = "the cat sat on a mat and then it was far away to see us all again".split()
  records = [
    tasks.Record(str(i), " ".join(words[i % 7 : i % 7 + 3 + i % 8]) + f" {i}")
    for i in range(int(count))
  ]
  begin = time.perf_counter()
  one = session_of(folder, records, None)
  expected, logits = answers_of(one, methods), logits_of(one)
  print(f"one device: {time.perf_counter() - begin:.0f} s", flush=True)
  for name in meshes:
    begin = time.perf_counter()
    mesh = tuple(map(int, name.split("x")))
    session = session_of(folder, records, mesh)
    difference = float(np.abs(logits_of(session) - logits).max())
    found = answers_of(session, methods)
    assert found.keys() == expected.keys()
    same = np.mean([found[key] == expected[key] for key in found])
    searching = session
    if "adaptive" in methods:
      searching = session.searching(with_drafts(session.config.search))
    collectives = check_collectives(searching, searching.sharding)
    print(
      f"{name}: {100 * same:.1f}% the same, logits within {difference:.1e},"
      f" {collectives} collectives, none over data, {time.perf_counter() - begin:.0f} s",
      flush=True,
    )
    assert same >= 0.99 and difference <= TOLERANCE, name
    assert (collectives > 0) == (mesh[1] > 1)
  print("all checks passed")


if __name__ == "__main__":
  main()
