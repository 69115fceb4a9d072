"""The only folder that imports veRL."""
