"""The paper's tables: intervals, counting, pages, and the runs that each table is made of."""

import json
import subprocess
import sys
import xml.etree.ElementTree as xml

import pytest

from rain_jax.experiments.reproduce import EXPERIMENTS, TABLES, Plan, paper, render, run, worlds
from rain_jax.experiments.reproduce.count import agreement, per_token, share
from rain_jax.experiments.reproduce.pareto import FLIPPED
from rain_jax.experiments.reproduce.tables import Step
from rain_jax.judges.share import Share
from rain_jax.methods.session import search_config
from rain_jax.runs import from_config, job, judgements
from rain_jax.types import DataError
from tests.helpers import small_runs
from tests.helpers.repository import ROOT


def line(method, verdict=1.0, tokens=10, **judged):
  return {
    "method": method,
    "response": "It rained. It rained.",
    "judged": judged,
    "verdict": verdict,
    "seconds": 1.0,
    "judges": ["a", "b"],
    "counters": {
      "response_tokens": tokens,
      "model_calls": 2 * tokens,
      "tokens_forwarded": 30 * tokens,
    },
  }


@pytest.mark.parametrize(
  "hits, total, low, high",
  [
    (0, 10, 0.0, 0.2775),
    (5, 10, 0.2366, 0.7634),
    (10, 10, 0.7225, 1.0),
    (82, 100, 0.7333, 0.8830),
  ],
)
def test_wilson_intervals(hits, total, low, high):
  assert Share(hits, total).interval == pytest.approx((low, high), abs=1e-4)


def test_nothing_is_known_of_nothing():
  assert Share(0, 0).interval == (0.0, 1.0) and str(Share(0, 0)) == "-"


def test_counting():
  lines = [
    line("rain", 1.0, harmless=True),
    line("rain", -1.0, harmless=True),
    line("rain", -1.0, harmless=False),
    line("rain", 0.0, harmless=False),
    line("rain", 1.0, helpful=True),
    line("vanilla", 1.0, harmless=False),
  ]
  assert share(lines, "rain", "harmless") == Share(2, 4)
  assert share(lines, "vanilla", "harmless", wanted=False) == Share(1, 1)
  assert agreement(lines, "rain", "harmless") == {
    "all": Share(2, 4),
    "good": Share(1, 2),
    "bad": Share(1, 2),
  }
  assert per_token(lines, "rain", "tokens_forwarded") == 30


STEPS = {
  "hh": ("harmless", "helpful"),
  "advbench": ("plain", "gcg"),
  "truthfulqa": ("answers",),
  "imdb": ("reviews",),
  "self_evaluation": ("harmless", "answers"),
  "ablation": ("full", "no_growth"),
  "sample_efficiency": ("vanilla", "best of 4"),
  "pareto": ("vanilla", "best of 4" + FLIPPED.format(5)),
  "adaptive_ablation": ("default", "search_after 8"),
}


@pytest.mark.parametrize("name", TABLES)
def test_pages_hold_every_row_and_pictures_every_bar(name):
  if name == "time":
    row = {
      "model": "demo",
      "batch": 1,
      "seconds_per_token": 0.01,
      "model_calls_per_token": 1.0,
      "tokens_forwarded_per_token": 2.0,
      "verdicts": "mixed",
    }
    results = {
      "time": [
        {**row, "method": "vanilla", "mode": "cached", "ratio_to_vanilla": 1.0},
        {
          **row,
          "method": "rain",
          "mode": "exact",
          "ratio_to_vanilla": 23.5,
          "ratio_to_vanilla_range": (22.0, 24.0),
        },
      ]
    }
  else:
    judged = dict(harmless=True, helpful=True, truthful=True, positive=False)
    lines = [line(method, **judged) for method in ("rain", "vanilla") for _ in range(3)]
    results = {step: lines for step in STEPS[name]}
  table = TABLES[name](results)
  page = render.markdown(table, {"model": "a|b"}, f"{name}.svg")
  rows = [one for one in page.splitlines() if one.startswith("|")]
  assert len(rows) == 2 + len(table.rows) + 3 and "a\\|b" in rows[-1]
  picture = xml.fromstring(render.svg(table))
  marks = [child.tag.rpartition("}")[2] for child in picture.iter()]
  if table.points:
    assert marks.count("circle") == len(table.points) == len(table.rows)
  else:
    assert marks.count("rect") == len(table.bars) > 0


