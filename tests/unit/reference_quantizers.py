"""What quantizers must choose, in a few lines of torch."""

import torch


def channel_reference(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to nearest, symmetric, one scale per output channel.

    Args:
        weight: [out_features, in_features], any float dtype.
        dtype: int8 or float8_e4m3fn.

    Returns:
        Values [out_features, in_features] and float32 scales [out_features, 1]; weight ~ values * scales.
    """
    largest = 127.0 if dtype == torch.int8 else 448.0
    weight = weight.cpu().float()
    scales = (weight.abs().amax(1, keepdim=True) / largest).clamp_min(torch.finfo(torch.float32).tiny)
    values = (weight / scales).clamp(-largest, largest)
    return (values.round() if dtype == torch.int8 else values).to(dtype), scales


def quantize_int4(
    weight: torch.Tensor, group_size: int, scale_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round to nearest, asymmetric, in the kernel's convention: weight ~ (values - 8) * scale + offset.

    Args:
        weight: [out_features, in_features], any float dtype.
        group_size: Input channels that share a scale and an offset; divides in_features.
        scale_dtype: Precision the kernel reads scales and offsets in. Rounding to it comes before the
            integers are chosen, so that they are the nearest for the scales really used.

    Returns:
        int32 values 0..15 [out_features, in_features]; scales and offsets [out_features, num_groups].
    """
    out_features, in_features = weight.shape
    groups = weight.float().view(out_features, in_features // group_size, group_size)
    smallest, largest = groups.aminmax(dim=-1)
    tiny = torch.finfo(torch.float32).tiny
    scales = ((largest - smallest) / 15).clamp_min(tiny).to(scale_dtype)
    offsets = (smallest + 8 * scales.float()).to(scale_dtype)
    steps = (groups - offsets.float().unsqueeze(-1)) / scales.float().clamp_min(tiny).unsqueeze(-1)
    values = (steps.round_() + 8).clamp_(0, 15).to(torch.int32)
    return values.view(out_features, in_features), scales, offsets
