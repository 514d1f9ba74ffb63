"""`tlray score` as a script, for `python jobs/score.py ...` and `ray job submit`."""

from tlray.cli import run

if __name__ == "__main__":
    run("score")
