"""The gateway: serves the Open Inference Protocol over HTTP and gRPC, as a client of a cluster."""
