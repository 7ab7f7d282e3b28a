"""References, manifests and stores as the OCI specifications define them."""
