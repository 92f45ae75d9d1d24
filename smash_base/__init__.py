"""What the three packages share and nothing else: error types, file handling, preprocessing.

Imports numpy and Pillow only, and nothing of this project, so that an edge device can load it.
"""

import os

# Libraries that send usage data unless told otherwise read these when they are imported. Every process of
# this program imports this package first, and the processes that it starts inherit the settings. OpenVINO and
# MNN have no such setting: what sends is never imported (see their targets).
_OPT_OUTS = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime from 1.29: a lasting device id and a queue of events
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
for _name, _value in _OPT_OUTS.items():
    os.environ.setdefault(_name, _value)