def test_the_papers_figures_stand_beside_their_own_setting():
  lines = [line("vanilla", harmless=False)]
  column = lambda table: {row[0]: row[table.columns.index("paper")] for row in table.rows}
  table = TABLES["advbench"]({"gcg": lines, "universal": lines, "transfer": lines})
  assert column(table) == {
    "GCG, one suffix each": paper.ATTACK_SUCCESS["gcg"]["vanilla"],
    "GCG, one suffix for all": "",
    "GCG, one suffix for all, sought on other models": paper.ATTACK_SUCCESS["transfer"]["vanilla"],
  }
  assert len(table.notes) == 1 and "attack success by a, b [95%]" in table.columns
  table = TABLES["advbench"]({"universal": lines})
  assert set(column(table).values()) == {""} and "94%" in table.notes[1]
  assert column(TABLES["ablation"]({"full": lines})) == {"full": paper.NOT_CHECKED}


def test_controlled_sentiment_shows_the_paper_what_is_negative_and_how_texts_read():
  lines = [line("rain", positive=True, negative=False), line("rain", positive=False, negative=True)]
  lines += [line("vanilla", positive=False), line("vanilla", positive=False)]
  lines = [{**one, "log_likelihood": -15.0} if one["method"] == "rain" else one for one in lines]
  table = TABLES["imdb"]({"reviews": lines})
  vanilla, rain = (dict(zip(table.columns, row)) for row in table.rows)
  assert (vanilla["paper"][:5], rain["paper"][:5]) == ("62.1%", "82.1%")
  assert rain["positive [95%]"].endswith("1/2") and rain["negative [95%]"].endswith("1/2")
  assert vanilla["negative [95%]"] == vanilla["log-likelihood per token"] == "-"
  assert (rain["log-likelihood per token"], rain["repeats"], rain["tokens"]) == (
    "-1.50",
    "100.0%",
    "10.0",
  )
  assert "negative [95%]" not in TABLES["imdb"]({"reviews": lines[2:]}).columns


def test_the_real_small_model_has_a_table_of_its_own(tmp_path):
  plan = Plan("smollm2", tmp_path, lambda name, arg: Loaded(name, arg), ())
  (step,) = EXPERIMENTS["imdb"](plan)
  assert (step.config.name, step.config.argument, step.config.changes) == (
    "smollm2",
    "all",
    {"prompts.limit": 100},
  )
  assert worlds("imdb") == ("demo", "smollm2") and worlds("hh") == ("demo", "traps")
  steps = EXPERIMENTS["pareto"](plan)
  assert [step.name for step in steps if step.config.methods == ("rain",)] == ["RAIN"]
  assert {step.config.changes["prompts.limit"] for step in steps} == {24}


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "traps" in worlds(name)])
def test_a_table_on_traps_is_the_demos_with_another_model_and_more_prompts(name, tmp_path):
  """And without flipped verdicts, since that model's own err."""
  plans = (Plan(on, tmp_path, Loaded, ("full", "minilm")) for on in ("demo", "traps"))
  demo, traps = ([(s.name, vars(s.config)) for s in EXPERIMENTS[name](plan)] for plan in plans)
  assert traps and not any("verdict_noise" in config["changes"] for _, config in traps)
  on_demo = {step.partition(" with 10%")[0]: config for step, config in demo}
  for step, config in traps:
    one = on_demo[step]
    assert "model.path" not in one["changes"]
    own = {"model.path": "demo:traps", "prompts.limit": 100}
    unflipped = {key: value for key, value in one["changes"].items() if key != "verdict_noise"}
    assert config == one | {"changes": unflipped | own}


class Loaded:
  """Stands in for a configuration: which it is, and what was changed in it."""

  def __init__(self, name, argument):
    self.name, self.argument, self.changes = name, argument, {}

  def update_from_flattened_dict(self, changes):
    self.changes |= changes


def costing(method, tokens, answers, **more):
  """Lines of a method that forwards so many tokens for each of a response, in a tenth of the calls."""
  counters = {"response_tokens": 10, "tokens_forwarded": 10 * tokens, "model_calls": tokens}
  made = [line(method, harmless=answer) for answer in answers]
  return [{**one, "counters": counters, **more} for one in made]


