"""A search on meshes of eight virtual devices; run by batch_sharding_test.py in a process of its own.

Arguments: a checkpoint folder, or "demo"; how many prompts; methods; meshes, such as 8x1 4x2, or
4x2:gpu for the programs that GPUs would have.
"""

import sys
import time

import conftest  # noqa: F401, the suite's compilation cache
import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import decode, preferences, tasks
from rain_jax.experiments.compiled import hlo
from rain_jax.methods import best_of_n, rain, vanilla
from rain_jax.methods.adaptive import adaptive, with_drafts
from rain_jax.methods.responses import self_evaluate
from rain_jax.methods.sampling import samples
from rain_jax.methods.session import Session, SessionConfig, search_config
from rain_jax.models import backend, forward, unembed
from rain_jax.models.loading import load
from rain_jax.models.sharding import make_mesh
from rain_jax.parallel.batch_sharding import DATA
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


def judged_of(session):
  """By prompt the two samples that best-of-N chooses from, and their verdicts and margins."""
  found = {}
  for queries, drawn in samples(session, 0, 2):
    value, margin, _ = self_evaluate(session, queries, drawn)
    for row, query in enumerate(queries):
      texts = [t[:n].tolist() for t, n in zip(drawn.tokens[row], drawn.length[row])]
      found[query.record.id] = texts, value[row].tolist(), margin[row].mean(-1)
  return found


def check_judged(found, expected):
  """Samples and verdicts are the same; returns the prompts of which a rounding decides between two."""
  assert found.keys() == expected.keys()
  ties = set()
  for name, (texts, values, margins) in expected.items():
    assert found[name][:2] == (texts, values), name
    np.testing.assert_allclose(found[name][2], margins, atol=1e-6)
    if values[0] == values[1] and abs(margins[0] - margins[1]) < 5e-7:
      ties.add(name)
  return ties


def check_collectives(session, sharding):
  """No shard of `data` speaks to another, in the whole of the loop's program."""
  state = jax.eval_shape(lambda: session.empty(session.slots))
  state = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, sharding.shardings
  )
  lowered = decode.advance.lower(
    state, session.lm, session.params, session.config.search, 16, sharding=sharding
  )
  program = hlo.parse(lowered.compile().as_text())
  found = hlo.collectives(program, jax.device_count())
  for one in found:
    # A permutation waits for every device there is, on CPUs at least.
    assert one.kind != "collective-permute", one
    assert DATA not in one.axes(sharding.mesh.shape), one
  return len(found)


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
  judged = judged_of(one) if "best" in methods else {}
  print(f"one device: {time.perf_counter() - begin:.0f} s", flush=True)
  for name in meshes:
    begin = time.perf_counter()
    sizes, _, target = name.partition(":")
    mesh = tuple(map(int, sizes.split("x")))
    with backend.target(target or "cpu"):
      session = session_of(folder, records, mesh)
      assert isinstance(session.params["model"]["layers"], tuple) == (target == "gpu")
      difference = float(np.abs(logits_of(session) - logits).max())
      found = answers_of(session, methods)
      ties = check_judged(judged_of(session), judged) if judged else set()
      searching = session
      if "adaptive" in methods:
        searching = session.searching(with_drafts(session.config.search))
      count = check_collectives(searching, searching.sharding)
    assert found.keys() == expected.keys()
    for tied in ties:
      assert found["best", tied][0] in judged[tied][0]
    untied = [key for key in found if key[0] != "best" or key[1] not in ties]
    same = np.mean([found[key] == expected[key] for key in untied])
    print(
      f"{name}: {100 * same:.1f}% the same, {len(ties)} ties, logits within {difference:.1e},"
      f" {count} collectives, none over data, {time.perf_counter() - begin:.0f} s",
      flush=True,
    )
    assert same >= 0.99 and difference <= TOLERANCE, name
    assert (count > 0) == (mesh[1] > 1)
  print("all checks passed")


if __name__ == "__main__":
  main()
