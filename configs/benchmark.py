"""What `scripts/benchmark.py` measures.

python scripts/benchmark.py --config=configs/benchmark.py:demo     under 10 minutes, 2 cores
python scripts/benchmark.py --config=configs/benchmark.py:scaling  time against sizes
python scripts/benchmark.py --config=configs/benchmark.py:side_by_side  beside PyTorch
python scripts/benchmark.py --config=configs/benchmark.py:memory   the plan beside the compiler
python scripts/benchmark.py --config=configs/benchmark.py:7b       an accelerator; also 1b to 70b
"""

import ml_collections


def get_config(arg: str = "demo") -> ml_collections.ConfigDict:
  """`demo`, `scaling`, `side_by_side`, `memory`, or the shapes `125m`, `1b`, `7b`, `8b`, `13b`, `70b`."""
  config = ml_collections.ConfigDict()
  modes = ("scaling", "side_by_side", "memory")
  config.mode = arg if arg in modes else "rows"  # rows, scaling, side_by_side or memory
  config.models = ("demo",)  # the trained demo, demo_shape, 125m, 1b, 7b, 8b, 13b, 70b
  config.dtype = "float32"  # float32, bfloat16, or int8 weights
  config.batches = (1, 8)  # prompts side by side
  config.methods = (
    *("vanilla", "no_cache", "rain", "leaf_parallel"),
    *("segments", "adaptive", "best_of_n"),
  )  # what is timed
  config.verdicts = ("good", "bad", "model")  # and mixed
  config.mixed_share = 0.5  # of the texts that are judged good where verdicts are mixed
  config.repeats = 3  # timed calls of each
  config.seed = 0  # of all random numbers

  # Lengths in tokens; the demo has its own prompts and verdict template.
  config.workload = ml_collections.ConfigDict()
  config.workload.prompt = 96  # tokens
  config.workload.response = 48  # tokens
  config.workload.verdict_prefix = 700  # tokens before what is judged
  config.workload.verdict_suffix = 24  # tokens after it, in each reading
  config.workload.text_end_share = 1 / 12  # share of the vocabulary that ends a text

  # Numbers of rain_jax.types.SearchConfig; leaf_parallel's come on top.
  config.search = ml_collections.ConfigDict()
  config.search.max_nodes = 1024  # as of a run
  config.search.max_visited = 96  # as of a run
  config.search.draft_length = 0  # tokens of a draft; 0 is to its text end; 24 from 125m to 70b
  config.leaf_parallel = ml_collections.ConfigDict()
  config.leaf_parallel.leaves = 16  # its search.leaves
  config.leaf_parallel.early_commit = True  # its search.early_commit

  # The sweep of `scaling`: one size is varied, the others are the first of their lists.
  config.scaling = ml_collections.ConfigDict()
  config.scaling.batch = (1, 2, 4, 8, 16)  # prompts side by side
  config.scaling.prompt = (96, 192, 384, 768)  # tokens
  config.scaling.max_nodes = (1024, 2560, 5120, 10240)  # node slots
  config.scaling.steps = 12  # iterations timed

  if arg == "scaling":
    config.models = ("demo_shape",)
  elif arg == "side_by_side":
    config.models = ("demo_shape", "125m")
    config.batches = (1, 16)
  elif arg == "memory":
    config.models = ("demo_shape", "125m")
    config.batches = (1, 8)
  elif arg in ("125m", "1b", "7b", "8b", "13b", "70b"):
    config.models = (arg,)
    config.methods = ("vanilla", "rain", "leaf_parallel", "segments", "adaptive")
    config.workload.prompt = 512
    config.search.draft_length = 24  # its texts end at random, and rows wait for the longest draft
    if arg != "125m":
      config.dtype = "bfloat16"
      config.batches = (1, 16, 32)
      config.verdicts = ("good", "mixed", "bad")
  elif arg != "demo":
    raise ValueError(
      f"configs/benchmark.py:{arg}: expected demo, scaling, side_by_side, memory,"
      " 125m, 1b, 7b, 8b, 13b or 70b."
    )
  return config
