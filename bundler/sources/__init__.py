"""Where artefacts come from: one interface, one file a kind."""
