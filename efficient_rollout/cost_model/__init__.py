"""How long would it take? Seconds per pass from a few measured points; numpy and scipy only."""
