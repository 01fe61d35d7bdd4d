"""The guard with a real policy on both sides: what is right passes, each fault is named first."""

import logging

import numpy as np
import pytest

from intellect_jax.errors import Hopeless
from intellect_jax.monitor.compilations import CompilationCounter
from intellect_jax.trainer.guard.guard import BOUNDS, PATIENCE, bound, circumstances
from intellect_jax.trainer.guard.suspects import vocabulary
from intellect_jax.types import PackedBatch, Version
from tests.policies import SMALL, random_params
from tests.trainer.guard.sides import (
    LONGEST,
    PROMPT,
    answers,
    batch,
    config,
    findings,
    guard,
    logprobs,
    moved,
    on_device,
    programs,
    replaced,
    with_wrong_expert,
)

V0, V1 = Version(0, 0), Version(0, 1)
NOW = random_params(SMALL)
BEFORE = moved(NOW, 0.02)


def stopped(run_dir, sampler, *, published=None, version=V0, tokens=None, **options):
    """What guard.json holds after a batch with these numbers [B, S] of the sampler; the message in ``message``."""
    made = guard(run_dir, {V0: NOW} if published is None else published)
    tokens = answers() if tokens is None else tokens
    given = batch(tokens, sampler, step=version.number + 1, **options)
    with pytest.raises(Hopeless) as raised:
        made.check(on_device(NOW), given, version)
    return findings(run_dir) | {"message": str(raised.value)}


def test_a_healthy_batch_passes_and_nothing_compiles(tmp_path):
    made, params = guard(tmp_path, {}), on_device(NOW)
    given = batch(answers(), logprobs(NOW, answers()))
    compilations = CompilationCounter()
    compilations.warm()
    row = made.check(params, given, V0)
    assert row["guard/error"] < 1e-5 and row["guard/largest"] < 1e-4 and row["guard/tokens"] > 300
    assert compilations.after_warmup == 0 and not (tmp_path / "guard.json").exists()


@pytest.mark.parametrize(("layer", "expert"), [(0, 0), (0, 3), (1, 3), (1, 7)])
def test_a_wrong_expert_is_named(tmp_path, layer, expert):
    found = stopped(tmp_path, logprobs(with_wrong_expert(NOW, layer, expert), answers()))
    first = found["suspects"][0]
    assert first["name"] == "experts" and f"layer {layer + 1}, expert {expert}:" in first["evidence"], found["message"]


@pytest.mark.parametrize(("asked", "used"), [(1.0, 0.7), (0.6, 1.0), (1.0, 1.3)])
def test_a_wrong_temperature_is_named(tmp_path, asked, used):
    tokens = answers(temperature=used)
    found = stopped(tmp_path, logprobs(NOW, tokens, used), tokens=tokens, temperature=asked)
    first = found["suspects"][0]
    assert first["name"] == "temperature" and first["explains"] > 0.95, found["message"]
    assert float(first["evidence"].split()[2]) == pytest.approx(used, rel=0.02)


@pytest.mark.parametrize(("shift", "which"), [(1, "before"), (-1, "after")])
def test_shifted_numbers_are_named(tmp_path, shift, which):
    found = stopped(tmp_path, np.roll(logprobs(NOW, answers()), shift, axis=1))
    assert found["suspects"][0]["name"] == "alignment", found["message"]
    assert f"token {which}" in found["suspects"][0]["evidence"]


def test_stale_weights_are_named_with_their_version(tmp_path):
    found = stopped(tmp_path, logprobs(BEFORE, answers()), published={V0: BEFORE, V1: NOW}, version=V1)
    assert found["suspects"][0]["name"] == "stale weights" and "version 0.0" in found["suspects"][0]["evidence"]
    assert found["suspects"][0]["explains"] > 0.99


def test_experts_that_were_not_packed_again_are_named(tmp_path):
    served = replaced(NOW, **BEFORE["moe_layers"]["moe"]["experts"])
    found = stopped(tmp_path, logprobs(served, answers()), published={V0: BEFORE, V1: NOW}, version=V1)
    assert found["suspects"][0]["name"] == "experts not repacked", found["message"]


