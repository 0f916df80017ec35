"""Intervals, paired differences, ranks and marks; numbers by hand."""

import math

import numpy as np
import pytest

from osdhuman.evaluation.statistics import average_ranks, marks, mean_interval, paired_difference, ranks

SCORES = np.random.default_rng(0).normal(20, 2, 400)


def test_interval_has_the_width_of_the_normal_approximation():
    interval = mean_interval(SCORES)
    expected = 2 * 1.96 * SCORES.std() / math.sqrt(len(SCORES))
    assert interval.high - interval.low == pytest.approx(expected, rel=0.06)


def test_interval_lies_around_the_mean():
    interval = mean_interval(SCORES)
    assert interval.low < interval.mean == SCORES.mean() < interval.high


def test_interval_repeats_with_its_seed():
    assert mean_interval(SCORES, seed=3) == mean_interval(SCORES, seed=3)


def test_interval_of_equal_scores_is_a_point():
    assert mean_interval([4.0, 4.0, 4.0]) == (4, 4, 4)


def test_one_image_has_no_interval():
    assert math.isnan(mean_interval([4.0]).low)


def test_an_infinite_score_leaves_no_interval():
    assert math.isnan(mean_interval([4.0, math.inf]).high)


def test_no_score_is_an_error():
    with pytest.raises(ValueError, match="n > 0"):
        mean_interval([])


def test_paired_difference_is_ours_minus_theirs():
    assert paired_difference([3.0, 5.0], [1.0, 4.0]).mean == 1.5


def test_sign_flips_of_three_alike_differences_give_a_quarter():
    # of 8 ways to choose signs, all plus and all minus are as far from zero as what was seen
    assert paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]).p == 0.25


def test_sign_flips_of_ten_images_are_exact():
    # every choice of signs of 1, 2, 4, ... gives another sum, so that of all plus is the largest of 1024
    assert paired_difference(2.0 ** np.arange(10), np.zeros(10)).p == 2 / 1024


@pytest.mark.parametrize("n", [2, 3, 5, 9, 10])
def test_small_sets_have_the_p_value_of_scipy(n):
    from scipy.stats import permutation_test

    differences = np.random.default_rng(n).normal(0.3, 1, n)
    expected = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=2000).pvalue
    assert paired_difference(differences, np.zeros(n)).p == pytest.approx(expected, abs=1e-12)


def test_large_sets_have_the_p_value_of_the_normal_approximation():
    from scipy.stats import norm

    differences = SCORES - SCORES.mean() + 0.1
    z = differences.mean() / np.sqrt(np.mean(differences**2) / len(differences))
    assert paired_difference(differences, 0 * differences).p == pytest.approx(2 * norm.sf(z), abs=0.05)


def test_no_p_value_is_zero():
    assert paired_difference(SCORES + 1, SCORES).p == 2 / 2001


def test_intervals_are_those_of_scipy_within_the_error_of_drawing():
    from scipy.stats import bootstrap

    found = bootstrap((SCORES,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(1))
    width = found.confidence_interval.high - found.confidence_interval.low
    ours = mean_interval(SCORES, seed=2)
    assert (ours.low, ours.high) == pytest.approx(tuple(found.confidence_interval), abs=0.06 * width)


def test_pairing_finds_a_difference_that_is_small_beside_the_spread():
    assert paired_difference(SCORES + 0.1, SCORES).low > 0


def test_scores_of_other_images_are_refused():
    with pytest.raises(ValueError, match="same images"):
        paired_difference([1.0, 2.0], [1.0])


def test_rank_one_is_the_highest_where_higher_is_better():
    assert ranks({"a": 20.0, "b": 22.0, "c": 21.0}, higher_is_better=True) == {"a": 3, "b": 1, "c": 2}


def test_rank_one_is_the_lowest_where_lower_is_better():
    assert ranks({"a": 20.0, "b": 22.0, "c": 21.0}, higher_is_better=False) == {"a": 1, "b": 3, "c": 2}


def test_equal_values_share_their_ranks():
    assert ranks({"a": 1.0, "b": 1.0, "c": 0.0}, higher_is_better=True) == {"a": 1.5, "b": 1.5, "c": 3}


def test_average_rank_takes_each_column_in_its_direction():
    table = {"a": {"psnr": 20.0, "niqe": 3.0}, "b": {"psnr": 22.0, "niqe": 4.0}}
    assert average_ranks(table, {"psnr": True, "niqe": False}) == {"a": 1.5, "b": 1.5}


def test_average_rank_leaves_out_columns_that_a_method_lacks():
    table = {"a": {"psnr": 20.0}, "b": {"psnr": 22.0, "niqe": 4.0}}
    assert average_ranks(table, {"psnr": True, "niqe": False}) == {"a": 2, "b": 1}


def test_best_and_second_are_marked():
    assert marks({"a": 1.0, "b": 3.0, "c": 2.0}, higher_is_better=False) == {"a": "best", "c": "second"}


def test_equal_best_share_the_mark():
    assert marks({"a": 3.0, "b": 3.0, "c": 2.0}, higher_is_better=True) == {"a": "best", "b": "best", "c": "second"}


def test_a_value_without_a_rival_is_not_marked():
    assert marks({"a": 3.0}, higher_is_better=True) == {}