def test_quality_against_cost_names_the_rows_that_no_other_one_beats():
  error = {**costing("rain", 9, [True])[0], "error": "too long", "judged": {}}
  del error["counters"]
  noisy = "best of 4" + FLIPPED.format(10)
  results = {
    "vanilla": costing("vanilla", 10, [False, True, False, False]),
    "best of 4": costing("best_of_n", 40, [True, True, False, False]),
    "best of 16": costing("best_of_n", 160, [True, True, True, False]),
    "segments": costing("segments", 160, [True, True, True, True]),
    "RAIN": [*costing("rain", 400, [True, True, True]), error],
    "nobody judged": [{**one, "judged": {}} for one in costing("adaptive", 1, [True])],
    "nobody answered": [error],
    noisy: costing("best_of_n", 50, [False, True]),
  }
  table = TABLES["pareto"](results)
  rows = [dict(zip(table.columns, row)) for row in table.rows]
  assert [row["method"] for row in rows] == [step.partition(" with ")[0] for step in results]
  assert [row["verdicts flipped"] for row in rows] == [*["0%"] * 7, "10%"]
  assert [row["harmless [95%]"].rpartition(" ")[2] for row in rows] == (
    ["1/4", "2/4", "3/4", "4/4", "3/3", "-", "-", "1/2"]
  )
  best = ["calls, tokens"] * 2 + ["", "calls, tokens", "", "", "", "calls, tokens"]
  assert [row["Pareto-optimal in"] for row in rows] == best
  assert (rows[1]["model calls per token"], rows[1]["tokens forwarded per token"]) == (
    "4.0",
    "40.0",
  )
  # What nobody judged or answered has no place in the picture.
  assert [point.label for point in table.points] == [*list(results)[:5], noisy]
  assert [point.filled for point in table.points] == [True] * 5 + [False]
  assert {point.series for point in table.points[1:3]} == {"best of N"}
  picture = xml.fromstring(render.svg(table))
  shown = {
    one[0].text.partition(":")[0]: (float(one.get("cx")), float(one.get("cy")))
    for one in picture.iter()
    if one.tag.endswith("circle")
  }
  # Equal ratios of cost are equal distances.
  (x0, y0), (x1, y1), (x2, y2) = (shown[name] for name in ("vanilla", "best of 4", "best of 16"))
  assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and x1 > x0
  assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2) and y1 < y0  # 25, 50, 75%


def test_times_show_verdicts_and_range():
  row = {
    "model": "7b",
    "batch": 1,
    "seconds_per_token": 0.01,
    "model_calls_per_token": 1.0,
    "tokens_forwarded_per_token": 2.0,
    "verdicts": "mixed",
    "mode": "exact",
  }
  table = TABLES["time"](
    {
      "time": [
        {**row, "method": "vanilla", "ratio_to_vanilla": 1.0},
        {
          **row,
          "method": "rain",
          "ratio_to_vanilla": 23.5,
          "ratio_to_vanilla_range": [22.0, 24.0],
          "seconds_per_token_range": [0.0094, 0.012],
        },
      ]
    }
  )
  cells = [dict(zip(table.columns, row)) for row in table.rows]
  assert [c["verdicts"] for c in cells] == ["", "mixed"]
  assert [c["ms per token"] for c in cells] == ["10.00", "10.00 [9.40, 12.00]"]
  assert [c["times vanilla"] for c in cells] == ["1.00", "23.50 [22.00, 24.00]"]
  assert (table.bars[1].low, table.bars[1].high) == (22.0, 24.0)


def test_truthful_answers_may_be_informative_too():
  lines = [
    line("rain", truthful=True, informative=True),
    line("rain", truthful=True, informative=False),
    line("rain", truthful=True),
  ]
  table = TABLES["truthfulqa"]({"answers": lines})
  cells = dict(zip(table.columns, table.rows[0]))
  assert cells["truthful [95%]"].endswith("3/3") and cells["informative [95%]"].endswith("1/2")
  assert cells["truthful and informative [95%]"].endswith("1/2")
  assert "informative [95%]" not in TABLES["truthfulqa"]({"answers": lines[2:]}).columns


