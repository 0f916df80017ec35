"""The rules of selection: Eq. 1, top third, floors, duplicates, val and test."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from osdhuman import paper
from osdhuman.config import ConfigError, parse_config
from osdhuman.curate.record import Candidate, Reason, candidates_frame
from osdhuman.curate.select import (
    Floor,
    QuantileLimits,
    SelectConfig,
    SharedFloors,
    Verdicts,
    normalize,
    resolve_floors,
    resolve_limits,
    select,
    select_train,
    top_share,
)

GOOD = {"musiq": 50.0, "niqe": 4.0}
OPEN = {"metrics": ["musiq", "niqe"], "top": 1.0, "floors": {}, "val": 0, "test_limits": {}}


def crop(number: int, image: int | None = None, source: str = "coco", file: str = "", **scores: float | None):
    """A crop and its scores; `image` numbers the bytes of its file, its own by default."""
    image = number if image is None else image
    digest = f"{image:016x}{0:048x}"
    candidate = Candidate(f"{number:016x}", source, file or f"{image}.jpg", str(image), sha256=digest)
    return candidate, {"id": candidate.id, **GOOD, **scores}


def write(out: Path, crops: list, per_shard: int = 1000) -> Path:
    """What the passes `cut` and `score` leave behind."""
    for shard, start in enumerate(range(0, len(crops), per_shard)):
        candidates, scores = zip(*crops[start : start + per_shard], strict=True)
        for folder in ("crops", "scores"):
            (out / folder / f"{shard:05d}").mkdir(parents=True)
        candidates_frame(candidates).write_parquet(out / "crops" / f"{shard:05d}" / "candidates.parquet")
        pl.DataFrame(scores).write_parquet(out / "scores" / f"{shard:05d}" / "scores.parquet")
    return out


def config(**settings: object) -> SelectConfig:
    """Eq. 1 on MUSIQ and NIQE; unless said otherwise everything is kept, and all goes to train."""
    return parse_config(SelectConfig, {**OPEN, **settings})


def decide(out: Path, crops: list, **settings: object) -> pl.DataFrame:
    select(write(out, crops), config(**settings), ["voc"])
    return pl.read_parquet(out / "selection" / "selection.parquet")


def outcomes(table: pl.DataFrame) -> list[str]:
    """Split or reason of each crop, in the order of their numbers."""
    return table.select(pl.coalesce("split", "reason")).to_series().to_list()


# ---- Eq. 1 ----


def test_equation_1_on_four_crops_by_hand():
    # musiq: mean 4, deviations -3 -1 1 3, population std sqrt(5); -niqe: mean -2, deviations 1 -1 1 -1, std 1
    scores = {"musiq": np.array([1.0, 3, 5, 7]), "niqe": -np.array([1.0, 3, 1, 3])}
    root = math.sqrt(5)
    expected = [(-3 / root + 1) / 2, (-1 / root - 1) / 2, (1 / root + 1) / 2, (3 / root - 1) / 2]
    np.testing.assert_allclose(normalize(scores)[0], expected, rtol=1e-15)


def test_the_sign_of_a_metric_is_turned_where_lower_is_better(tmp_path: Path):
    table = decide(tmp_path, [crop(1, niqe=3.0), crop(2, niqe=5.0)])
    assert table["normalized"].to_list() == [0.5, -0.5]


def test_a_metric_that_is_the_same_for_all_adds_nothing():
    constant = np.full(3, 0.1)  # whose sum, divided by 3, is not 0.1 in floats
    assert normalize({"musiq": constant})[0].tolist() == [0.0] * 3


def test_equation_1_does_not_depend_on_the_order_of_crops():
    scores = np.random.default_rng(0).lognormal(sigma=8, size=10_000)
    order = np.random.default_rng(1).permutation(len(scores))
    assert (normalize({"musiq": scores})[0][order] == normalize({"musiq": scores[order]})[0]).all()


def test_crops_of_test_sources_do_not_move_the_mean(tmp_path: Path):
    table = decide(tmp_path, [crop(1, musiq=40.0), crop(2, musiq=60.0), crop(3, source="voc", musiq=900.0)])
    assert table["normalized"].to_list() == [-0.5, 0.5, None]


@pytest.mark.parametrize("failed", [math.nan, math.inf, None])
def test_a_crop_without_a_finite_score_is_dropped_and_in_no_mean(tmp_path: Path, failed: float | None):
    table = decide(tmp_path, [crop(1, musiq=40.0), crop(2, musiq=60.0), crop(3, musiq=failed)])
    assert table["normalized"].to_list() == [-0.5, 0.5, None]
    assert outcomes(table)[2] == Reason.BELOW_FLOOR
    assert "musiq" in table["detail"][2] and "not finite" in table["detail"][2]


def test_a_metric_of_the_test_limits_alone_drops_no_crop_of_train(tmp_path: Path):
    table = decide(tmp_path, [crop(1, brisque=math.nan), crop(2, brisque=9.0)], test_limits={"brisque": [None, 50]})
    assert outcomes(table) == ["train", "train"]


def test_mean_and_spread_are_written_in_the_metrics_own_direction(tmp_path: Path):
    decide(tmp_path, [crop(1, niqe=3.0), crop(2, niqe=5.0)])
    written = json.loads((tmp_path / "selection" / "selection.json").read_text())
    assert written["metrics"]["niqe"] == {"mean": 4.0, "std": 1.0}


# ---- top third ----


@pytest.mark.parametrize(("count", "kept"), [(2, 0), (3, 1), (8, 2), (9, 3), (440_001, 146_667)])
def test_the_top_third_of_n_is_the_whole_part(count: int, kept: int):
    assert len(top_share(np.zeros(count), 1 / 3)) == kept


def test_ties_go_to_the_smaller_id(tmp_path: Path):
    table = decide(tmp_path, [crop(n) for n in (3, 1, 2)], top=1 / 3)
    assert outcomes(table) == ["train", Reason.NOT_TOP_THIRD, Reason.NOT_TOP_THIRD]


def test_ties_go_to_the_smaller_id_among_many():
    assert top_share(np.tile([0.0, 1.0, 2.0], 1000), 0.1).tolist() == list(range(2, 900, 3))


def test_the_best_are_kept(tmp_path: Path):
    table = decide(tmp_path, [crop(n, musiq=float(n)) for n in range(6)], top=0.5)
    assert outcomes(table) == [Reason.NOT_TOP_THIRD] * 3 + ["train"] * 3


# ---- floors ----


def test_a_fixed_floor_is_the_least_that_passes(tmp_path: Path):
    table = decide(tmp_path, [crop(1, musiq=40.0), crop(2, musiq=39.9)], floors={"musiq": {"value": 40}})
    assert outcomes(table) == ["train", Reason.BELOW_FLOOR]


def test_a_fixed_floor_is_the_most_that_passes_where_lower_is_better(tmp_path: Path):
    table = decide(tmp_path, [crop(1, niqe=5.0), crop(2, niqe=5.1)], floors={"niqe": {"value": 5}})
    assert outcomes(table) == ["train", Reason.BELOW_FLOOR]


def test_the_detail_names_every_metric_that_failed(tmp_path: Path):
    floors = {"musiq": {"value": 40}, "niqe": {"value": 5}}
    table = decide(tmp_path, [crop(1), crop(2, musiq=30.0, niqe=6.0), crop(3, niqe=6.0)], floors=floors)
    both = "musiq 30.0 misses the floor 40; niqe 6.0 misses the floor 5"
    assert table["detail"].to_list() == [None, both, "niqe 6.0 misses the floor 5"]


def test_a_floor_at_a_quantile_fails_that_part(tmp_path: Path):
    crops = [crop(n, niqe=float(n)) for n in range(10)]
    table = decide(tmp_path, crops, floors={"niqe": {"quantile": 0.2}})
    assert outcomes(table) == ["train"] * 8 + [Reason.BELOW_FLOOR] * 2


def test_a_quantile_is_one_of_the_top_third_alone(tmp_path: Path):
    crops = [crop(n, musiq=float(n)) for n in range(10)]
    table = decide(tmp_path, crops, top=0.5, floors={"musiq": {"quantile": 0.2}})
    assert outcomes(table)[5:] == [Reason.BELOW_FLOOR] + ["train"] * 4


@pytest.mark.parametrize("metrics", [1, 2, 4])
def test_shared_floors_remove_their_share_together(metrics: int):
    columns = np.random.default_rng(0).normal(size=(metrics, 10_000))
    scores = dict(zip(("clipiqa", "maniqa", "musiq", "niqe"), columns, strict=False))
    floors = resolve_floors(SharedFloors(share=0.256), scores)
    fails = np.any([scores[name] < floor for name, floor in floors.items()], axis=0)
    assert 2560 - metrics < fails.sum() <= 2560


def test_shared_floors_lie_at_the_same_quantile_of_each_metric():
    scores = dict(zip(("musiq", "niqe"), np.random.default_rng(0).normal(size=(2, 1000)), strict=True))
    floors = resolve_floors(SharedFloors(share=0.2), scores)
    assert (scores["musiq"] < floors["musiq"]).sum() == (scores["niqe"] < floors["niqe"]).sum()


def test_shared_floors_that_remove_nothing_let_all_pass():
    assert resolve_floors(SharedFloors(share=0.0), {"musiq": np.array([2.0, 1.0])}) == {"musiq": 1.0}


def random_crops(count: int, is_test: bool) -> pl.DataFrame:
    """Crops with a mark of their own in each metric of Eq. 1, as `read_crops` gives them."""
    random, names = np.random.default_rng(0), SelectConfig().metrics
    ids = pl.int_range(count, eager=True).cast(pl.String).str.zfill(16).alias("id")
    crops = pl.DataFrame({"id": ids, "image": np.arange(count, dtype=np.uint64)})
    return crops.with_columns(is_test=pl.lit(is_test), **{n: pl.Series(random.normal(size=count)) for n in names})


def test_the_papers_counts_follow_from_the_defaults():
    verdicts = Verdicts(paper.CANDIDATES)
    select_train(random_crops(paper.CANDIDATES, is_test=False), verdicts, SelectConfig())
    reasons, splits = (Counter(values.tolist()) for values in (verdicts.reason, verdicts.split))
    assert (reasons[Reason.NOT_TOP_THIRD], splits["val"]) == (440_000 - 146_666, paper.VAL)
    assert paper.TRAIN <= splits["train"] < paper.TRAIN + 4  # a step of the common quantile moves four floors


def test_fewer_crops_are_held_out_than_the_last_image_of_val_has(tmp_path: Path):
    table = decide(tmp_path, [crop(n, image=n // 7) for n in range(210)], val=100)
    assert table.filter(reason=Reason.HELD_OUT).height == 5  # 15 images of 7 crops are drawn


def test_floors_are_written_in_the_metrics_own_direction(tmp_path: Path):
    decide(tmp_path, [crop(n, niqe=float(n)) for n in range(10)], floors={"niqe": {"quantile": 0.2}})
    assert json.loads((tmp_path / "selection" / "selection.json").read_text())["floors"] == {"niqe": 7.0}


# ---- duplicates ----


def test_the_same_bytes_under_another_name_are_dropped(tmp_path: Path):
    crops = [crop(1, image=7, file="b.jpg"), crop(2, image=7, file="a.jpg"), crop(3)]
    table = decide(tmp_path, crops)
    assert outcomes(table) == [Reason.DUPLICATE, "train", "train"]
    assert table["detail"][0] == "same bytes as coco/a.jpg"


def test_two_crops_of_one_file_are_no_duplicates(tmp_path: Path):
    assert outcomes(decide(tmp_path, [crop(1, image=7), crop(2, image=7)])) == ["train", "train"]


def test_a_duplicate_is_in_no_mean(tmp_path: Path):
    crops = [crop(1, 1, musiq=40.0), crop(2, 2, musiq=60.0), crop(3, 2, source="openimages", musiq=900.0)]
    assert decide(tmp_path, crops)["normalized"].to_list() == [-0.5, 0.5, None]


def test_an_image_of_a_train_and_a_test_source_stays_in_one(tmp_path: Path):
    assert outcomes(decide(tmp_path, [crop(1, 7, "voc"), crop(2, 7, "coco"), crop(3)]))[0] == Reason.DUPLICATE


def test_equal_beginnings_of_sha256_are_no_duplicate(tmp_path: Path):
    (one, scores), (other, others) = crop(1, 7, file="a.jpg"), crop(2, 7, file="b.jpg")
    object.__setattr__(other, "sha256", other.sha256[:-1] + "1")
    assert outcomes(decide(tmp_path, [(one, scores), (other, others)])) == ["train", "train"]


# ---- val ----


def test_val_has_exactly_its_crops(tmp_path: Path):
    table = decide(tmp_path, [crop(n, image=n // 3) for n in range(60)], val=10)
    assert table.filter(split="val").height == 10


def test_val_shares_no_image_with_train(tmp_path: Path):
    table = decide(tmp_path, [crop(n, image=n // 3) for n in range(60)], val=10)
    images = {split: {int(name, 16) // 3 for name in table.filter(split=split)["id"]} for split in ("train", "val")}
    assert not images["train"] & images["val"]


def test_crops_that_val_has_no_room_for_are_held_out(tmp_path: Path):
    table = decide(tmp_path, [crop(n, image=n // 3) for n in range(60)], val=10)
    assert table.filter(reason=Reason.HELD_OUT).height == 2


def test_another_seed_draws_another_val(tmp_path: Path):
    crops = [crop(n) for n in range(50)]
    first, second = (decide(tmp_path / str(seed), crops, val=10, seed=seed) for seed in (0, 1))
    assert outcomes(first) != outcomes(second)


def test_an_image_keeps_its_place_in_the_draw_when_others_come(tmp_path: Path):
    few = decide(tmp_path / "few", [crop(n) for n in range(50)], val=10)
    more = decide(tmp_path / "more", [crop(n) for n in range(60)], val=10)
    drawn = set(more.filter(split="val")["id"].head(50)) & set(few["id"])
    assert drawn <= set(few.filter(split="val")["id"])


def test_a_val_that_leaves_nothing_to_train_on_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"val takes 3 of 3 selected crops .* choose a smaller val"):
        decide(tmp_path, [crop(n) for n in range(3)], val=3)


# ---- test ----


def test_test_takes_crops_of_test_sources_alone(tmp_path: Path):
    table = decide(tmp_path, [crop(1), crop(2, source="voc"), crop(3, source="voc")], test=2)
    assert outcomes(table) == ["train", "test", "test"]


def test_test_is_sampled_within_limits(tmp_path: Path):
    crops = [crop(n, source="voc", musiq=float(n)) for n in range(6)]
    table = decide(tmp_path, crops, test_limits={"musiq": [2, 4]})
    assert outcomes(table) == [Reason.OUTSIDE_LIMITS] * 2 + ["test"] * 3 + [Reason.OUTSIDE_LIMITS]
    assert table["detail"][0] == "musiq 0.0 is outside [2, 4]"


def test_a_limit_may_be_open(tmp_path: Path):
    crops = [crop(n, source="voc", musiq=float(n)) for n in range(4)]
    table = decide(tmp_path, crops, test_limits={"musiq": [2, None]})
    assert outcomes(table) == [Reason.OUTSIDE_LIMITS] * 2 + ["test"] * 2


def test_the_worst_and_the_best_crops_of_one_metric_are_left_out(tmp_path: Path):
    crops = [crop(n, source="voc", niqe=float(n)) for n in range(10)]
    table = decide(tmp_path, crops, metrics=["niqe"], test_limits={"worst": 0.2, "best": 0.3})
    assert outcomes(table) == [Reason.OUTSIDE_LIMITS] * 3 + ["test"] * 5 + [Reason.OUTSIDE_LIMITS] * 2
    assert table["detail"][0] == "niqe 0.0 is outside [3, 7]"


def test_the_limits_of_all_metrics_together_remove_their_shares():
    scores = {name: random_crops(10_000, is_test=True)[name].to_numpy() for name in SelectConfig().metrics}
    lowest, highest = (
        resolve_limits(QuantileLimits(**{"worst": 0.0, "best": 0.0, side: 0.25}), scores) for side in ("worst", "best")
    )
    for limits in (lowest, highest):
        outside = [(scores[name] < low) | (scores[name] > high) for name, (low, high) in limits.items()]
        assert 2496 < np.any(outside, axis=0).sum() <= 2500


def test_at_least_the_share_between_the_default_limits_remains(tmp_path: Path):
    random = np.random.default_rng(0)
    crops = [crop(n, source="voc", musiq=random.normal(), niqe=random.normal()) for n in range(600)]
    table = decide(tmp_path, crops, test_limits={})
    default = decide(tmp_path / "default", crops, test_limits=QuantileLimits())
    assert table.filter(split="test").height == 600
    assert 600 * (1 - 0.1 - 1 / 3) <= default.filter(split="test").height < 600 * 0.7


def test_crops_of_train_do_not_move_the_limits_of_test(tmp_path: Path):
    crops = [crop(n, source="voc", musiq=float(n)) for n in range(20)]
    more = [*crops, *(crop(n, musiq=1000.0) for n in range(20, 90))]
    alone, together = (decide(tmp_path / str(len(part)), part, test_limits={"worst": 0.1}) for part in (crops, more))
    assert outcomes(alone) == outcomes(together.head(20))


def test_the_limits_are_written_in_the_metrics_own_direction(tmp_path: Path):
    crops = [crop(n, source="voc", niqe=float(n)) for n in range(10)]
    decide(tmp_path, crops, metrics=["niqe"], test_limits={"worst": 0.2, "best": 0.3})
    assert json.loads((tmp_path / "selection" / "selection.json").read_text())["test_limits"] == {"niqe": [3.0, 7.0]}


def test_limits_without_a_test_source_are_none(tmp_path: Path):
    decide(tmp_path, [crop(1)], test_limits=QuantileLimits())
    assert json.loads((tmp_path / "selection" / "selection.json").read_text())["test_limits"] == {}


def test_limits_that_leave_nothing_are_an_error():
    with pytest.raises(ConfigError, match="worst and best are shares of all crops and leave none"):
        config(test_limits={"worst": 0.5, "best": 0.5})


def test_a_misspelt_limit_is_an_error():
    with pytest.raises(ConfigError, match="test_limits"):
        config(test_limits={"worst": 0.1, "bset": 0.3})


def test_test_has_exactly_its_crops_where_there_are_enough(tmp_path: Path):
    table = decide(tmp_path, [crop(n, source="voc") for n in range(20)], test=5)
    assert sorted(map(str, outcomes(table))) == [Reason.NOT_SAMPLED] * 15 + ["test"] * 5


def test_another_seed_draws_another_test(tmp_path: Path):
    crops = [crop(n, source="voc") for n in range(50)]
    first, second = (decide(tmp_path / str(seed), crops, test=10, seed=seed) for seed in (0, 1))
    assert outcomes(first) != outcomes(second)


# ---- the whole ----


def test_every_crop_has_a_split_or_a_reason(tmp_path: Path):
    crops = [crop(n, image=n // 2, source=("coco", "voc")[n // 2 % 2], musiq=float(n % 7)) for n in range(80)]
    table = decide(tmp_path, crops, top=0.5, floors={"share": 0.25}, val=3, test=4)
    assert table.filter(pl.col("split").is_null() == pl.col("reason").is_null()).is_empty()


def test_counts_add_up_to_the_crops(tmp_path: Path):
    out = write(tmp_path, [crop(n) for n in range(20)])
    assert select(out, config(top=0.5, val=2), []) == {"train": 8, "val": 2, str(Reason.NOT_TOP_THIRD): 10}


def test_no_crops_at_all_are_an_empty_selection(tmp_path: Path):
    out = write(tmp_path, [crop(1)])
    for path in (out / "crops" / "00000" / "candidates.parquet", out / "scores" / "00000" / "scores.parquet"):
        pl.read_parquet(path).clear().write_parquet(path)
    assert select(out, config(), []) == {}


def test_shards_and_their_order_do_not_matter(tmp_path: Path):
    random = np.random.default_rng(0)
    crops = [crop(n, n // 2, musiq=random.normal(), niqe=random.normal()) for n in range(200)]
    settings = {"top": 1 / 2, "floors": {"share": 0.25}, "val": 10}
    for name, order, per_shard in (("one", range(200), 1000), ("many", random.permutation(200), 7)):
        select(write(tmp_path / name, [crops[n] for n in order], per_shard), config(**settings), [])
    files = [(tmp_path / name / "selection" / "selection.parquet").read_bytes() for name in ("one", "many")]
    assert files[0] == files[1]


def test_every_scored_metric_is_passed_on(tmp_path: Path):
    assert decide(tmp_path, [crop(1, brisque=9.0)])["brisque"].to_list() == [9.0]


# ---- mistakes ----


def test_a_shard_without_scores_is_named(tmp_path: Path):
    (write(tmp_path, [crop(1)]) / "scores" / "00000" / "scores.parquet").unlink()
    with pytest.raises(ValueError, match=r"1 shard.*00000.*score them first"):
        select(tmp_path, config(), [])


def test_a_crop_without_scores_is_counted(tmp_path: Path):
    write(tmp_path, [crop(1), crop(2)])
    pl.DataFrame([crop(1)[1]]).write_parquet(tmp_path / "scores" / "00000" / "scores.parquet")
    with pytest.raises(ValueError, match="1 of 2 crops have no scores"):
        select(tmp_path, config(), [])


def test_an_id_that_comes_twice_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="two crops have the same id"):
        decide(tmp_path, [crop(1), crop(1)])


def test_a_metric_that_was_not_scored_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="not scored: clipiqa; scores hold musiq, niqe"):
        decide(tmp_path, [crop(1)], metrics=["clipiqa", "niqe"])


def test_a_floor_needs_a_value_or_a_quantile():
    with pytest.raises(ConfigError, match=r"either \{value: x\} or \{quantile: q\}"):
        config(floors={"musiq": {}})


def test_a_floor_of_a_metric_outside_equation_1_is_an_error():
    with pytest.raises(ConfigError, match="floors of brisque, but metrics are musiq, niqe"):
        config(floors={"brisque": {"value": 20}})


def test_floors_are_read_in_each_of_their_forms():
    forms = [{"share": 0.1}, {"niqe": {"value": 5}}, {"niqe": {"quantile": 0.1}}]
    assert [config(floors=form).floors for form in forms] == [
        SharedFloors(share=0.1),
        {"niqe": Floor(value=5)},
        {"niqe": Floor(quantile=0.1)},
    ]
