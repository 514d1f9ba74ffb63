"""`tlray train` as a script, for `python jobs/train.py ...` and `ray job submit`."""

from tlray.cli import run

if __name__ == "__main__":
    run("train")
