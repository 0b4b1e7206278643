from dataclasses import replace

import pytest
import torch

from repquant.errors import InputError
from repquant.methods.attempts import Attempts, SearchData
from repquant.methods.judges import LogitsJudge, MetricJudge, Score, compare_logits
from repquant.methods.ptq import PtqMethod
from repquant.methods.search import (
    FEWEST_STEPS,
    STEPS,
    Candidate,
    affordable_steps,
    find_best,
    in_time,
    keeping_layers,
    methods,
    with_learned_rounding,
)
from repquant.targets.target import resolve_target

ANY = tuple(Candidate(name=name, method=PtqMethod()) for name in ("a", "b", "c"))


def searched(drops, max_drop=0.1, ticks=100, refinements=()):
    """Search candidates whose drops are known, with time for so many attempts."""
    tried = []

    def attempt(candidate):
        tried.append(candidate)
        return Score(agreement=99.0, kl=0.001 * len(tried), drop=drops[candidate.name])

    outcome = find_best(ANY, refinements, attempt, max_drop, lambda: len(tried) >= ticks)
    assert [candidate for candidate, _ in outcome.attempts] == tried
    return outcome


@pytest.mark.parametrize("has_identity", [False, True])
def test_the_default_method_is_tried_first_and_is_enough_if_it_meets_the_limit(has_identity):
    candidates = methods(has_identity)
    assert candidates[0].method == PtqMethod()
    assert candidates[0].calibrator == "mse"
    assert all(candidate.method.rounding != "nearest" for candidate in candidates)
    outcome = find_best(candidates, (), lambda _: Score(drop=0.05), 0.1, lambda: False)
    assert [candidate for candidate, _ in outcome.attempts] == [candidates[0]]
    assert (outcome.best, outcome.met) == (0, True)
    identities = [candidate.method.identity for candidate in candidates]
    assert identities == ["fused"] * 5 + ["residual"] * has_identity


def test_dearer_ones_follow_while_the_limit_is_not_met():
    outcome = searched({"a": 0.5, "b": 0.1, "c": 0.0})
    assert (len(outcome.attempts), outcome.best, outcome.met) == (2, 1, True)
    assert "b: the best of 2 tried" in outcome.reason


def test_the_best_of_what_was_tried_when_nothing_meets_it():
    outcome = searched({"a": 0.5, "b": 0.2, "c": 0.2})
    assert (outcome.best, outcome.met) == (1, False)  # of equal drops the one with the smaller KL
    assert "nothing tried" in outcome.reason
    outcome = searched({"a": 0.5, "b": 0.3, "c": 0.0}, ticks=2)
    assert (len(outcome.attempts), outcome.best, outcome.met) == (2, 1, False)
    assert "time was up" in outcome.reason
    assert len(searched({"a": 0.5}, ticks=0).attempts) == 1


def test_refinements_follow_each_other_each_from_the_best_so_far():
    drops = {"a": 0.5, "b": 0.2, "c": 0.3, "b+": 0.4, "b, 1 in float": 0.2, "b, 2 in float": 0.05}

    def plus(best):
        yield replace(best, name=f"{best.name}+")

    outcome = searched(drops, refinements=[plus, lambda best: keeping_layers(best, ["x", "y", "z", "last"])])
    chosen = outcome.attempts[outcome.best][0]
    assert [candidate.name for candidate, _ in outcome.attempts[3:]] == ["b+", "b, 1 in float", "b, 2 in float"]
    assert (chosen.keep_float, outcome.met) == (("x", "y"), True)


def test_refinements_are_not_asked_for_without_time():
    def refuse(_best):
        raise AssertionError("that takes long")
        yield

    outcome = searched({"a": 0.5, "b": 0.3, "c": 0.4}, ticks=3, refinements=[refuse])
    assert (len(outcome.attempts), outcome.best) == (3, 1)
    assert "time was up" in outcome.reason


@pytest.mark.parametrize(
    ("seconds", "steps"), [(1e9, STEPS), (0.5 * STEPS, STEPS), (150.0, 300), (0.5 * FEWEST_STEPS - 1, 0), (-5.0, 0)]
)
def test_as_many_steps_as_there_is_time_for(seconds, steps):
    assert affordable_steps(0.5, seconds) == steps


