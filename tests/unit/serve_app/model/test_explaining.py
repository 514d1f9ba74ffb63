"""The process that explains: started when it is asked, ended when it is idle, and with the one that started it."""

import asyncio
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serve_app.model import explaining
from tlray.bundle.spec import BundleSpec
from tlray.bundle.store import Bundle
from tlray.errors import BundleError

DEADLINE_S = 60
SPEC = BundleSpec(classes=("a", "b"), image_size_px=8, preprocessing="unit", backbone="b", weights="w")
IMAGE = np.zeros((8, 8, 3), np.uint8)


def pid_of_the_process(_bundle: Bundle, _image: np.ndarray, class_index: int) -> bytes:
    """In place of an overlay. Class 1: the process dies."""
    if class_index:
        os.kill(os.getpid(), signal.SIGKILL)
    return str(os.getpid()).encode()


@pytest.fixture
def bundle(monkeypatch, tmp_path) -> Bundle:
    """A bundle that is not looked at; processes start without TensorFlow."""
    monkeypatch.setattr(explaining, "_explain", pid_of_the_process)
    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(explaining, "_new_pool", lambda _: ProcessPoolExecutor(1, mp_context=context))
    return Bundle(spec=SPEC, directory=tmp_path, sha256="aaa")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def wait_until_gone(pid: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while is_alive(pid):
            await asyncio.sleep(0.02)


def test_one_process_explains_until_it_is_idle(bundle):
    async def run() -> tuple[set[bytes], bytes]:
        found = explaining.Explaining(bundle, idle_s=0.2)
        first = {*await found.overlays([IMAGE, IMAGE], [0, 0]), *await found.overlays([IMAGE], [0])}
        (pid,) = map(int, first)
        await wait_until_gone(pid)
        (second,) = await found.overlays([IMAGE], [0])
        found.close()
        await wait_until_gone(int(second))
        return first, second

    first, second = asyncio.run(run())
    assert len(first) == 1
    assert second not in first


def test_a_killed_process_is_started_again_once(bundle):
    async def run() -> None:
        found = explaining.Explaining(bundle)
        (first,) = await found.overlays([IMAGE], [0])
        os.kill(int(first), signal.SIGKILL)
        (second,) = await found.overlays([IMAGE], [0])
        assert second != first
        with pytest.raises(BundleError, match=r"was ended twice\. It needs 2 GB of memory"):
            await found.overlays([IMAGE], [1])
        found.close()

    asyncio.run(run())