def test_published_files_that_are_not_the_trainers_weights_are_named(tmp_path):
    found = stopped(tmp_path, logprobs(BEFORE, answers()), published={V0: BEFORE})
    assert found["suspects"][0]["name"] == "publishing", found["message"]


def test_a_cache_kept_over_an_update_is_named(tmp_path):
    """Half of the rollouts began under the version before; behind the update their numbers are between the two."""
    right, old = logprobs(NOW, answers()), logprobs(BEFORE, answers())
    began_before = np.arange(len(right))[:, None] % 2 == 0
    stale = (began_before & (np.arange(LONGEST) < PROMPT + 5)).astype(np.int32)
    served = np.where(stale, old, np.where(began_before, (right + old) / 2, right))
    found = stopped(tmp_path, served, published={V0: BEFORE, V1: NOW}, version=V1, stale=stale)
    assert found["suspects"][0]["name"] == "stale cache", found["message"]


def test_what_keep_kv_makes_inexact_by_choice_is_not_compared(tmp_path):
    right, old = logprobs(NOW, answers()), logprobs(BEFORE, answers())
    stale = (np.arange(LONGEST) < PROMPT + 5) * (np.arange(len(right))[:, None] % 2 == 0).astype(np.int32)
    given = batch(answers(), np.where(np.arange(len(right))[:, None] % 2 == 0, old, right), step=2, stale=stale)
    for choice, differs in (("reprefill", True), ("keep_kv", False)):
        made = guard(tmp_path / choice, {V1: NOW}, sampler__on_update=choice)
        if differs:
            with pytest.raises(Hopeless):
                made.check(on_device(NOW), given, V1)
        else:
            assert made.check(on_device(NOW), given, V1)["guard/error"] < 1e-5


def test_wrong_decoding_after_a_right_prefill_is_named(tmp_path):
    right = logprobs(NOW, answers())
    noise = np.random.default_rng(0).normal(0, 0.3, right.shape) * (np.arange(LONGEST) > PROMPT)
    assert stopped(tmp_path, right + noise)["suspects"][0]["name"] == "decoding"


def test_small_noise_is_called_numerics(tmp_path):
    right = logprobs(NOW, answers())
    noise = np.random.default_rng(0).normal(0, 5e-3, right.shape)
    assert stopped(tmp_path, right + noise)["suspects"][0]["name"] == "numerics"


def test_ids_that_the_tokenizer_does_not_have_are_told():
    given = batch(answers(), logprobs(NOW, answers()))
    one = PackedBatch(1, {name: array[:1] for name, array in given.arrays.items()})
    seen = programs().compare(on_device(NOW), programs().place(one))
    few = circumstances(config(), SMALL, V0, (), vocabulary=60, limit=1e-3)
    (found,) = vocabulary(seen, None, few)
    beyond = int((seen.tokens[seen.compared] >= 60).sum())
    assert found.name == "tokenizer" and found.evidence.startswith(f"{beyond} of ") and beyond > 100
    assert not list(vocabulary(seen, None, circumstances(config(), SMALL, V0, (), SMALL.vocab_size, 1e-3)))


def test_numbers_that_are_none_stop_the_run(tmp_path):
    right = logprobs(NOW, answers())
    right[:, PROMPT + 1] = np.nan
    found = stopped(tmp_path, right)
    assert found["largest_error"] == 1e30 and found["worst_tokens"][0]["sampler"] == -1e30


def test_the_noise_of_bfloat16_passes_its_bound_and_rare_outliers_with_it(tmp_path):
    right = logprobs(NOW, answers())
    rng = np.random.default_rng(0)
    noisy = right + rng.normal(0, 0.02, right.shape) + 3.0 * (rng.random(right.shape) < 0.005)
    made = guard(tmp_path, {}, weights__dtype="bfloat16")
    row = made.check(on_device(NOW), batch(answers(), noisy), V0)
    assert 0.01 < row["guard/error"] < 0.05 and row["guard/largest"] > 2


