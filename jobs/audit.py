"""`tlray audit` as a script, for `python jobs/audit.py ...` and `ray job submit`."""

from tlray.cli import run

if __name__ == "__main__":
    run("audit")
