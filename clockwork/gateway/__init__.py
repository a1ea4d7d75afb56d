"""The gateway: HTTP and gRPC as the Open Inference Protocol has them, on one side; a cluster's client on the other."""
