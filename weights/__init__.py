"""The weights that ship: *.safetensors, each with its configuration and history in its header."""
