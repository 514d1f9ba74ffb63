"""Writes the API reference, `docs/api/tlray.html`, from the docstrings. A warning ends it with an error."""

import os
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import tlray

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow comes with the classes, and reports on the machine


def main() -> None:
    """Documents what `import tlray` offers, with the source code left out."""
    warnings.simplefilter(
        "error", UserWarning
    )  # pdoc's: a name that cannot be found, an annotation that cannot be read
    for name in tlray.__all__:
        getattr(tlray, name)  # pdoc sees only names that were loaded
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("tlray", output_directory=Path(__file__).parent / "api")


if __name__ == "__main__":
    main()
