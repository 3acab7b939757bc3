"""Every key of a run's configuration, with defaults; other configs start from here."""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  """Defaults of `scripts/generate.py`; None means the task's or the method's own value."""
  config = ml_collections.ConfigDict()

  config.model = ml_collections.ConfigDict()
  config.model.path = "demo"  # "demo", "demo:traps", a folder, a GGUF file, package:NAME, hub name
  config.model.dtype = "float32"  # float32, bfloat16, or int8 weights
  config.model.revision = ""  # branch, tag or commit of a hub name; "" for its main branch
  config.model.adapter = ""  # LoRA adapter of PEFT to merge: a folder or a hub name

  config.verdict = ml_collections.ConfigDict()
  config.verdict.model = ""  # another model, as model.path, that gives the verdicts; "" for none
  config.verdict.kind = "preference"  # how it is asked; or guard, reward for such a model

  config.tasks = ("dialogue",)  # names of rain_jax.tasks.TASKS
  # fmt: off
  config.methods = ("vanilla", "rain")  # vanilla, rain, adaptive, segments, best_of_n, smooth_llm, guard, choose
  # fmt: on
  config.preference = ""  # a bundled name or a YAML file, perhaps with its form, as harmless:words
  config.calibration = ""  # of the verdicts, a file that check_preference.py --fit wrote
  config.judge = ""  # names with commas, see rain_jax.judges.panel; "" takes the task's own

  config.prompts = ml_collections.ConfigDict()
  config.prompts.path = ""  # .jsonl, .json, .csv, .tsv, .txt or folder; hub:OWNER/NAME/FILE; commas
  config.prompts.bad_rows = "refuse"  # rows that cannot be used: refuse the file, or skip them
  config.prompts.column = ""  # field that holds the prompt, a text or a list of messages
  config.prompts.limit = 0  # prompts taken from each file; 0 takes all
  config.prompts.text = ""  # one prompt, instead of a file
  config.prompts.suffixes = ""  # attack suffixes: json with goal and controls
  config.prompts.behaviors = ""  # HarmBench's csv, for the goals of its test cases

  config.format = ml_collections.ConfigDict()
  config.format.name = ""  # a name of rain_jax.text.formats.FORMATS; chat is the tokenizer's own
  config.format.prefix = config_dict.placeholder(str)  # text before every prompt, read once
  config.format.template = config_dict.placeholder(str)  # the user's turn, with {prompt}
  config.format.stop = config_dict.placeholder(tuple)  # strings that end a response
  config.format.suppress = config_dict.placeholder(tuple)  # no token with such a text is drawn
  config.format.opening = config_dict.placeholder(
    str
  )  # before the first turn; chat's system message

  # fmt: off
  config.format.template_kwargs = config_dict.create()  # for a chat template: {'enable_thinking': False}
  config.format.thinking = ""  # strip: what a model thinks before it answers is no part of the answer
  config.format.think_end = config_dict.placeholder(str)  # ends a thought; None takes </think>
  # fmt: on

  config.judging = ml_collections.ConfigDict()
  config.judging.dtype = "bfloat16"  # of judge models
  config.judging.batch_size = 8  # responses read at once
  config.judging.calibration = ""  # of sentiment or preference:NAME, see check_preference.py --fit

  config.endpoint = ml_collections.ConfigDict()  # of the judges endpoint:MEASURE
  config.endpoint.url = ""  # OpenAI-compatible, up to and with /v1
  config.endpoint.model = ""  # its name there
  config.endpoint.key = ""  # name of the environment variable that holds the key
  config.endpoint.timeout = 60.0  # seconds for one request
  config.endpoint.retries = 4  # of a request that failed
  config.endpoint.budget = 10_000  # requests of each judge and start; 0 for no limit
  config.endpoint.cache = ""  # folder in which replies are kept; "" for none

  config.limits = ml_collections.ConfigDict()
  config.limits.max_prompt = 512  # tokens; longer prompts are reported, not answered
  config.limits.max_response = 256  # tokens
  config.limits.max_thought = 1024  # tokens, with format.thinking; longer thoughts are reported

  config.mesh = ml_collections.ConfigDict()
  config.mesh.data = -1  # shards of a batch; -1 for as many as there are devices left
  config.mesh.tensor = 1  # shards of the model
  config.mesh.across_hosts = True  # one model over all processes, or one in each of them

  config.batch_size = 8  # prompts side by side at most, over all shards and processes
  config.seed = 0  # of all random numbers
  config.record = 0  # prompts of each task whose search is recorded, for trees and exports

  config.embedder = ml_collections.ConfigDict()
  config.embedder.name = "hidden"  # hidden states of the model, or minilm
  config.embedder.path = ""  # folder of all-MiniLM-L6-v2, for minilm

  config.verdict_noise = 0.0  # share of the verdicts a method decides by that flip (ablation)
  config.soft_verdicts = False  # verdicts: the labels' difference in probability, not its sign

  config.best_of_n = ml_collections.ConfigDict()
  config.best_of_n.samples = 0  # N; 0 takes as many as RAIN's forwarded tokens pay for

  config.smooth_llm = ml_collections.ConfigDict()
  config.smooth_llm.copies = 10  # perturbed copies of each prompt
  config.smooth_llm.percent = 10.0  # of its characters
  config.smooth_llm.kind = "swap"  # swap, insert, patch
  config.smooth_llm.judge = "refusal_prefixes"  # a rule, or self: the model's own verdict

  config.guard = ml_collections.ConfigDict()
  config.guard.judge = "llama_guard"  # as config.judge, one, or self

  # Besides, every hyperparameter of rain_jax.types.SearchConfig; scripts/cli.py adds their keys.
  config.search = ml_collections.ConfigDict()
  config.search.variant = ""  # harmless, adversarial, truthful
  return config


def demo(config: ml_collections.ConfigDict, task: str) -> ml_collections.ConfigDict:
  """The demo world's twin of a task: the same code path in minutes on two cores."""
  config.tasks = (task,)
  config.limits.max_prompt = 160
  config.limits.max_response = 192
  config.batch_size = 16
  config.prompts.limit = 12
  return config
