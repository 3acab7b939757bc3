"""Checks of models on meshes of eight virtual devices; run by checkpoint_test.py in a process of
its own, with the folder of its checkpoints as the only argument."""

import ctypes
import functools
import gc
import pathlib
import re
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rain_jax.models import backend, checkpoint, hf, llama, loading, sharding, testing
from tests.helpers import gguf_writer

TOLERANCE = 1e-4


def run_model(model, place=lambda a: a):
  """Hidden states, keys and logits of a decode after a shared text and one per tree."""

  @jax.jit
  def run(params, shared, own, new):
    forward = functools.partial(llama.forward, model.graphdef, params)
    _, kv = forward(shared, jnp.arange(6))
    first = kv.segment(jnp.arange(6))
    own_positions = jnp.broadcast_to(6 + jnp.arange(5), own.shape)
    _, kv = forward(own, own_positions, [first])
    second = kv.segment(own_positions)
    hidden, kv = forward(new, jnp.broadcast_to(11 + jnp.arange(2), new.shape), [first, second])
    return hidden, kv.keys, llama.unembed(model.graphdef, params, hidden)

  keys = jax.random.split(jax.random.key(0), 3)
  shapes = (6,), (4, 5), (4, 3, 2)
  texts = [jax.random.randint(key, shape, 0, 96) for key, shape in zip(keys, shapes, strict=True)]
  return run(model.params, texts[0], *map(place, texts[1:]))


def check_same(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert np.max(np.abs(a - b)) <= TOLERANCE * np.max(np.abs(b))


def check_forward(folder, tensor, dtypes=("float32",)):
  """A sharded model computes what the whole one does."""
  heads = hf.read_config(folder).num_kv_heads
  mesh = sharding.make_mesh(tensor, kv_heads=heads)
  assert ("queries" in mesh.shape) == (heads < tensor), mesh
  by_tree = NamedSharding(mesh, PartitionSpec("data"))

  def place(a):
    return jax.device_put(a, by_tree) if a.shape[0] % mesh.shape["data"] == 0 else a

  for dtype in dtypes:
    whole = hf.load(folder, param_dtype=dtype, compute_dtype="float32")
    split = hf.load(folder, param_dtype=dtype, compute_dtype="float32", mesh=mesh)
    check_same(split.params, whole.params)
    want = run_model(whole)
    check_same(run_model(split, place), want)
    params = sharding.flatten(split.params)
    cut = params["layers/gate/weight"].addressable_shards[0].data.shape
    assert cut == (3, 32, 80 // tensor), cut
    cut = params["layers/k/weight"].addressable_shards[0].data.shape
    assert cut[2] == heads // mesh.shape["tensor"], cut
    with backend.target("gpu"):
      apart = loading.laid_out(split, mesh)
      check_same(run_model(apart, place), want)
    check_places(apart, mesh)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(split.params["layers"]))


def check_places(model, mesh):
  """Parameters lie where `shardings` says, layers that are taken apart included."""
  assert isinstance(model.params["layers"], tuple)
  wanted = sharding.shardings(model, mesh)
  assert jax.tree.structure(wanted) == jax.tree.structure(model.params)
  for leaf, place in zip(jax.tree.leaves(model.params), jax.tree.leaves(wanted), strict=True):
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim), (leaf.sharding, place)


