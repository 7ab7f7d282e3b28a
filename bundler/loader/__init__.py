"""What the one-file installer starts with: a static program per architecture, and boot.py."""