def plain_step(checkpoint, folder, judge):
  """Two prompts, answered by vanilla sampling."""
  config = json.loads(json.dumps(small_runs.CONFIG))
  config["model"]["path"] = str(checkpoint)
  config |= {"methods": ("vanilla",), "judge": judge}
  config["prompts"]["path"] = str(folder / "prompts.txt")
  (folder / "prompts.txt").write_text("the cat sat\nfar away\n", "utf-8")
  return Step("plain", "answer", config)


def test_a_table_is_made_of_runs_and_made_once(checkpoint, tmp_path):
  said = []
  steps = [plain_step(checkpoint, tmp_path, "refusal_prefixes")]
  run("advbench", steps, str(tmp_path / "out"), said.append)
  page = (tmp_path / "out" / "advbench.md").read_text("utf-8")
  assert said == [page] and "100.0% [34, 100], 2/2" in page  # nothing is refused
  for fact in ("cores", "device", "versions", "jax", "model", "refusal_prefixes", "processor"):
    assert fact in page
  for fact in (
    "| seed | 0 |",
    "| prompts of plain | 2 |",
    "attack success by refusal_prefixes [95%]",
  ):
    assert fact in page
  before = (tmp_path / "out" / "plain" / "results.jsonl").read_text("utf-8")
  run("advbench", steps, str(tmp_path / "out"), said.append)
  assert (tmp_path / "out" / "plain" / "results.jsonl").read_text("utf-8") == before
  assert said[1] == page
  one = [
    {
      "task": "dialogue",
      "id": "1",
      "method": "vanilla",
      "judge": "human:ann",
      "by": "refused",
      "measure": "refused",
      "answers": {"refused": True},
    }
  ]
  judgements.append(
    str(tmp_path / "out" / "plain"), [*one, {**one[0], "id": "2", "answers": {"refused": False}}]
  )
  run("advbench", steps, str(tmp_path / "out"), said.append)
  assert "| unjudged of plain by human:ann | 0 of 2 |" in said[2]
  assert (
    "| agreement of refusal_prefixes and human:ann on refused in plain | 50.0% of 2, Cohen's kappa"
    " 0.00 |"
  ) in said[2]
  assert "100.0% [34, 100], 2/2" in said[2]  # the run's own judge fills the column


def test_a_run_that_was_made_without_a_judge_is_judged_later(checkpoint, tmp_path):
  said, workdir = [], str(tmp_path / "out")
  steps = [plain_step(checkpoint, tmp_path, "none")]
  config = steps[0].config
  run("advbench", steps, workdir, said.append)
  assert "| attack success [95%] |" in said[0] and "| judge of plain | none |" in said[0]
  settings = {
    "judge": "refusal_prefixes",
    "judging": config["judging"],
    "endpoint": config["endpoint"],
  }
  job.judge_again(str(tmp_path / "out" / "plain"), config, settings, lambda line: None)
  run("advbench", steps, workdir, said.append)
  assert "attack success by refusal_prefixes [95%]" in said[1] and "2/2" in said[1]
  assert "| judge of plain | refusal_prefixes |" in said[1]


def test_quality_against_cost_is_made_of_runs_with_and_without_flipped_verdicts(
  checkpoint, tmp_path
):
  said, workdir = [], tmp_path / "out"
  config = plain_step(checkpoint, tmp_path, "refusal_prefixes").config
  own = {**config, "methods": ("best_of_n",), "best_of_n": {"samples": 3}}
  flipped = "best of 3" + FLIPPED.format(100)
  steps = [
    Step("vanilla", "answer", config),
    Step("best of 3", "answer", own),
    Step(flipped, "answer", {**own, "verdict_noise": 1.0}),
  ]
  run("pareto", steps, str(workdir), said.append)
  assert "| prompts of every run | 2 |" in said[0] and "prompts of vanilla" not in said[0]
  rows = [one.split(" | ")[:2] for one in said[0].splitlines() if "best of 3" in one]
  assert rows == [["| best of 3", "0%"], ["| best of 3", "100%"]]
  texts = lambda step: [
    one["response"] for one in map(json.loads, (workdir / step / "results.jsonl").open())
  ]
  assert texts("best of 3") != texts(flipped)  # the choice is another, and the samples the same
  run("pareto", steps, str(workdir), said.append)
  assert said[1] == said[0]


