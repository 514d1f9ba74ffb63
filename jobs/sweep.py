"""`tlray sweep` as a script, for `python jobs/sweep.py ...` and `ray job submit`."""

from tlray.cli import run

if __name__ == "__main__":
    run("sweep")
