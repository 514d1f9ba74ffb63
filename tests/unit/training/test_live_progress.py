"""What a training run tells while it runs."""

import queue
from typing import Any

import ray

from tlray.config.training import TrainConfig
from tlray.training import live_progress
from tlray.training.live_progress import Board


def test_the_first_epoch_stays_known():
    board = Board()
    assert board.read() == ({}, [])
    for epoch in (4, 4, 5):
        board.post({"epoch": epoch, "step": 1, "history": []})
    board.post_failure("worker 0 failed")
    latest = {"first_epoch": 4, "epoch": 5, "step": 1, "history": []}
    assert board.read() == (latest, ["worker 0 failed"])


class Handle:
    """A board in this process, asked as an actor is."""

    def __init__(self, board: Board) -> None:
        self.read = self
        self.looks: queue.Queue[None] = queue.Queue()
        self._board = board

    def remote(self) -> Any:
        self.looks.put(None)
        return self._board.read()


def test_failures_and_epochs_are_told_once(monkeypatch, capsys):
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(live_progress, "LOOK_INTERVAL_S", 0.001)
    handle = Handle(board := Board())
    row = {"loss": 0.5, "accuracy": 0.75, "valid_loss": 0.25, "valid_accuracy": 0.9, "learning_rate": 1e-3, "time_s": 2}
    config = TrainConfig(data="d", out="o", epochs=9, max_failures=3)
    with live_progress.shown(handle, config, steps_per_epoch=10):
        board.post({"epoch": 5, "step": 1, "history": [{"epoch": 4} | row]})
        board.post_failure("worker 1 failed: out of memory")
        handle.looks.queue.clear()
        for _ in range(3):
            handle.looks.get(timeout=30)
    told = capsys.readouterr().err
    assert (
        told.count("worker 1 failed: out of memory\nTraining continues from the last checkpoint, at most 3 times.") == 1
    )
    assert told.count("Continuing after epoch 4. The epochs before:") == 1
    assert told.count("epoch 4/9  loss 0.5000  accuracy 0.750") == 1
