"""`tlray features` as a script, for `python jobs/features.py ...` and `ray job submit`."""

from tlray.cli import run

if __name__ == "__main__":
    run("features")
