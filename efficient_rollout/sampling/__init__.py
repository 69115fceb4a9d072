"""Which token a request samples at a position: noise that belongs to both, and the draw that it decides."""
