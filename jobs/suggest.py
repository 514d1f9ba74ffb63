"""`tlray suggest` as a script, for `python jobs/suggest.py ...` and `ray job submit`."""

from tlray.cli import run

if __name__ == "__main__":
    run("suggest")
