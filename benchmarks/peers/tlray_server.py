"""The project's own application, with its defaults."""

from model import BUNDLE
from on_ray import run

from serve_app.app import build
from serve_app.options import Options

if __name__ == "__main__":
    run(build(Options(bundle=str(BUNDLE))))
