"""What the scripts add to configurations: keys for the hyperparameters of the search, with their types."""

import pytest

from rain_jax.types import SearchConfig, hyperparameters
from tests.helpers.repository import ROOT, load_config


@pytest.fixture
def with_search(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "scripts"))
  import cli  # pylint: disable=import-outside-toplevel

  return cli.with_search


def test_a_runs_search_has_every_hyperparameter_and_its_type(with_search):
  config = load_config("common").get_config()
  assert config.search.to_dict() == {"variant": ""}
  config.search.temperature = 2
  search = with_search(config).search
  assert search.to_dict() == {"variant": ""} | dict.fromkeys(hyperparameters()) | {"temperature": 2}
  for name in hyperparameters():
    value = getattr(SearchConfig(), name)
    assert search.get_type(name) is type(value), name
  assert isinstance(search.temperature, float)
  with pytest.raises(TypeError, match="min_visits"):
    search.min_visits = "8"


def test_a_value_of_another_type_in_a_config_file_is_refused(with_search):
  config = load_config("common").get_config()
  config.search.min_visits = "8"
  with pytest.raises(TypeError, match="min_visits"):
    with_search(config)


def test_a_locked_configuration_stays_locked_and_a_benchmarks_search_as_it_is(with_search):
  config = load_config("common").get_config().lock()
  with pytest.raises(AttributeError, match="leafs"):
    with_search(config).search.leafs = 1
  search = load_config("benchmark").get_config().search
  assert with_search(load_config("benchmark").get_config()).search == search
