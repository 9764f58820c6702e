"""What a cache costs and what a machine can hold: arithmetic over configurations, without torch and without weights."""
