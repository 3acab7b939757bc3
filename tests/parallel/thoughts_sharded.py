"""Thoughts on meshes of eight virtual devices; run by batch_sharding_test.py in a process of its own.

Arguments: the folder of a model that thinks; meshes, such as 8x1 4x2.
"""

import dataclasses
import sys

import conftest  # noqa: F401, the suite's compilation cache
import jax

from rain_jax import preferences, tasks
from rain_jax.methods import rain, vanilla
from rain_jax.methods.session import Session, SessionConfig, search_config
from rain_jax.models.loading import load
from rain_jax.models.sharding import make_mesh
from rain_jax.policy.embedders import HiddenStates
from rain_jax.text.formats import CHAT
from tests.helpers.small_runs import API_CONFIG

WORDS = "the cat sat on a mat and then it was far away to see us all again".split()
RECORDS = [tasks.Record(str(i), " ".join(WORDS[i : i + 3 + i % 4])) for i in range(12)]


def session_of(folder, mesh):
  session_config = SessionConfig(
    format=dataclasses.replace(CHAT, thinking="strip"),
    preference=preferences.load_preference("harmless:letters"),
    search=search_config("harmless", API_CONFIG.search, HiddenStates()),
    max_prompt=96,
    max_response=12,
    max_thought=24,
  )
  mesh_of = lambda config: mesh and make_mesh(mesh[1], mesh[0], config.num_kv_heads)
  return Session(load(folder, mesh_of=mesh_of), session_config, RECORDS)


def answers_of(session):
  shown = lambda a: (a.tokens, a.text, a.reasoning, a.finish_reason, a.error)
  return {
    (method.__name__, answer.record.id): shown(answer)
    for method in (vanilla, rain)
    for answer in method(session, 0)
  }


def main():
  folder, *meshes = sys.argv[1:]
  assert jax.device_count() == 8, jax.devices()
  expected = answers_of(session_of(folder, None))
  assert sum(bool(reasoning) for _, _, reasoning, _, _ in expected.values()) > 4
  for name in meshes:
    found = answers_of(session_of(folder, tuple(map(int, name.split("x")))))
    assert found == expected, name
    print(f"{name}: the same", flush=True)
  print("all checks passed")


if __name__ == "__main__":
  main()
