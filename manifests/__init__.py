"""Data only: bundle specs and site profiles that ship with both commands."""
