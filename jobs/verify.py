"""`tlray verify` as a script, for `python jobs/verify.py ...` and `ray job submit`."""

from tlray.cli import run

if __name__ == "__main__":
    run("verify")
