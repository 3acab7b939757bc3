"""Compiled programs as they are read and priced: by hand on a program written by hand, and on one of XLA's."""

import copy
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from rain_jax.experiments import compiled
from rain_jax.experiments.benchmark import Workload
from rain_jax.experiments.compiled import asked_of, chip_of, counts, hlo, pricing
from rain_jax.experiments.compiled.costs import Cost, Pricing
from rain_jax.models.checkpoint import read_config
from rain_jax.types import DataError, SearchConfig
from tests.helpers import small_runs

# As libtpu prints programs: three layers of a product with a slice of the stacked weights, summed
# over the shards; S(1) is memory on the chip.
TEXT = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%product (w: bf16[3,8,16], i: s32[], x: bf16[4,8]) -> f32[4,16] {
  %w = bf16[3,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %x = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %layer = bf16[1,8,16]{2,1,0:T(8,128)(2,1)} dynamic-slice(%w, %i, %zero, %zero), dynamic_slice_sizes={1,8,16}
  %own = bf16[8,16]{1,0:T(8,128)(2,1)} bitcast(%layer)
  ROOT %convolution.1 = f32[4,16]{1,0:T(8,128)} convolution(%x, %own), dim_labels=bf_io->bf
}

%stored (pool: f32[32,16], row: f32[4,16], i: s32[]) -> f32[32,16] {
  %pool = f32[32,16]{1,0:T(8,128)} parameter(0)
  %row = f32[4,16]{1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %put = f32[32,16]{1,0:T(8,128)} dynamic-update-slice(%pool, %row, %i, %zero)
}

%layers (p: (s32[], bf16[4,8], bf16[3,8,16], f32[32,16])) -> (s32[], bf16[4,8], bf16[3,8,16], f32[32,16]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[3,8,16]{2,1,0:T(8,128)(2,1)}, /*index=3*/f32[32,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %w = bf16[3,8,16]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=2
  %pool = f32[32,16]{1,0:T(8,128)} get-tuple-element(%p), index=3
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  %fusion.1 = f32[4,16]{1,0:T(8,128)S(1)} fusion(%w, %i, %x), kind=kOutput, calls=%product, metadata={op_name="jit(f)/while/body/rollout/while/body/dot_general"}
  %all-reduce.1 = f32[4,16]{1,0:T(8,128)} all-reduce(%fusion.1), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, to_apply=%add
  %fusion.2 = f32[32,16]{1,0:T(8,128)} fusion(%pool, %all-reduce.1, %i), kind=kLoop, calls=%stored
  ROOT %t = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[3,8,16]{2,1,0:T(8,128)(2,1)}, f32[32,16]{1,0:T(8,128)}) tuple(%next, %x, %w, %fusion.2)
}

%below (p.1: (s32[], bf16[4,8], bf16[3,8,16], f32[32,16])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[3,8,16]{2,1,0:T(8,128)(2,1)}, f32[32,16]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %three), direction=LT
}

%tokens (q: (s32[], s32[], bf16[4,8], bf16[3,8,16], f32[32,16])) -> (s32[], s32[], bf16[4,8], bf16[3,8,16], f32[32,16]) {
  %q = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[3,8,16]{2,1,0:T(8,128)(2,1)}, f32[32,16]{1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%q), index=0
  %bound = s32[]{:T(128)} get-tuple-element(%q), index=1
  %h = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%q), index=2
  %v = bf16[3,8,16]{2,1,0:T(8,128)(2,1)} get-tuple-element(%q), index=3
  %c = f32[32,16]{1,0:T(8,128)} get-tuple-element(%q), index=4
  %copy-start.1 = (bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[4,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%h), metadata={op_name="jit(f)/while/body/rollout/while/body/add"}
  %copy-done.1 = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %begin = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[3,8,16]{2,1,0:T(8,128)(2,1)}, f32[32,16]{1,0:T(8,128)}) tuple(%n, %copy-done.1, %v, %c)
  %while.1 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[3,8,16]{2,1,0:T(8,128)(2,1)}, f32[32,16]{1,0:T(8,128)}) while(%begin), condition=%below, body=%layers
  %d = f32[32,16]{1,0:T(8,128)} get-tuple-element(%while.1), index=3
  ROOT %u = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[3,8,16]{2,1,0:T(8,128)(2,1)}, f32[32,16]{1,0:T(8,128)}) tuple(%n, %bound, %h, %v, %d)
}

