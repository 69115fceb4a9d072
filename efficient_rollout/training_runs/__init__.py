"""Runs read from their directories, and two of them compared, for the page and the terminal alike."""
