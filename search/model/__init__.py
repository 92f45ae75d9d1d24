"""Networks: the interpreter of architectures and the sources of its weights."""
