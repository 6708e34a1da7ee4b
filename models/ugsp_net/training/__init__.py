"""Training UGSP: clips and synthetic motion, losses, and the loop."""
