"""faas: the kernel that everybody may read, and the command line that wires everything together."""

__version__ = "0.1.0"
