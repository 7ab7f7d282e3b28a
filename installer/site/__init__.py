"""What is particular to one installation: site.yaml, secrets, state."""
