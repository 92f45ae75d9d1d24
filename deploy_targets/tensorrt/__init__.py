"""TensorRT: engines through Python, engines through trtexec, and what its parser takes."""
