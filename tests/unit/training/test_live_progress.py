"""What a training run tells while it runs."""

from tlray.training.live_progress import Board


def test_the_first_epoch_stays_known():
    board = Board()
    assert board.read() == ({}, [])
    for epoch in (4, 4, 5):
        board.post({"epoch": epoch, "step": 1, "history": []})
    board.post_failure("worker 0 failed")
    latest = {"first_epoch": 4, "epoch": 5, "step": 1, "history": []}
    assert board.read() == (latest, ["worker 0 failed"])
