"""Who may import whom (docs/architecture.md)."""

import pathlib
import subprocess
import sys
import tomllib

from tests.helpers.repository import ROOT, imports, load_config

# What each module of the core, and each folder, may import of the project besides itself.
CORE = {
  "types": set(),
  "search": {"types"},
  "decode": {"types", "search", "parallel"},
}
_SEARCH = set(CORE)
_BELOW_METHODS = _SEARCH | {"demo", "models", "parallel", "policy", "preferences", "tasks", "text"}
_BELOW_RUNS = _BELOW_METHODS | {"judges", "methods"}
FOLDERS = {
  "parallel": set(),
  "demo": set(),
  "models": {"demo", "parallel", "text"},
  "text": {"types"},
  "preferences": {"text", "types"},
  "policy": _SEARCH | {"models", "parallel", "preferences", "text"},
  "tasks": {"demo", "text", "types"},
  "judges": {"demo", "models", "policy", "preferences", "tasks", "text", "types"},
  "methods": _BELOW_METHODS | {"judges"},
  "serving": _BELOW_RUNS | {"api"},
  "runs": _BELOW_RUNS,
  "attacks": _BELOW_RUNS | {"runs"},
  "views": _BELOW_RUNS | {"runs"},
  "experiments": _BELOW_RUNS | {"attacks", "runs"},
  "api": _BELOW_RUNS,
  "__init__": set(),
}


def ours(names: set[str]) -> set[str]:
  """First module below rain_jax of each import of our own."""
  return {name.split(".")[1] for name in names if name.startswith("rain_jax.")}


def sources(place: str) -> list[pathlib.Path]:
  """The modules of a folder of the package, or the one module of that name."""
  folder = ROOT / "rain_jax" / place
  return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def test_every_import_is_in_the_table():
  package = ROOT / "rain_jax"
  places = {path.stem for path in package.iterdir() if path.name != "__pycache__"}
  assert places == CORE.keys() | FOLDERS.keys()
  for place, allowed in (CORE | FOLDERS).items():
    for path in sources(place):
      assert ours(imports(path)) <= allowed | {place}, path


def test_a_reader_can_take_in_the_layout():
  assert len([p for p in (ROOT / "rain_jax").iterdir() if p.name != "__pycache__"]) < 20
  for path in (ROOT / "rain_jax").rglob("*.py"):
    assert len(path.read_text("utf-8").splitlines()) <= 450, path


def test_search_knows_nothing_of_text_or_files():
  for module in CORE:
    place = ROOT / "rain_jax" / module
    for path in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
      outside = {name.split(".")[0] for name in imports(path)}
      assert not outside & {"transformers", "json", "pathlib", "os", "torch"}, path


def test_python_api_needs_no_run_directory():
  # Nor fcntl, which Windows lacks: only run directories lock files.
  for path in (ROOT / "rain_jax").rglob("*.py"):
    assert "fcntl" not in imports(path) or path.parent.name == "runs", path
  code = (
    "import sys, rain_jax; rain_jax.load('demo');"
    "print([name for name in sys.modules if name.startswith('rain_jax.runs')])"
  )
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout == "[]\n", done.stderr[-500:]


def test_library_imports_no_flags_no_configs_no_torch_no_pickle():
  for path in (ROOT / "rain_jax").rglob("*.py"):
    names = imports(path)
    for name in names:
      first = name.split(".")[0]
      assert first not in {"torch", "pickle", "optax", "configs", "common", "ml_collections"}, (
        path,
        name,
      )
      assert name not in {"absl.flags", "absl.app"}, (path, name)


def test_configs_import_only_ml_collections():
  for path in (ROOT / "configs").glob("*.py"):
    first = {name.split(".")[0] for name in imports(path)}
    assert first <= {"ml_collections", "common"}, path


def test_every_config_can_be_made():
  for path in (ROOT / "configs").glob("*.py"):
    config = load_config(path.stem).get_config()
    assert config.seed == 0


def test_every_data_file_of_the_package_is_installed():
  declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
  patterns = declared["tool"]["setuptools"]["package-data"]
  installed = {
    path
    for package, globs in patterns.items()
    for pattern in globs
    for path in (ROOT / package.replace(".", "/")).glob(pattern)
  }
  there = {
    path
    for path in (ROOT / "rain_jax").rglob("*")
    if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
  }
  assert there <= installed


def test_no_test_module_imports_another():
  for path in (ROOT / "tests").rglob("*.py"):
    for name in imports(path):
      assert not f"{name}.".startswith("tests.") or name.startswith("tests.helpers."), (path, name)
