"""`python -m tlray` is `tlray`."""

from tlray.cli import main

if __name__ == "__main__":
    main()
