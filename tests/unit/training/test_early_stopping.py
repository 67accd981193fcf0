from lockstep.training.early_stopping import best_step, is_stuck, losses


def history(*values: float) -> list[dict[str, float]]:
    return [{"step": 10 * number, "eval_loss": value} for number, value in enumerate(values, 1)]


def test_the_best_step_is_the_first_of_the_lowest_losses() -> None:
    assert best_step(history(3, 1, 2, 1)) == 20
    assert best_step([{"step": 1, "loss": 2.0}]) is None


def test_stuck_counts_evaluations_without_a_better_loss() -> None:
    assert not is_stuck(history(3, 2, 1), 1, 0.0)
    assert is_stuck(history(3, 2, 2), 1, 0.0)
    assert not is_stuck(history(3, 2, 2.1), 2, 0.0)
    assert is_stuck(history(3, 2, 2.1, 2.2), 2, 0.0)
    assert not is_stuck(history(3, 2, 2.1, 1.9), 2, 0.0)
    assert not is_stuck(history(3, 3, 3, 3), None, 0.0)


def test_what_is_not_better_by_the_threshold_is_not_better() -> None:
    assert is_stuck(history(3, 2.95, 2.91), 2, 0.1)
    assert not is_stuck(history(3, 2.95, 2.89), 2, 0.1)  # together they are


def test_the_log_holds_more_than_evaluations() -> None:
    log = [{"step": 1, "loss": 4.0}, *history(3.0), {"step": 11, "loss": 2.0}]
    assert losses(log) == [(10, 3.0)]
