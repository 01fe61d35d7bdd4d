"""Costs of real small programs, counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from launch.plan import cost, hlo, jaxpr
from tests.policies import CONFIGS, QUICK, loss_function, random_params


def compiled_and_traced(function, *arguments):
    traced = jax.jit(function).trace(*arguments)
    text = traced.lower().compile(compiler_options=QUICK).as_text()
    return cost.count(hlo.parse(text)), jaxpr.matmul_flops(traced.jaxpr)


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def layers(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_scan_is_multiplied_by_its_length():
    counted, traced = compiled_and_traced(layers, array(64, 32), array(5, 32, 32))
    assert counted.total_flops == traced == 5 * 2 * 64 * 32 * 32
    assert counted.unknown_loops == 0


def test_nested_loops_multiply():
    def nested(x, weights):
        def outer(x, _):
            return layers(x, weights), None

        return jax.lax.scan(outer, x, length=7)[0] @ weights[0]

    counted, traced = compiled_and_traced(nested, array(16, 8), array(3, 8, 8))
    assert counted.total_flops == traced == (7 * 3 + 1) * 2 * 16 * 8 * 8


def test_backward_and_recomputation_count():
    def loss(x, weights):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None), prevent_cse=False)
        return jax.lax.scan(body, x, weights)[0].sum()

    counted, traced = compiled_and_traced(jax.grad(loss, argnums=(0, 1)), array(64, 32), array(5, 32, 32))
    assert counted.total_flops == traced == 5 * 4 * 2 * 64 * 32 * 32  # forward, again, and two backward


def test_of_a_conditional_the_dearer_branch_counts():
    def branch(flag, x):
        return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x + 1, x)

    counted, traced = compiled_and_traced(branch, jax.ShapeDtypeStruct((), bool), array(128, 128))
    assert counted.total_flops == traced == 2 * 2 * 128**3


def test_flops_are_kept_by_the_dtype_of_the_factors():
    text = """
ENTRY %main (a: bf16[8,4], b: bf16[4,16]) -> f32[8,16] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = bf16[4,16]{1,0} parameter(1)
  ROOT %dot = f32[8,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}"""
    assert cost.count(hlo.parse(text)).flops == {"bf16": 2 * 8 * 4 * 16}


def test_a_scan_over_stacked_weights_reads_each_layer_once():
    count, width, rows = 50, 128, 8
    counted, _ = compiled_and_traced(layers, array(rows, width), array(count, width, width))
    weights = count * width * width * 4
    assert weights <= counted.bytes < 5 * weights  # reading the whole stack in every iteration would be 50 times more


def test_the_gradient_of_a_whole_policy_costs_what_its_trace_says():
    cfg = CONFIGS["llama"]  # a CPU loops over experts as long as their tokens ask for: no program tells how long
    params = random_params(cfg)
    batch = jax.ShapeDtypeStruct((2, 32), jnp.int32)
    counted, traced = compiled_and_traced(jax.grad(loss_function(cfg)), params, batch, batch)
    assert traced > 0 and abs(counted.total_flops / traced - 1) < 0.03


LOOP = """
%body (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p = (s32[]{:T(128)}, f32[4,4]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%p), index=1
  %y = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[4,4]{1,0}) tuple(%i, %y)
}, execution_thread="main"

%condition (p: (s32[], f32[4,4])) -> pred[] {
  %p.1 = (s32[], f32[4,4]{1,0}) parameter(0)
  %n = s32[] constant(12)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %less = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (a: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %a = (s32[], f32[4,4]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[4,4]{1,0}) while(%a), condition=%condition, body=%body, metadata={op_name="a (b"}
}"""


def test_trip_counts_are_read_off_the_condition_where_the_compiler_noted_none():
    assert cost.count(hlo.parse(LOOP)).total_flops == 12 * 2 * 4**3


def test_trip_counts_may_be_handed_to_the_loop():
    text = LOOP.replace("s32[] constant(12)", "s32[] get-tuple-element(%p.1), index=2")
    start = """%zero = s32[] constant(0)
  %x.9 = f32[4,4]{1,0} constant({...})
  %nine = s32[] constant(9)
  %a = (s32[], f32[4,4], s32[]) tuple(%zero, %x.9, %nine)
  ROOT %w"""
    text = text[: text.index("  %a = ")] + "  " + start + text[text.index("%w") + 2 :]
    assert cost.count(hlo.parse(text)).total_flops == 9 * 2 * 4**3


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    counted = cost.count(hlo.parse(LOOP.replace("s32[] constant(12)", "s32[] get-tuple-element(%p.1), index=0")))
    assert counted.total_flops == 2 * 4**3 and counted.unknown_loops == 1


CALLS = {
    "cublas": (
        '(f32[8,16]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config='
        '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
        2 * 8 * 4 * 16,
    ),
    "convolution": ("f32[8,16]{1,0} convolution(%a, %b), dim_labels=bf_io->bf", 2 * 8 * 4 * 16),
}


@pytest.mark.parametrize("name", CALLS)
def test_matmuls_of_other_compilers(name):
    call, flops = CALLS[name]
    text = f"""
ENTRY %main (a: f32[8,4], b: f32[4,16]) -> f32[8,16] {{
  %a = f32[8,4]{{1,0}} parameter(0)
  %b = f32[4,16]{{1,0}} parameter(1)
  ROOT %r = {call}
}}"""
    assert cost.count(hlo.parse(text)).total_flops == flops


def test_kernels_count_as_their_trace_says_or_are_named():
    text = """
ENTRY %main (a: bf16[8,4]) -> bf16[8,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  ROOT %k = bf16[8,4]{1,0} custom-call(%a), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/flash"}
}"""
    assert cost.count(hlo.parse(text)).kernels == {"flash": 1}
    assert cost.count(hlo.parse(text), {"flash": 100.0}).flops == {"bf16": 100.0}


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no HLO module"):
        hlo.parse("hello")


def test_tokamaxs_attention_counts_the_half_below_the_diagonal():
    text = """
ENTRY %main (q: bf16[1024,8,128], k: bf16[1024,2,128]) -> (bf16[1024,8,128], f32[8,1024]) {
  %q = bf16[1024,8,128]{2,1,0} parameter(0)
  %k = bf16[1024,2,128]{2,1,0} parameter(1)
  ROOT %r = (bf16[1024,8,128]{2,1,0}, f32[8,1024]{1,0}) custom-call(%q, %k), custom_call_target="mosaic_gpu_v2", \
metadata={op_name="jit(f)/tokamax:{\\"op\\":{\\"__type\\":\\"tokamax._src.ops.attention.gpu.PallasMosaicGpuFlashAttention\\"}}"}
}"""
    assert cost.count(hlo.parse(text)).flops == {"bf16": 4 * 1024 * 1024 * 8 * 128 / 2}
