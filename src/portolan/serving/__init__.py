"""The server: what answers requests, in which order, with how many replicas."""
