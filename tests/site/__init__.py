"""The site tier: a real one-node Kubernetes in a network namespace without a route out."""
