from gliotrail.integrations.numbers import numbers_of


def test_numbers_of_nested_metrics_have_paths_and_the_rest_are_no_points() -> None:
    told = {"loss": 1, "val": {"dice": 0.5, "of": {"WT": True}}, "note": "1.5", "none": None, 7: 2}
    assert numbers_of(told) == {"loss": 1.0, "val/dice": 0.5, "val/of/WT": 1.0, "7": 2.0}
