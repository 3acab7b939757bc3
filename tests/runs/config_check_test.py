"""Values of a configuration that no run can use: one line each, before anything is loaded."""

import copy
import math

import pytest

from rain_jax.methods import session
from rain_jax.methods.defences import SmoothLLM
from rain_jax.models import loading
from rain_jax.preferences import load_preference
from rain_jax.runs import config_check, from_config, job
from rain_jax.text.formats import DIALOGUE, Format
from rain_jax.types import DataError, SearchConfig, ranges
from tests.helpers import repository

NAN, INF = math.nan, math.inf


def config_of(**changes):
  made = repository.load_config("common").get_config().to_dict()
  for name, value in changes.items():
    place, *keys = made, *name.split("__")
    for key in keys[:-1]:
      place = place[key]
    place[keys[-1]] = value
  return made


BAD = [
  ("search__temperature", NAN, "search.temperature=nan: expected a number from 0.0001 to 10000.0."),
  ("search__temperature", INF, "search.temperature=inf"),
  ("search__temperature", 0, "search.temperature=0"),
  ("search__temperature", 1e-30, "search.temperature=1e-30"),
  ("search__temperature", "1", "search.temperature='1'"),
  ("search__exploration", NAN, "search.exploration=nan"),
  ("search__exploration", -1.0, "search.exploration=-1.0"),
  ("search__root_prior", 1.5, "search.root_prior=1.5: expected a number from 0 to 1."),
  ("search__root_prior", NAN, "search.root_prior=nan"),
  ("search__similarity_threshold", NAN, "search.similarity_threshold=nan"),
  ("search__similarity_weight", INF, "search.similarity_weight=inf"),
  ("search__grow_threshold", -0.1, "search.grow_threshold=-0.1"),
  ("search__value_threshold", -INF, "search.value_threshold=-inf: expected a number from"),
  ("search__top_k", 0, "search.top_k=0: expected a whole number, 1 or more."),
  ("search__top_k", 2.5, "search.top_k=2.5"),
  ("search__top_k", True, "search.top_k=True"),
  ("search__min_visits", -1, "search.min_visits=-1"),
  ("search__max_nodes", 10**12, "search.max_nodes=1000000000000"),
  ("search__redraw", 1, "search.redraw=1: expected True or False."),
  ("verdict_noise", NAN, "verdict_noise=nan: expected a number from 0 to 1."),
  ("verdict_noise", 2.0, "verdict_noise=2.0"),
  ("soft_verdicts", "yes", "soft_verdicts='yes': expected True or False."),
  ("seed", 2**32, "seed=4294967296: expected a whole number from 0 to 4294967295."),
  ("seed", -1, "seed=-1"),
  ("seed", 1.0, "seed=1.0"),
  ("batch_size", 0, "batch_size=0: expected a whole number from 1 to 1048576."),
  ("record", -1, "record=-1"),
  ("limits__max_prompt", 0, "limits.max_prompt=0"),
  ("limits__max_response", 10**10, "limits.max_response=10000000000"),
  ("judging__batch_size", -1, "judging.batch_size=-1"),
  ("prompts__limit", -5, "prompts.limit=-5"),
  ("verdict__kind", "odd", "verdict.kind='odd': expected preference, guard, reward."),
  ("verdict__kind", "guard", "verdict.kind=guard: set verdict.model to the guard model."),
  ("verdict__kind", "reward", "verdict.kind=reward: set verdict.model"),
  ("verdict__model", 1, "verdict.model=1: expected text."),
  ("prompts__bad_rows", "drop", "prompts.bad_rows='drop': expected refuse or skip."),
  ("prompts__path", ("a", "b"), "prompts.path=('a', 'b'): expected text."),
  ("best_of_n__samples", -1, "best_of_n.samples=-1"),
  ("smooth_llm__copies", 0, "smooth_llm.copies=0"),
  ("smooth_llm__percent", NAN, "smooth_llm.percent=nan: expected a number from 0 to 100."),
  ("endpoint__timeout", 0, "endpoint.timeout=0: expected a number above 0 up to 86400."),
  ("endpoint__timeout", NAN, "endpoint.timeout=nan"),
  ("endpoint__retries", -1, "endpoint.retries=-1"),
  ("endpoint__retries", 10**6, "endpoint.retries=1000000"),
  ("endpoint__budget", -1, "endpoint.budget=-1"),
  ("mesh__data", 0, "mesh.data=0: expected 1 or more, or -1"),
  ("mesh__tensor", 0, "mesh.tensor=0"),
  ("tasks", (), "tasks=(): expected at least one name"),
  ("tasks", "dialogue", "tasks='dialogue': expected a list of names"),
  ("tasks", ("dialogue", "dialogue"), "tasks: dialogue appears twice"),
  ("methods", [], "methods=(): expected at least one name"),
  ("methods", (3,), "methods=(3,): expected a list of names"),
]


