"""Prints docs/options.md: every option of a run and of the search, as the code describes them.

python scripts/list_options.py > docs/options.md
"""

import ast
import inspect
import pathlib
import re
import runpy
import sys

from rain_jax import types
from rain_jax.methods.session import search_config
from rain_jax.policy import embedders

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
PAPER = embedders.SentenceEncoder
HEAD = """# Options

(Made by `python scripts/list_options.py` from `configs/` and `SearchConfig`.)

Each is a flag on top of a config file: `--config.batch_size=16`, `--config.search.leaves=4`,
`--config.methods="('vanilla', 'rain')"`. An empty default, or None, takes the task's own value.

## A run

`generate.py`, `attack.py`, `chat.py` and `check_preference.py` take all of these, and heed what
concerns them. `judge.py` takes `judge`, `judging`, `endpoint` and `seed` alone.
"""
SEARCH = f"""
## The search, `config.search`

The defaults are those of the method's published code, in its three variants; `config.search.variant`
(`harmless`, `adversarial`, `truthful`) is the task's unless given. `similarity_threshold` and
`grow_threshold` are the embedder's unless given: the table has those of the default, `hidden`.
`minilm`, with which the published code embeds, has {PAPER.similarity_threshold} and {PAPER.grow_threshold} as it does;
[embedders.md](embedders.md) says why they differ.

| key | harmless | adversarial | truthful | |
|---|---|---|---|---|
"""
ATTACK = """
## An attack, `configs/attack.py`

Beside those of a run; see [attacks.md](attacks.md).
"""
BENCHMARK = """
## A benchmark, `configs/benchmark.py`

These alone; see [performance.md](performance.md).
"""
TABLE = "\n| key | default | |\n|---|---|---|\n"


def options(file: str, part: str = "") -> str:
  """A table with a row for every key of a config whose name begins with `part`."""
  path = CONFIGS / file
  sys.path.append(str(CONFIGS))  # configs import each other by name
  config = runpy.run_path(str(path))["get_config"]()
  lines = path.read_text("utf-8").splitlines()
  tree = ast.parse("\n".join(lines))
  (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "get_config")
  rows = []
  for node in function.body:
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
      continue
    name = ast.unparse(node.targets[0]).removeprefix("config.")
    if not name.startswith(part) or "ConfigDict" in ast.unparse(node.value):
      continue
    value = config
    for key in name.split("."):
      value = value[key]
    shown = repr(value).strip()  # of an empty section it ends in a line feed
    comment = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")[2]
    rows.append(f"| `{name}` | `{shown}` | {comment} |")
  return TABLE + "\n".join(rows) + "\n"


def search_options() -> list[str]:
  """A row for every hyperparameter of the search, with what `SearchConfig` says of it."""
  section = inspect.cleandoc(types.SearchConfig.__doc__ or "").partition("Attributes:\n")[2]
  said = {
    name: " ".join(text.split())
    for name, text in re.findall(r"^  (\w+): (.*(?:\n    .*)*)", section, re.MULTILINE)
  }
  embedder = embedders.HiddenStates()  # what a run has by default
  variants = [search_config(name, {}, embedder) for name in types.VARIANTS]
  rows = []
  for name in types.hyperparameters():
    values = " | ".join(f"`{getattr(variant, name)}`" for variant in variants)
    rows.append(f"| `{name}` | {values} | {said[name]} |")
  return rows


def document() -> str:
  """The whole page."""
  run, search = options("common.py"), "\n".join(search_options()) + "\n"
  attack, benchmark = options("attack.py", "attack."), options("benchmark.py")
  return (HEAD + run + SEARCH + search + ATTACK + attack + BENCHMARK + benchmark).rstrip("\n")


if __name__ == "__main__":
  print(document())
