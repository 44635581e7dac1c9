"""Native kernels for processors: C++ under `csrc/`, the operations as Python calls them, and the capture of a step."""