%goes_on (q.1: (s32[], s32[], bf16[4,8], bf16[3,8,16], f32[32,16])) -> pred[] {
  %q.1 = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[3,8,16]{2,1,0:T(8,128)(2,1)}, f32[32,16]{1,0:T(8,128)}) parameter(0)
  %n.1 = s32[]{:T(128)} get-tuple-element(%q.1), index=0
  %bound.1 = s32[]{:T(128)} get-tuple-element(%q.1), index=1
  ROOT %lt.1 = pred[]{:T(512)} compare(%n.1, %bound.1), direction=LT
}

ENTRY %main (r: (s32[], s32[], bf16[4,8], bf16[3,8,16], f32[32,16])) -> f32[32,16] {
  %r = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[3,8,16]{2,1,0:T(8,128)(2,1)}, f32[32,16]{1,0:T(8,128)}) parameter(0)
  %while.2 = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[3,8,16]{2,1,0:T(8,128)(2,1)}, f32[32,16]{1,0:T(8,128)}) while(%r), condition=%goes_on, body=%tokens
  %s = f32[32,16]{1,0:T(8,128)} get-tuple-element(%while.2), index=4
  ROOT %double = f32[32,16]{1,0:T(8,128)} add(%s, %s)
}
"""


# Without the tiles to which layouts pad: sizes to be worked out by hand.
PLAIN = re.sub(r":T\([^S}]*", ":", TEXT)


def test_tiles_are_padded_along_the_axes_that_lie_innermost():
  program = hlo.parse(TEXT)
  (pool,) = program.computations["stored"].instructions["pool"].shapes
  (row,) = program.computations["stored"].instructions["row"].shapes
  assert (pool.nbytes, row.nbytes) == (4 * 32 * 128, 4 * 8 * 128)
  turned = hlo.parse(TEXT.replace("f32[4,16]{1,0:T(8,128)}", "f32[4,16]{0,1:T(8,128)}"))
  (row,) = turned.computations["stored"].instructions["row"].shapes
  assert row.nbytes == 4 * 128 * 16


def test_a_turn_is_priced_by_what_it_reads_writes_and_exchanges():
  program = hlo.parse(PLAIN)
  mesh = {"data": 2, "tensor": 2}
  found = Pricing(program, mesh, lambda scope: "rollout" if "/rollout/" in scope else "step", str)
  found.price(program.entry)
  turn = found.phases["rollout"]
  assert turn.flops == 3 * 2 * 4 * 8 * 16
  # A slice of the weights, the sum written, read again, and stored in place; x comes in once.
  layer = 2 * 8 * 16 + 4 + 4 * 4 * 16 + 4 * 4 * 16 + 4 * 4 * 16 + 4
  assert turn.moved == pytest.approx(3 * layer + 2 * 4 * 8, abs=3 * 16)  # and the counters
  assert turn.exchanged == {("all-reduce", ("tensor",)): (3, 3 * 4 * 4 * 16)}
  assert [move.instruction.name for move in found.largest(2)] == ["double", "fusion.2"]
  entry = program.computations[program.entry].instructions
  assert program.trips(entry["while.2"]) is None
  assert program.trips(program.computations["tokens"].instructions["while.1"]) == 3


@pytest.mark.parametrize(
  "groups,axes",
  [
    ("{{0,1},{2,3}}", ("tensor",)),
    ("[2,2]<=[4]", ("tensor",)),
    ("[2,2]<=[2,2]T(1,0)", ("data",)),
    ("mesh['a'=2,'b'=2] {'a'}", ("data",)),
    ("mesh['a'=2,'b'=2] {'a','b'}", ("data", "tensor")),
    ("{}", ("data", "tensor")),
  ],
)
def test_the_axes_of_a_collective_are_read_from_its_groups(groups, axes):
  text = TEXT.replace("mesh['axis_0'=2,'axis_1'=2] {'axis_1'}", groups)
  (found,) = hlo.collectives(hlo.parse(text), 4)
  assert (found.kind, found.axes({"data": 2, "tensor": 2})) == ("all-reduce", axes)


@pytest.mark.parametrize(
  "window,left,right,labels,flops",
  [
    # 16 products side by side, as TPUs do them: of each window one place is not a hole.
    ("size=16x1 stride=15x1 lhs_dilate=16x1", "16,4,10,128", "16,10,128,4", "01bf_0oi1->01bf", 0),
    ("size=1", "4,1,8", "8,16,1", "b0f_io0->b0f", 2 * 4 * 8 * 16),
    ("size=4 pad=3_3 rhs_reversal=0", "2,1,8", "8,4,16", "b0f_i0o->b0f", 2 * 2 * 4 * 8 * 16),
  ],
)
def test_convolutions_count_the_products_that_are_there(window, left, right, labels, flops):
  out = {"01bf_0oi1->01bf": "16,4,10,10", "b0f_io0->b0f": "4,1,16", "b0f_i0o->b0f": "2,4,16"}[
    labels
  ]
  flops = flops or 2 * 16 * 4 * 10 * 10 * 128
  right = "16,10,128,4" if labels.startswith("01bf") else right
  text = f"""HloModule f