def test_candidates_made_from_the_best():
    learned = with_learned_rounding(methods(True)[-1], 300)
    assert learned.name == "equalized, learned rounding, 300 steps, identity as residual"
    assert learned.method.reconstruction.steps == 300
    as_it_is = next(candidate for candidate in methods(False) if candidate.method.equalization == "none")
    learned = with_learned_rounding(as_it_is, STEPS)
    assert learned.name == "not equalized, learned rounding"
    assert learned.method.equalization == "none"
    assert keeping_layers(ANY[0], ["x"]) == ()  # not every layer
    assert [candidate.keep_float for candidate in keeping_layers(ANY[0], ["x", "y"])] == [("x",)]


def test_items_are_given_while_there_is_time():
    taken = []

    def items():
        for item in range(5):
            taken.append(item)
            yield item

    assert list(in_time(items(), lambda: len(taken) >= 3)) == [0, 1, 2]
    assert taken == [0, 1, 2], "no work is done for what is not given"
    assert list(in_time([], lambda: True)) == []


def test_logits_are_compared_by_hand():
    reference = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]))
    other = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    score = compare_logits(reference, other)
    assert (score.agreement, score.drop) == pytest.approx((50.0, 25.0))
    assert score.kl > 0


def test_a_metric_in_its_own_units(two_inputs, pairs):
    figures = iter([0.8, 0.7])
    judge = MetricJudge(two_inputs, lambda _network: next(figures))
    assert judge(two_inputs) == Score(drop=pytest.approx(0.1))


def test_what_logits_can_not_judge(two_inputs, pairs):
    judge = LogitsJudge(two_inputs, pairs)
    assert (judge.images, judge(two_inputs).drop, judge(two_inputs).kl) == (8, 0.0, 0.0)
    with pytest.raises(InputError, match="no images to judge"):
        LogitsJudge(two_inputs, [])


@pytest.fixture
def attempts(mixed, images):
    data = SearchData(ranges=images.split(4), rounding=images.split(4), ranking=[images[:4]])
    steps = []
    tried = Attempts(
        mixed,
        resolve_target("openvino", weight_bits=4),
        data,
        LogitsJudge(mixed, [images]),
        on_progress=lambda step, done: steps.append((step, done)),
    )
    tried.steps = steps
    return tried


def test_a_search_through_a_network(attempts, mixed):
    """A limit that only layers in float can meet: all methods are tried, and the best of all is kept."""
    outcome = find_best(methods(False)[:1], (attempts.keep_layers,), attempts, -1.0, attempts.out_of_time)
    names = [candidate.name for candidate, _ in outcome.attempts]
    assert names == ["equalized, error feedback"] + [
        f"equalized, error feedback, {count} in float" for count in (1, 2, 4, 8)
    ]
    chosen, score = outcome.attempts[outcome.best]
    assert score.loss == min(other.loss for _, other in outcome.attempts)
    assert not set(chosen.keep_float) & set(attempts.rounded(chosen).plan.layout.layers)
    assert len(attempts.seconds) == 5
    assert {step for step, _ in attempts.steps} >= {"calibrate", "find sensitive layers", *names}


def test_layers_of_a_learned_network_in_float_keep_the_others_integers(attempts):
    learned = with_learned_rounding(methods(False)[0], 3)
    attempts(learned)
    whole = attempts.rounded(learned).simulated()
    in_float = replace(learned, keep_float=("head", "stem"))
    fewer = attempts._round(in_float, attempts._plan(in_float))
    prepared = attempts._prepared(learned.method).graph
    assert torch.equal(fewer.graph.get_submodule("head").weight, prepared.get_submodule("head").weight)
    part = fewer.simulated()
    for name in fewer.plan.layout.layers:
        assert torch.equal(part.get_submodule(name).integers.weight, whole.get_submodule(name).integers.weight)


def test_learning_is_left_out_where_time_is_short(attempts):
    candidate = methods(False)[0]
    attempts(candidate)
    assert [found.method.rounding for found in attempts.learn(candidate)] == ["learned"]
    attempts._end = 0.0
    assert list(attempts.learn(candidate)) == []
    assert "learned rounding was left out" in attempts.notes[0]
