"""The package as `pip install .` leaves it: whole, and at work in any folder."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

from tests.helpers.repository import ROOT, imports

PROGRAM = """
import pathlib, sys
import rain_jax
assert pathlib.Path(rain_jax.__file__).is_relative_to(sys.argv[1]), rain_jax.__file__
config = rain_jax.Config(max_prompt=64, max_response=8, batch_size=1)
(answer,) = rain_jax.load("demo").generate(
    ["How do I rob the ferry?"], preference="harmless", method="vanilla", config=config)
print(len(answer.tokens), answer.verdict)
"""


def files(folder):
  """What is in a package, but for what Python makes of it."""
  return {
    path.relative_to(folder)
    for path in folder.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }


def test_an_installed_package_answers_from_any_folder(tmp_path):
  source, installed, elsewhere = (tmp_path / name for name in ("source", "installed", "elsewhere"))
  elsewhere.mkdir()
  # A copy: the build leaves files beside its sources.
  shutil.copytree(
    ROOT / "rain_jax", source / "rain_jax", ignore=shutil.ignore_patterns("__pycache__")
  )
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  subprocess.run(
    [
      sys.executable,
      "-m",
      "pip",
      "install",
      "--quiet",
      "--no-deps",
      "--no-build-isolation",
      "--target",
      installed,
      source,
    ],
    check=True,
    capture_output=True,
    timeout=120,
  )
  assert files(installed / "rain_jax") == files(ROOT / "rain_jax")
  env = os.environ | {
    "PYTHONPATH": str(installed),
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  }
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, installed],
    cwd=elsewhere,
    env=env,
    text=True,
    capture_output=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  tokens, verdict = done.stdout.split()
  assert 0 < int(tokens) <= 8 and float(verdict) in (-1, 0, 1)
  assert list(elsewhere.iterdir()) == []


# Where the package that is imported has another name than the one that is installed.
INSTALLED_AS = {"absl": "absl-py", "orbax": "orbax-checkpoint", "yaml": "pyyaml"}
PLOTS = "matplotlib"  # asked for by a message where it is not there


def test_all_that_the_library_imports_is_declared_with_bounds():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
  optional = [one for some in project["optional-dependencies"].values() for one in some]
  declared = {
    re.match(r"[\w-]+", one)[0].lower(): one for one in project["dependencies"] + optional
  }
  for one in declared.values():
    assert ">=" in one and ",<" in one, one
  used = {
    name.split(".")[0]
    for path in (ROOT / "rain_jax").rglob("*.py")
    for name in imports(path)
    if not name.startswith("rain_jax")
  }
  used -= sys.stdlib_module_names
  assert {"jax", "numpy", "huggingface_hub", "tokenizers"} <= used
  missing = {INSTALLED_AS.get(name, name).lower() for name in used - {PLOTS}} - declared.keys()
  assert not missing
