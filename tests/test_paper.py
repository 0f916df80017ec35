"""The paper's numbers, checked against what the paper says of them elsewhere."""

from osdhuman import paper


def test_the_tags_of_figure_7_add_up_to_the_total_in_the_text():
    assert sum(tags for tags, _ in paper.FIGURE_7.values()) == 1_452_088


def test_the_distinct_tags_of_figure_7_add_up_to_the_total_in_the_text():
    assert sum(distinct for _, distinct in paper.FIGURE_7.values()) == 3_365


def test_osdhuman_has_the_best_lpips_of_table_2():
    assert min(paper.TABLE_2_VAL, key=lambda name: paper.TABLE_2_VAL[name]["lpips"]) == "OSDHuman"


def test_the_default_prompt_of_table_4_is_the_model_of_table_2():
    assert paper.TABLE_4["hfie_lq"] == paper.TABLE_2["OSDHuman"]["test"]


def test_persona_is_best_in_every_metric_of_table_1_that_is_better_when_lower():
    best = {metric: min(paper.TABLE_1, key=lambda name: paper.TABLE_1[name][metric]) for metric in ("brisque", "niqe")}
    assert set(best.values()) == {"PERSONA"}
