"""What must hold before anything is changed; ``examination`` is where it begins."""
