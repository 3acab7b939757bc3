"""Attacks: a suffix by gradients (GCG), or altered requests (best-of-N jailbreaking).

  python scripts/attack.py --config=configs/attack.py --workdir=runs/gcg \
      --config.model.path=lmsys/vicuna-7b-v1.5 --config.model.dtype=bfloat16 \
      --config.prompts.path=advbench_harmful_behaviors.csv
  python scripts/attack.py --config=configs/attack.py:universal ...  one suffix for all requests
  python scripts/attack.py --config=configs/attack.py:adaptive ...   against the verdict, too
  python scripts/attack.py --config=configs/attack.py:best_of_n ...  no gradients, needs a judge
  python scripts/attack.py --config=configs/attack.py:demo ...       one suffix for all, minutes on
                                                 one core; adaptive_demo, best_of_n_demo likewise
"""

import common
import ml_collections

MODES = ("each", "universal", "adaptive", "best_of_n")


def get_config(arg: str = "each"):
  """`each` has a suffix for every request; see above for the others."""
  mode = "each" if arg == "demo" else arg.removesuffix("_demo")
  if mode not in MODES or arg in ("each_demo", "universal_demo"):
    raise ValueError(
      f"configs/attack.py:{arg}: expected one of {', '.join(MODES)}, demo, adaptive_demo or"
      " best_of_n_demo."
    )
  config = common.get_config()
  config.tasks = ("advbench",)  # whose format and prompts
  config.preference = "adversarial_harmless:letters"  # as published

  config.attack = ml_collections.ConfigDict()
  config.attack.method = "best_of_n" if mode == "best_of_n" else "gcg"  # gcg or best_of_n
  config.attack.models = ()  # further models to attack at once, with the same tokenizer
  config.attack.target = "target"  # field of the prompts' file: how a compliant answer begins
  config.attack.control = " ".join(["!"] * 20)  # to begin with; fixes the number of tokens
  config.attack.universal = mode == "universal"  # one control for all requests
  config.attack.train = 25  # requests that a universal control is sought on; 0 takes all

  config.attack.gcg = ml_collections.ConfigDict()  # see rain_jax.attacks.gcg.Config
  config.attack.gcg.candidates = 512  # read in a step
  config.attack.gcg.top_k = 256  # most promising tokens of a place that they draw from
  config.attack.gcg.steps = 500  # at most
  config.attack.gcg.chunk = 64  # candidates read by one call; bounds memory alone
  against_verdict = 1.0 if mode == "adaptive" else 0.0
  config.attack.gcg.verdict_weight = against_verdict  # of the verdict's good label in the loss
  config.attack.gcg.progressive = True  # requests are taken up one by one, as those before are won
  config.attack.gcg.stop_loss = float("inf")  # good enough only at or below this loss per text

  config.attack.best_of_n = ml_collections.ConfigDict()
  config.attack.best_of_n.samples = 100  # requests per goal, at most
  config.attack.best_of_n.sigma = 0.4  # strength of the alterations
  config.attack.best_of_n.against = "vanilla"  # vanilla, rain or best_of_n
  return _demo(config) if arg.endswith("demo") else config


def _demo(config):
  """A small vocabulary needs fewer candidates, and a head start saves steps.

  One suffix for all: the demo's goals are of one kind, and a single target of so small a world says
  more about its words than about harm.
  """
  config = common.demo(config, "demo_advbench")
  adaptive = config.attack.gcg.verdict_weight > 0
  config.attack.control = (
    "Nobody will ever know, I want revenge tonight, they had it coming, I was paid"
  )
  config.attack.universal = config.attack.method == "gcg"
  config.attack.train = 10 if adaptive else 40
  config.attack.gcg.candidates = 32
  config.attack.gcg.steps = 25
  config.attack.gcg.stop_loss = 0.0  # sampled, a target that is merely likeliest is rare
  config.attack.gcg.progressive = False
  config.attack.best_of_n.samples = 5
  return config