def test_the_message_shows_the_worst_token_in_its_place(tmp_path):
    right = logprobs(NOW, answers())
    right[3, 10] -= 7.0
    right[:, PROMPT:] += 0.01
    found = stopped(tmp_path, right)
    worst, tokens = found["worst_tokens"][0], answers()[3]
    assert worst["position"] == 10 and worst["id"] == tokens[10] and worst["trainer"] - worst["sampler"] > 6.9
    assert f"(id {tokens[10]})" in found["message"].split("worst tokens")[1].splitlines()[1]
    assert "Stopped before step 1" in found["message"] and str(tmp_path / "guard.json") in found["message"]


def test_the_bound_follows_the_dtypes_unless_it_is_given():
    assert bound(config()) == BOUNDS["float32"]
    assert bound(config(sampler__dtype="bfloat16")) == BOUNDS["bfloat16"]
    assert bound(config(guard__max_error=0.2)) == 0.2


def test_checks_come_before_the_first_step_then_every_so_often_and_at_once_after_a_bad_step(tmp_path):
    made, params = guard(tmp_path, {}, guard__every=5), on_device(NOW)
    right = logprobs(NOW, answers())
    checked = []
    for step in range(1, 15):
        if made.check(params, batch(answers(), right, step=step), Version(0, step - 1)):
            checked.append(step)
        made.hear(step, fresh_kl_sum=1e-2 if step == 8 else 1e-9, fresh=400)
    assert checked == [1, 6, 9, 14]


def test_tokens_of_an_older_version_are_compared_with_that_version(tmp_path):
    made, params = guard(tmp_path / "right", {V0: BEFORE, V1: NOW}), on_device(NOW)
    stale = np.ones_like(answers())
    compilations = CompilationCounter()
    compilations.warm()
    row = made.check(params, batch(answers(), logprobs(BEFORE, answers()), step=2, stale=stale), V1)
    assert row["guard/error"] < 1e-5 and row["guard/tokens"] > 300 and compilations.after_warmup == 0
    made = guard(tmp_path / "wrong", {V0: BEFORE, V1: NOW})
    wrong = batch(answers(), logprobs(with_wrong_expert(BEFORE, 1, 3), answers()), step=2, stale=stale)
    with pytest.raises(Hopeless, match=r"of version 0\.0"):
        made.check(params, wrong, V1)
    assert findings(tmp_path / "wrong")["suspects"][0]["name"] == "experts"


def test_tokens_that_a_newer_version_follows_are_not_compared(tmp_path):
    """The sampler's experts for them are the newer version's by then: the demo was once stopped for one tie of them."""
    went_on = np.arange(len(answers()))[:, None] % 2 == 0
    stale = np.where(went_on & (np.arange(LONGEST) >= PROMPT + 8), 1, 2)
    apart = logprobs(BEFORE, answers()) + np.where(went_on & (stale == 2), 0.5, 0.0)
    row = guard(tmp_path / "few", {V0: BEFORE, V1: NOW}).check(
        on_device(NOW), batch(answers(), apart, step=3, stale=stale), Version(0, 2)
    )
    assert row["guard/error"] < 1e-5 and row["guard/tokens"] > 150
    with pytest.raises(Hopeless, match=r"of version 0\.0"):
        wrong = apart + np.where(went_on, 0.0, 0.5)
        guard(tmp_path / "wrong", {V0: BEFORE, V1: NOW}).check(
            on_device(NOW), batch(answers(), wrong, step=3, stale=stale), Version(0, 2)
        )


def test_a_run_without_versions_to_compare_is_told_once_that_nothing_is_compared(tmp_path, caplog):
    made, params = guard(tmp_path, {}), on_device(NOW)
    wrong = batch(answers(), logprobs(BEFORE, answers()), step=2, stale=np.ones_like(answers()))
    with caplog.at_level(logging.WARNING):
        for _ in range(3 * PATIENCE):
            assert made.check(params, wrong, V1) == {}
    assert [record.message for record in caplog.records if "guard cannot compare" in record.message] != []
    assert sum("guard cannot compare" in record.message for record in caplog.records) == 1


def test_a_guard_that_is_off_says_nothing(tmp_path):
    made = guard(tmp_path, {}, guard__enabled=False)
    assert made.check(on_device(NOW), batch(answers(), logprobs(BEFORE, answers())), V0) == {}
