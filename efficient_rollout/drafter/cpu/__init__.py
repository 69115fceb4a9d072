"""What only a CPU has: kernels, and the packed layers that call them."""
