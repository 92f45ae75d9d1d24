"""Serving bundles over HTTP and gRPC in the Open Inference Protocol, version 2.

    batching   requests that wait together run together; a bounded queue
    models     opened bundles by name and version, exchanged without dropping a request
    protocol   OIP tensors: JSON, binary and classification extensions; no network in it
    app        the HTTP endpoints        grpc_service   the same over gRPC
    sizing     how large a batch and a queue, from measured times
    middleware what every HTTP request passes: ids, key, limits, errors, counts
    hosts      names the server answers to    connections   who may be connected, and who goes first
    messages, protobuf, reflection   of gRPC, from tables         encodings  compressed bodies
    wire       protobuf messages judged by their bytes            logs   lines that never block
    http       the connection: inferences go the short way, all else through ASGI to the app
    run        the process: sockets, signals, drain

One event loop takes requests and never computes. One worker thread per model runs its session, which
releases the interpreter lock while it computes; a gRPC thread runs a free model itself.
"""
