"""Commands for developers: run as `python -m scripts.NAME` from the root of a checkout."""
