"""`tlray evaluate` as a script, for `python jobs/evaluate.py ...` and `ray job submit`."""

from tlray.cli import run

if __name__ == "__main__":
    run("evaluate")
