"""The connected side: spec, lock, signed bundle."""