def check_gguf(path):
  """A GGUF file is cut where the mesh cuts, also within its rows."""
  for dtype in ("float32", "int8"):
    whole = checkpoint.load_model(path, param_dtype=dtype)
    for tensor in (2, 8):
      mesh = sharding.make_mesh(tensor, kv_heads=whole.config.num_kv_heads)
      split = checkpoint.load_model(path, param_dtype=dtype, mesh=mesh)
      for leaf, other in zip(
        jax.tree.leaves(split.params), jax.tree.leaves(whole.params), strict=True
      ):
        np.testing.assert_array_equal(leaf, other)
      cut = sharding.flatten(split.params)["layers/down/weight"].addressable_shards[0].data.shape
      assert sorted(cut) == sorted((2, 512 // tensor, 256)), cut


def check_communication():
  """Shards talk twice in a layer, and once for the embedding; weights and context never travel."""
  model = testing.random_model("llama2")
  split = sharding.shard(model, sharding.make_mesh(2))
  tokens = jax.ShapeDtypeStruct((8, 5), jnp.int32)
  compiled = (
    jax.jit(llama.forward, static_argnums=0)
    .lower(split.graphdef, split.params, tokens, tokens)
    .compile()
  )
  found = re.findall(
    r" ((?:ragged-)?all-[\w-]+|collective-[\w-]+|reduce-scatter)\(", compiled.as_text()
  )
  assert found == ["all-reduce"] * 3, found


def check_restore_onto_other_meshes(folder):
  one = hf.load(folder, param_dtype="float32")
  mesh = sharding.make_mesh(2)
  checkpoint.save_model(folder / "converted", sharding.shard(one, mesh), folder)
  for mesh in (sharding.make_mesh(4), sharding.make_mesh(1), None):
    back = checkpoint.load_model(folder / "converted", mesh=mesh)
    check_same(back.params, one.params)
    wanted = jax.tree.leaves(sharding.shardings(back, mesh))
    for leaf, place in zip(jax.tree.leaves(back.params), wanted, strict=True):
      assert leaf.sharding.is_equivalent_to(place, leaf.ndim), (leaf.sharding, place)


def private_memory():
  """Bytes of this process's own memory; pages of mapped files are not among them."""
  line = next(row for row in open("/proc/self/status") if row.startswith("RssAnon"))
  return int(line.split()[1]) * 1024


def check_host_memory(folder, as_gguf):
  """Beside the shards themselves, loading needs room for one parameter, not for a checkpoint."""
  config = testing.FAMILIES["llama2"] | {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 64,
    "vocab_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
  }
  hf.save(folder, config, testing.random_model("llama2", config=config).params)
  source = folder / "model.gguf" if as_gguf else folder
  if as_gguf:
    gguf_writer.write(source, folder, kind="Q8_0")
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)  # what is freed but kept would be taken for room
  before, seen, going = private_memory(), [0], threading.Event()

  def watch():
    while not going.wait(0.002):
      seen[0] = max(seen[0], private_memory())

  watcher = threading.Thread(target=watch)
  watcher.start()
  model = jax.block_until_ready(
    checkpoint.load_model(source, param_dtype="float32", mesh=sharding.make_mesh(8)).params
  )
  going.set()
  watcher.join()
  sizes = [leaf.nbytes for leaf in jax.tree.leaves(model)]
  assert sum(sizes) > 200e6 and max(sizes) < sum(sizes) / 3
  room = seen[0] - before - sum(sizes)
  mib = lambda size: f"{size / 2**20:.0f} MiB"
  print(f"weights {mib(sum(sizes))}, the largest {mib(max(sizes))}; room beside them {mib(room)}")
  assert 0 < room < 2 * max(sizes), (room, max(sizes), sum(sizes))


def check_refusals():
  model = testing.random_model("llama2")
  explicit = jax.make_mesh(
    (4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Explicit,) * 2
  )
  for call, message in (
    (lambda: sharding.shardings(model, explicit), "expected none Explicit"),
    (lambda: sharding.make_mesh(3), "whose product is the 8 devices"),
  ):
    try:
      call()
    except ValueError as error:
      assert message in str(error), error
    else:
      raise AssertionError(f"expected an error: {message}")


def check_rules():
  model = testing.random_model("llama2")
  mesh = sharding.make_mesh(4)
  rules = sharding.Rules(vocab=None, heads=None, kv_heads=None, mlp=None, embed="tensor")
  specs = sharding.flatten(sharding.shardings(model, mesh, rules))
  assert specs["layers/up/weight"].spec == PartitionSpec(None, "tensor", None)


def main():
  folder = pathlib.Path(sys.argv[1])
  assert jax.device_count() == 8, jax.devices()
  check_forward(folder / "llama2", tensor=2, dtypes=("float32", "int8"))
  check_forward(folder / "qwen2", tensor=4)  # More shards than key-value heads: two share one.
  check_communication()
  check_restore_onto_other_meshes(folder / "llama2")
  check_gguf(folder / "model.gguf")
  check_host_memory(folder / "large", as_gguf=False)
  check_host_memory(folder / "large", as_gguf=True)
  check_refusals()
  check_rules()
  print("all checks passed")


if __name__ == "__main__":
  main()
