"""What all tiers share: small data sets and where the real images are."""

import os
import signal
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlray.data import phantom_files


def pytest_configure(config: pytest.Config) -> None:
    """Lets Ctrl-C through, and gives all tests a cache of their own.

    Programs that a shell runs in the background ignore Ctrl-C, and so would the tested commands. The networks of the
    tests would push those of the user out of the user's own cache.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        directory = tempfile.TemporaryDirectory(prefix="tlray-test-cache-", ignore_cleanup_errors=True)
        config.add_cleanup(directory.cleanup)
        os.environ["XDG_CACHE_HOME"] = directory.name
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses tests with the same id: of these, pytest-xdist's `loadfile` would run a single one."""
    if repeated := [node_id for node_id, count in Counter(item.nodeid for item in items).items() if count > 1]:
        raise pytest.UsageError(f"Several tests have the same id: {', '.join(repeated)}. Give each a name of its own.")


@pytest.fixture(scope="session")
def phantom_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder CLASS/PATIENT/*: 4 classes of 8 patients of 2 slices at 64 px, and 4 unreadable files."""
    root = tmp_path_factory.mktemp("phantoms")
    phantom_files.write_data_set(
        str(root), num_patients_per_class=8, num_slices_per_patient=2, size_px=64, seed=1, num_unreadable=4
    )
    return root


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights, which is no part of the project."""
    root = Path(os.environ.get("TLRAY_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "data/chest_ct").is_dir():
        pytest.skip(f"needs the real chest-CT images in {root}/data/chest_ct (TLRAY_SHARED names another folder)")
    return root


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """One local Ray for all tests, of exactly 2 CPUs: the smallest machine on which everything must run."""
    import ray

    from tests.processes import processes_with, wait_until
    from tlray.cluster import connection

    os.environ.update(connection.LOCAL_RAY_ENVIRONMENT)
    mark = uuid.uuid4().hex
    inherited = connection.WORKER_ENVIRONMENT | connection.NO_API_SERVER | {"TLRAY_TEST_RAY": mark}
    with pytest.MonkeyPatch.context() as patched:  # Ray's processes inherit these variables, as a command's do
        for name, value in inherited.items():
            patched.setenv(name, value)
        context = ray.init(
            "local",  # and not one that somebody has started on this machine
            num_cpus=2,
            object_store_memory=1 * 2**30,
            log_to_driver=False,
            include_dashboard=False,
        )
    try:
        connection.connect()
        yield context.address_info["gcs_address"]  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        ray.shutdown(wait_for_processes=True)
        # A raylet that does not end within a second is killed, and may leave its workers behind.
        if not wait_until(lambda: not processes_with(mark)):
            for process in processes_with(mark):
                os.kill(process, signal.SIGKILL)
