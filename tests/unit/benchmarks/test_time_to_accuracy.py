"""The rounds of `benchmarks/time_to_accuracy.py`."""

from benchmarks.time_to_accuracy import Round, Run, Settings, methods_of, summarise, to_round_row, to_row


def test_after_the_full_rounds_the_script_and_the_sweep_do_not_run():
    settings = Settings(full_rounds=2)
    assert methods_of(0, 0, settings) == ["script", "probe", "standard", "sweep"]
    assert methods_of(1, 1, settings) == ["script", "probe", "standard"]
    assert methods_of(2, 0, settings) == ["probe", "standard"]
    assert methods_of(99, 0, Settings()) == ["script", "probe", "standard", "sweep"]


def test_ratios_are_of_full_rounds_and_accuracies_of_all():
    def run(wall_s: float, accuracy: float) -> Run:
        return Run(wall_s=wall_s, test_accuracy=accuracy, valid_accuracy=accuracy)

    full = {"script": run(100, 0.7), "probe": run(40, 0.9), "standard": run(50, 0.9)}
    rest = {"probe": run(60, 0.8), "standard": run(70, 0.7)}
    rounds = [Round(seed=number, fold=0, num_images={}, runs=runs) for number, runs in enumerate((full, rest))]
    found = summarise(rounds)
    assert found["probe"]["time_ratios"] == [0.4]
    assert found["probe"]["median_wall_s"] == 50
    assert round(found["probe"]["mean_test_accuracy"], 3) == 0.85
    assert to_row("probe", found["probe"]).startswith("| probe | **50.0** (40.0 to 60.0) | **0.40** (0.40 to 0.40) |")
    assert to_round_row(2, rounds[1]).endswith("| 60.0 s, 0.800 | 70.0 s, 0.700 |  |  |  |  |  |")

    without = summarise(rounds[1:])
    assert "time_ratios" not in without["probe"]
    assert to_row("probe", without["probe"]) == (
        "| probe | **60.0** (60.0 to 60.0) |  |  | **0.800** (0.800 to 0.800) |  |  | 0.800 |"
    )
