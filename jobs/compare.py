"""`tlray compare` as a script, for `python jobs/compare.py ...` and `ray job submit`."""

from tlray.cli import run

if __name__ == "__main__":
    run("compare")
