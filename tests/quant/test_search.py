from dataclasses import replace

import pytest
import torch

from repquant.numerics.distance import expected_drop
from repquant.quant.ptq import PtqMethod
from repquant.quant.search import (
    FEWEST_STEPS,
    STEPS,
    Candidate,
    Score,
    affordable_steps,
    in_time,
    judge,
    keeping_layers,
    methods,
    search,
    with_learned_rounding,
)

ANY = tuple(Candidate(name=name, method=PtqMethod()) for name in ("a", "b", "c"))


def searched(drops, max_drop=0.1, ticks=100, refinements=()):
    """Search candidates whose expected drops are known, with time for so many attempts."""
    tried = []

    def attempt(candidate):
        tried.append(candidate)
        return Score(agreement=99.0, kl=0.001 * len(tried), expected_drop=drops[candidate.name])

    outcome = search(ANY, refinements, attempt, max_drop, lambda: len(tried) >= ticks)
    assert [candidate for candidate, _ in outcome.attempts] == tried
    return outcome


def test_the_first_within_the_limit_ends_the_search():
    outcome = searched({"a": 0.5, "b": 0.1, "c": 0.0})
    assert (len(outcome.attempts), outcome.best, outcome.met) == (2, 1, True)
    assert "b: the first of 2 tried" in outcome.reason


def test_the_best_so_far_when_the_time_is_up():
    outcome = searched({"a": 0.5, "b": 0.3, "c": 0.0}, ticks=2)
    assert (len(outcome.attempts), outcome.best, outcome.met) == (2, 1, False)
    assert "time was up" in outcome.reason


def test_one_attempt_is_made_without_any_time():
    assert len(searched({"a": 0.5}, ticks=0).attempts) == 1


def test_layers_in_float_are_the_last_resort_and_start_from_the_best():
    drops = {"a": 0.5, "b": 0.2, "c": 0.3, "b, 1 in float": 0.2, "b, 2 in float": 0.05}
    outcome = searched(drops, refinements=[lambda best: keeping_layers(best, ["x", "y", "z", "last"])])
    chosen = outcome.attempts[outcome.best][0]
    assert (chosen.name, chosen.keep_float, outcome.met) == ("b, 2 in float", ("x", "y"), True)


def test_nothing_reaches_the_limit():
    outcome = searched({"a": 0.5, "b": 0.2, "c": 0.2})
    assert (outcome.best, outcome.met) == (1, False)  # of equal drops the one with the smaller KL
    assert "nothing tried" in outcome.reason


def test_refinements_follow_each_other_each_from_the_best_so_far():
    drops = {"a": 0.5, "b": 0.2, "c": 0.3, "b+": 0.4, "c+": 0.4, "b, 1 in float": 0.2}

    def plus(best):
        yield replace(best, name=f"{best.name}+")

    outcome = searched(drops, refinements=[plus, lambda _: (), lambda best: keeping_layers(best, ["x", "y"])])
    assert [candidate.name for candidate, _ in outcome.attempts[3:]] == ["b+", "b, 1 in float"]
    assert "nothing tried" in outcome.reason


def test_the_time_may_end_with_the_last_candidate():
    """Then it kept nothing from being tried."""
    assert "nothing tried" in searched({"a": 0.5, "b": 0.3, "c": 0.2}, ticks=3).reason
    assert "time was up" in searched({"a": 0.5, "b": 0.3, "c": 0.2}, ticks=2).reason


def test_learned_rounding_of_a_candidate():
    residual = methods(True)[-1]
    learned = with_learned_rounding(residual, 300)
    assert learned.name == "equalized, learned rounding, 300 steps, identity as residual"
    assert (learned.method.rounding, learned.method.identity) == ("learned", "residual")
    assert learned.method.reconstruction.steps == 300
    entropy = with_learned_rounding(methods(True)[3], STEPS)
    assert (entropy.name, entropy.calibrator) == ("equalized, learned rounding, entropy ranges", "entropy")


@pytest.mark.parametrize(
    ("seconds", "steps"), [(1e9, STEPS), (0.5 * STEPS, STEPS), (150.0, 300), (0.5 * FEWEST_STEPS - 1, 0), (-5.0, 0)]
)
def test_as_many_steps_as_there_is_time_for(seconds, steps):
    assert affordable_steps(0.5, seconds) == steps


def test_items_are_given_while_there_is_time():
    taken = []

    def items():
        for item in range(5):
            taken.append(item)
            yield item

    assert list(in_time(items(), lambda: len(taken) >= 3)) == [0, 1, 2]
    assert taken == [0, 1, 2], "no work is done for what is not given"
    taken.clear()
    assert list(in_time(items(), lambda: True)) == [0]
    assert list(in_time([], lambda: True)) == []


def test_methods_get_dearer_and_only_the_last_changes_the_graph():
    assert [candidate.method.identity for candidate in methods(True)] == ["fused"] * 4 + ["residual"]
    assert methods(True)[:-1] == methods(False)
    assert methods(True)[0].method.rounding == "nearest"


def test_not_every_layer_is_kept_in_float():
    assert keeping_layers(ANY[0], ["x"]) == ()
    assert [candidate.keep_float for candidate in keeping_layers(ANY[0], ["x", "y"])] == [("x",)]


def test_expected_drop_by_hand():
    reference = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]))
    assert expected_drop(reference, reference).tolist() == [0.0, 0.0]
    other = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert expected_drop(reference, other).tolist() == pytest.approx([0.5, 0.0])
    score = judge(reference, other)
    assert (score.agreement, score.expected_drop) == pytest.approx((50.0, 25.0))
    assert score.kl > 0


def test_sensitive_layers_are_not_looked_for_without_time():
    def refuse(_best):
        raise AssertionError("that takes long")
        yield

    outcome = searched({"a": 0.5, "b": 0.3, "c": 0.4}, ticks=3, refinements=[refuse])
    assert (len(outcome.attempts), outcome.best) == (3, 1)
    assert "time was up" in outcome.reason
