"""ugsp: a command line tool that gives video a higher frame rate and computes only what needs computing."""

__version__ = "0.1.0"
