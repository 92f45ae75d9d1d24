"""Files for programs that run a bundle without this package: trtexec and Triton."""
