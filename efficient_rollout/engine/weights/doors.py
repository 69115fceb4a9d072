"""Every call of vLLM's that brings new weights into a worker, as one weight sync of this package's."""

import itertools
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.model_loader import get_model_loader

from efficient_rollout.engine.weights.sync import WeightSync
from efficient_rollout.errors import WeightSyncError

_OPEN_DOORS = (
    "collective_rpc('reload_weights'), start_weight_update with update_weights and finish_weight_update, or "
    "efficient_rollout.engine.weights.sync.WeightSync in a worker extension"
)


class WeightDoors:
    """Stands before vLLM's worker class; doors that cannot keep a weight sync's promises are closed.

    Whatever goes wrong raises WeightSyncError, whose message says what became of the policy.

    Attributes:
        weight_sync: How this engine's layers take new weights.
        open_weight_sync: The sync that began and has not ended.
    """

    weight_sync = WeightSync
    open_weight_sync: WeightSync | None = None

    if TYPE_CHECKING:
        model_runner: Any
        self_drafter: Any
        health: Any
        weight_transfer_engine: Any

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Run stock; from then on the model's `load_weights` belongs to the open weight sync."""
        super().load_model(*args, **kwargs)
        model = self.model_runner.get_model()
        self.load_checkpoint_tensors = model.load_weights
        model.load_weights = self._load_into_open_sync

    def _load_into_open_sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        if self.open_weight_sync is None:
            self.weight_sync.restore_layers(self.model_runner.get_model())
            raise WeightSyncError(
                "model.load_weights was called outside a weight sync, where neither a CPU engine's packed layers nor "
                f"the drafter would follow. Nothing was loaded. Use {_OPEN_DOORS}."
            )
        return self.open_weight_sync.load(weights)

    def reload_weights(
        self,
        weights_iterator: Iterable[tuple[str, torch.Tensor]] | None = None,
        weights_path: str | None = None,
        is_checkpoint_format: bool = True,
    ) -> None:
        """Reload as vLLM does, from named tensors or a checkpoint on disk (unnamed: the one loaded last)."""
        if not is_checkpoint_format:
            raise WeightSyncError(
                "reload_weights(is_checkpoint_format=False) writes into packed layers that the drafter does not see. "
                "Nothing was loaded. Send a checkpoint's tensors under their names, without that argument."
            )
        weights = self._on_disk(weights_path) if weights_iterator is None else weights_iterator
        with self.weight_sync(self) as sync:
            sync.load(weights)
        self.model_runner.reset_encoder_cache()
        self.model_runner.reset_mm_cache()

    def _on_disk(self, path: str | None) -> Iterable[tuple[str, torch.Tensor]]:
        """Return a checkpoint's tensors; raise WeightSyncError, before anything is changed, if the first is unread."""
        config = self.model_runner.model_config
        before = config.model, config.revision
        if path is not None:
            config.model, config.revision = path, None
        try:
            loader = get_model_loader(self.model_runner.load_config)
            if not hasattr(loader, "get_all_weights"):
                raise ValueError(f"load_format={self.model_runner.load_config.load_format} reads no files")
            weights = iter(loader.get_all_weights(config, self.model_runner.get_model()))
            return itertools.chain([next(weights)], weights)
        except Exception as error:
            missing, (config.model, config.revision) = config.model, before
            raise WeightSyncError(
                f"no weights can be read from {missing} ({type(error).__name__}: {error}). Nothing was changed."
            ) from error

    def start_weight_update(self) -> None:
        """Run stock; begin a weight sync that `finish_weight_update` ends."""
        self._check_weight_transfer_engine()
        sync = self.weight_sync(self)
        sync.begin()
        with sync.step():
            super().start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        """Run stock, checked as a part of the weight sync."""
        with nullcontext() if self._is_anothers_update() else self._transfer().step():
            super().update_weights(update_info)

    def finish_weight_update(self) -> None:
        """Run stock, once everything came."""
        if self._is_anothers_update():
            return super().finish_weight_update()
        sync = self._transfer()
        try:
            sync.require_complete()
            with sync.step():
                super().finish_weight_update()
            sync.finish()
        finally:
            self._end_transfer()

    def _transfer(self) -> WeightSync:
        if self.open_weight_sync is None or not self._weight_update_active:
            raise WeightSyncError(
                f"no weight update is open{': ' + self.health.weights_fault if self.health.weights_fault else ''}. "
                "Call start_weight_update first."
            )
        return self.open_weight_sync

    def _end_transfer(self) -> None:
        self._weight_update_active = False
        self.weight_transfer_engine.reset_weight_update_target()

    def _is_anothers_update(self) -> bool:
        """Tell whether vLLM's session is that of a draft model which is not the policy itself."""
        return self._weight_update_active and self.open_weight_sync is None

    def start_draft_weight_update(self) -> None:
        """Run stock; this door is closed where the drafter is the policy itself."""
        if self.self_drafter is not None:
            raise WeightSyncError(
                "the drafter is the policy, quantized, and follows every weight sync of the policy: "
                "call start_weight_update, not start_draft_weight_update"
            )
        super().start_draft_weight_update()

    def supports_draft_weight_updates(self) -> bool:
        """Return what vLLM tells its clients."""
        return self.self_drafter is None and super().supports_draft_weight_updates()

    def reset_weights(self) -> None:
        """Refuse: vLLM's zeroes (from 0.32 on) reach neither packed layers nor the drafter."""
        raise WeightSyncError(
            "reset_weights writes zeroes that neither a CPU engine's packed layers nor the drafter would follow. "
            "Nothing was changed. A weight sync needs none: it fails unless every parameter gets all its values."
        )

    def abort_weight_sync(self) -> None:
        """Drop the open weight sync, for instance of a trainer that is gone; do nothing where none is open."""
        if self.open_weight_sync is not None:
            self.open_weight_sync.fail(WeightSyncError("it was dropped by abort_weight_sync"))
            self._end_transfer()
