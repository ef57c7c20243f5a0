"""The harness: grid -> cells -> runner -> train -> evaluate -> store -> report."""

__version__ = "0.1.0"
