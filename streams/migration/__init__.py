"""The steps of a migration that operators ask for: sweep, gate, cutover. None of them writes documents."""
