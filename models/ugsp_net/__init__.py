"""UGSP: frame interpolation with uncertainty-guided spatial pruning, as a library that knows no files and no video."""
