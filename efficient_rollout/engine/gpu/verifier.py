"""Verify drafts by sampling, in vLLM's V2 model runner: every emitted token is the policy's own draw.

At each position of a chain the policy samples with the noise that belongs to it, exactly as without speculation: stock
keys its noise by seed and position. Drafts stand while they are what it sampled.
"""

import numpy as np
import torch
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler


class SharedNoiseVerifier(RejectionSampler):
    """Stands in the place of the runner's rejection sampler; processing and log-probabilities are stock's."""

    def __init__(self, stock: RejectionSampler) -> None:
        vars(self).update(vars(stock))
        # Drawn by one kernel with and without drafts; FlashInfer's draws belong to no position.
        self.sampler.use_flashinfer = False

    def _verify(
        self,
        logits: torch.Tensor,
        draft_logits: torch.Tensor | None,
        draft_sampled: torch.Tensor,
        pos: torch.Tensor,
        cu_num_logits: torch.Tensor,
        idx_mapping: torch.Tensor,
        idx_mapping_np: np.ndarray,
        expanded_idx_mapping: torch.Tensor,
        expanded_local_pos: torch.Tensor,
        seq_lens_upper_bound_np: np.ndarray,
        verify_draft_sampled: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sample at every position, and keep what stands.

        Args:
            logits: [num_logits, vocab], the policy's: a row for each draft of a request, and one more.
            draft_sampled: [num_logits], the token each row was computed from; behind a request's first row, its drafts.
            pos: [num_logits], their positions.
            verify_draft_sampled: From vLLM 0.32 on, `draft_sampled` without the drafts that a grammar forbids.
            cu_num_logits: [num_requests + 1], where each request's rows begin.

        Returns:
            Processed logits [num_logits, vocab]; tokens [num_requests, most drafts + 1], of which so many of each
            request stand as the third says, int32 [num_requests].
        """
        sampled, processed_logits = self.sampler.sample(
            logits,
            expanded_idx_mapping,
            idx_mapping,
            idx_mapping_np,
            pos,
            draft_sampled,
            expanded_local_pos,
            seq_lens_upper_bound_np,
        )
        begins, ends = cu_num_logits[:-1, None].long(), cu_num_logits[1:, None].long()
        rows = begins + torch.arange(self.num_speculative_steps + 1, device=logits.device)
        tokens = sampled[rows.clamp(max=len(sampled) - 1)]
        judged = draft_sampled if verify_draft_sampled is None else verify_draft_sampled
        drafts = judged[(rows + 1).clamp(max=len(sampled) - 1)]
        stands = (tokens == drafts) & (rows + 1 < ends)
        num_sampled = 1 + stands.int().cumprod(dim=1).sum(dim=1, dtype=torch.int32)
        return processed_logits, tokens.to(draft_sampled.dtype), num_sampled.int()
