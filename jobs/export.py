"""`tlray export` as a script, for `python jobs/export.py ...` and `ray job submit`."""

from tlray.cli import run

if __name__ == "__main__":
    run("export")