@pytest.mark.parametrize(
  "kind, changes, says",
  [
    ("answer", {"judge": ""}, "'second' has no judge"),
    ("answer", {"judge": "endpoint:harmless"}, "endpoint.url"),
    (
      "attack",
      {"judge": "harmbench", "attack": {"method": "best_of_n"}},
      "'second' asks a rule.*second=refusal_prefixes",
    ),
  ],
)
def test_a_judge_that_is_missing_is_known_before_the_first_step(tmp_path, kind, changes, says):
  config = {**small_runs.CONFIG, "tasks": ("hh_harmless",)}
  steps = [
    Step("first", "answer", {**config, "judge": "none"}),
    Step("second", kind, {**config, **changes}),
  ]
  with pytest.raises(DataError, match=says) as error:
    run("hh", steps, str(tmp_path / "out"))
  assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_unknown_tables_are_refused(tmp_path):
  with pytest.raises(DataError, match="'magic': expected one of hh, advbench"):
    run("magic", [], str(tmp_path))


_LIST = """
import sys
sys.path.insert(0, "scripts")
import json, cli, reproduce
from absl import flags
flags.FLAGS(["reproduce", "--table=hh", "--workdir=" + sys.argv[1], *sys.argv[2:]])
steps, refused = {}, {}
for name in reproduce.reproduce.EXPERIMENTS:
  for mode in ("", *reproduce.reproduce.worlds(name)):
    try:
      found = reproduce._made(name, mode)
    except ValueError as error:
      refused[name + " " + mode] = str(error)
      flags.FLAGS.judge = ["truth=/models/truth"]  # without the step
      found = reproduce._made(name, mode)
      flags.FLAGS.judge = ["truth=/models/truth", "harmless=refusal_prefixes"]
    steps.setdefault(name, {})[mode] = [[s.name, s.kind, s.config] for s in found]
print(json.dumps([steps, refused]))
"""


def test_every_step_of_every_table_can_be_configured(tmp_path):
  flags = [
    "--model=/models/x",
    "--dtype=bfloat16",
    "--judge=truth=/models/truth,harmless=refusal_prefixes",
    "--prompts=a.csv",
    "--limit=7",
  ]
  made = subprocess.run(
    [sys.executable, "-c", _LIST, str(tmp_path), *flags],
    cwd=ROOT,
    text=True,
    capture_output=True,
    check=True,
    env={"PYTHONPATH": str(ROOT), "HOME": "/nowhere"},
  )
  tables, refused = json.loads(made.stdout)
  assert tables.keys() == TABLES.keys()
  assert set(tables["pareto"]) == {"", "demo", "traps", "smollm2"}
  for name, modes in tables.items():
    for mode, steps in modes.items():
      assert steps and len({step for step, _, _ in steps}) == len(steps)
      for step, kind, config in steps:
        if kind == "time":
          assert config["dtype"] == "bfloat16"
          # A shape's own verdicts would mean nothing.
          assert config["verdicts"] == (["model"] if mode == "demo" else ["good", "mixed", "bad"])
          continue
        others = config["model"]["path"], *config.get("attack", {}).get("models", ())
        if step == "transfer_attack":  # sought on two that do not answer
          assert len(set(others)) == 2 and "/models/x" not in others
        else:
          assert others == ("/models/x",)
        assert config["model"]["dtype"] == "bfloat16"
        assert config["prompts"]["limit"] == 7 and config["prompts"]["path"]
        assert config["judge"] == (
          "refusal_prefixes" if step == "harmless" else "truth=/models/truth"
        )
        task = from_config.task_of(config, config["tasks"][0])
        overrides = {k: v for k, v in config["search"].items() if k != "variant"}
        embedder = type("", (), {"similarity_threshold": 0.9, "grow_threshold": 0.1})
        search_config(task.variant, overrides, embedder)
  assert {name.split()[0] for name in refused} == tables.keys() - {"hh", "self_evaluation"}
  assert (
    "harmless=refusal_prefixes: this table has no step 'harmless'; expected one of plain"
    in (refused["advbench demo"])
  )
