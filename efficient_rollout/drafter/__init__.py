"""The quantized self: schemes, packed kernels per device, refresh in place."""