ENTRY %main (x: f32[{left}], y: f32[{right}]) -> f32[{out}] {{
  %x = f32[{left}]{{0}} parameter(0)
  %y = f32[{right}]{{0}} parameter(1)
  ROOT %c = f32[{out}]{{0}} convolution(%x, %y), window={{{window}}}, dim_labels={labels}
}}
"""
  program = hlo.parse(text)
  found = Pricing(program, {"data": 1}, str, lambda scope: "all")
  found.price(program.entry)
  assert found.phases["all"].flops == flops


@pytest.mark.parametrize(
  "named",
  [
    "branch_computations={%less, %more}",
    "true_computation=%more, false_computation=%less",
  ],
)
def test_every_branch_of_a_conditional_counts(named):
  branch = lambda name, op: (
    f"""%{name} (x.{name}: f32[8]) -> f32[8] {{
  %x.{name} = f32[8]{{0}} parameter(0)
  ROOT %y.{name} = f32[8]{{0}} {op}(%x.{name})
}}
"""
  )
  text = f"""HloModule f

{branch("less", "negate")}
{branch("more", "tanh")}
ENTRY %main (i: pred[], x: f32[8]) -> f32[8] {{
  %i = pred[] parameter(0)
  %x = f32[8]{{0}} parameter(1)
  ROOT %c = f32[8]{{0}} conditional(%i, %x, %x), {named}, metadata={{op_name="jit(f)/cond"}}
}}
"""
  found = Pricing(hlo.parse(text), {"data": 1}, str, lambda scope: "all")
  found.price("main")
  assert sorted(move.instruction.opcode for move in found.movements) == ["negate", "tanh"]


def test_a_loop_that_is_no_phase_is_priced_by_what_is_in_it():
  def f(x, turns):
    def body(at):
      with jax.named_scope("read_leaves"):
        y = jnp.tanh(at[1] * 3.0)
      return at[0] - 1, y

    return jax.lax.while_loop(lambda at: at[0] > 0, body, (turns, x))[1]

  compiled = jax.jit(f).lower(jnp.ones(8), 1).compile()
  once = lambda scope: "context" if "read_leaves" in scope else "step"
  found = Pricing(hlo.parse(compiled.as_text()), {"data": 1}, lambda scope: None, once)
  found.price(hlo.parse(compiled.as_text()).entry)
  assert found.phases["context"].moved > 0


def test_the_operations_of_a_program_of_xla_are_those_of_its_products():
  def f(x, w):
    with jax.named_scope("rollout"):
      return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  x, w = jnp.ones((4, 64)), jnp.ones((3, 64, 64))
  program = hlo.parse(jax.jit(f).lower(x, w).compile().as_text())
  found = Pricing(program, {"data": 1}, lambda scope: "loop", lambda scope: "once")
  found.price(program.entry)
  assert sum(cost.flops for cost in found.phases.values()) == 2 * 3 * 4 * 64 * 64


def test_the_least_time_is_that_of_the_scarcest_part():
  chip = chip_of("v5e:2x2")
  assert pricing.seconds(Cost(flops=197e12, moved=1.0), chip) == (1.0, "operations")
  assert pricing.seconds(Cost(flops=1.0, moved=819e9), chip) == (1.0, "memory")
  exchanged = {("all-reduce", ("tensor",)): (2.0, 800e9)}
  assert pricing.seconds(Cost(exchanged=exchanged), chip) == (2.0, "exchange")
  phases = {"step": Cost(moved=819e9), "rollout": Cost(flops=197e12)}
  assert pricing.together(phases, {"step": 2, "rollout": 3, "verdict": 9}, chip) == 5.0


@pytest.mark.parametrize(
  "name", ["H200", "h100:9", "h100:0", "h100:2x2", "h100:", "v9:2x2", "v5e", "v5e:2xtwo"]
)
def test_a_topology_that_cannot_be_is_one_line(name):
  with pytest.raises(DataError, match=f"--topology={name}: [^\n]*v5e:2x4"):
    chip_of(name)


def test_cards_are_counted_and_their_compiler_is_asked_for(monkeypatch):
  assert [compiled.size_of(name) for name in ("h100", "h200:4", "v5e:2x4")] == [1, 4, 8]
  assert [chip_of(name).backend for name in ("h200", "v5p:2x2x1")] == ["gpu", "tpu"]
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(DataError, match=r'not installed: pip install "rain_jax\[gpu-compile\]"'):
    compiled.mesh_of("h100", 1, 8)


def test_a_run_asks_for_programs_of_its_own_shapes(checkpoint):
  config = copy.deepcopy(small_runs.CONFIG) | {"methods": ("best_of_n", "rain", "vanilla")}
  config["model"]["path"], config["prompts"]["text"] = str(checkpoint), "the cat sat"
  (asked,) = asked_of(config, "v5e:2x2")
  shape, model = asked.shape, read_config(checkpoint)
  assert (shape.num_layers, shape.hidden_size) == (model.num_layers, model.hidden_size)
  assert (asked.methods, asked.batches, asked.tensor) == (("rain", "vanilla"), (4,), 1)
  assert asked.workload.response == 12 and asked.workload.prompt == 32
  assert asked.searches["rain"].max_nodes == 128
  config["verdict"] = {"model": str(checkpoint), "kind": "preference"}
  with pytest.raises(DataError, match="verdict.model: [^\n]*leave it away"):
    next(asked_of(config, "v5e:2x2"))
  with pytest.raises(DataError, match=r"methods=\('guard',\): expected some of vanilla"):
    next(asked_of(config | {"methods": ("guard",)}, "v5e:2x2"))


def test_calls_are_counted_by_a_search_of_a_small_model():
  lengths = Workload(prompt=8, response=6, verdict_prefix=8, verdict_suffix=2, text_end_share=1 / 4)
  search = SearchConfig(max_nodes=64, max_visited=16)
  found = counts.searching(lengths, 2, search, "good", 0.5)
  assert 2 <= found.tokens <= 12 and set(found.turns) == {
    *("step", "context", "candidates", "rollout", "verdict"),
  }
  assert found.turns["context"] == found.turns["step"] >= 6 / 3
  assert 0 < found.turns["candidates"] <= 9 * found.turns["step"]