@pytest.mark.parametrize("name, value, says", BAD)
def test_a_value_that_cannot_be_used_is_known_before_anything_is_loaded(
  monkeypatch, tmp_path, name, value, says
):
  monkeypatch.setattr(loading, "load", lambda *args: pytest.fail("a model is loaded"))
  monkeypatch.setattr(from_config, "begin", lambda *args: pytest.fail("a model is loaded"))
  for start in (lambda c: job.run(c, str(tmp_path / "run")), job.plans):
    with pytest.raises(DataError) as error:
      start(config_of(**{name: value}))
    assert str(error.value).startswith(says) and len(str(error.value).splitlines()) == 1
  assert not (tmp_path / "run").exists()


def test_the_bundled_configurations_can_be_used():
  config_check.check(config_of())
  config_check.check(config_of(search__similarity_threshold=2.0, search__grow_threshold=0.0))


@pytest.mark.parametrize("name", ["temperature", "root_prior", "exploration", "value_threshold"])
@pytest.mark.parametrize("value", [NAN, INF, -INF, "1", [1]])
def test_the_search_takes_finite_numbers_alone(name, value):
  with pytest.raises(ValueError, match=f"^{name}=") as error:
    SearchConfig(**{name: value})
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
  "lengths", [(), (2, 2), (1, 0), (1, 2.5), (1, "2"), "12", 3, (1, NAN), None]
)
def test_set_lengths_are_whole_numbers(lengths):
  with pytest.raises(ValueError, match="^set_lengths="):
    SearchConfig(set_lengths=lengths)
  assert SearchConfig(set_lengths=[1, 3]).set_lengths == (1, 3)


def test_what_the_python_api_takes_has_the_same_ranges():
  make = lambda **changes: session.SessionConfig(
    DIALOGUE, load_preference("harmless"), SearchConfig(), **changes
  )
  for changes in ({"verdict_noise": NAN}, {"batch_size": True}, {"max_prompt": 0}):
    with pytest.raises(DataError, match=f"^{next(iter(changes))}="):
      make(**changes)
  with pytest.raises(DataError, match="smooth_llm.percent=nan"):
    SmoothLLM(percent=NAN)
  assert make(verdict_noise=1).verdict_noise == 1


@pytest.mark.parametrize(
  "changes, says",
  [
    ({"template": "Q:"}, "format.template='Q:': expected {prompt} in it."),
    ({"template": 3}, "format.template=3: expected text."),
    ({"stop": ("",)}, "format.stop: '' stands everywhere"),
    ({"stop": "abc"}, "format.stop='abc': expected a list of texts"),
    ({"stop": (1,)}, "format.stop=1: expected text."),
    ({"suppress": "abc"}, "format.suppress='abc': expected a list of texts"),
    ({"suppress": ("a", "")}, "format.suppress: '' is in every token"),
    ({"prefix": "\ud800"}, "format.prefix='\\ud800': expected text."),
    ({"opening": None}, "format.opening=None: expected text."),
  ],
)
def test_a_format_that_cannot_be(changes, says):
  with pytest.raises(DataError) as error:
    Format(**changes)
  assert str(error.value).startswith(says)


def test_what_a_chat_template_does_not_heed_is_not_taken():
  with pytest.raises(DataError, match="format.template has no effect on the format chat"):
    from_config.task_of(config_of(format__name="chat", format__template="Q: {prompt}"), "dialogue")
  assert from_config.task_of(config_of(format__name="chat"), "dialogue").format.chat


@pytest.mark.parametrize(
  "range_, inside, outside",
  [
    (ranges.whole(0, 3), (0, 3), (-1, 4, 1.0, 10**400, True, NAN, None, "1", {})),
    (ranges.real(0, 1), (0, 1, 0.5), (-1e-9, 1.1, 10**400, INF, NAN, False, "0")),
    (ranges.real(0, 1, above=True), (1e-9, 1), (0, 0.0)),
    (ranges.real(infinite=True), (INF, -1e30), (-INF, NAN)),
    (ranges.YES_NO, (True, False), (0, 1, None, "True")),
  ],
)
def test_ranges(range_, inside, outside):
  assert all(map(range_.holds, inside)) and not any(map(range_.holds, outside))


def test_a_check_does_not_change_a_configuration():
  config = config_of()
  before = copy.deepcopy(config)
  config_check.check(config)
  assert config == before
