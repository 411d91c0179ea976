"""Settings of a fit."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.data.shards import HarvestSettings


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Settings of the closed-form fit.

    Attributes:
        rank: Latents per group; None chooses them from the spectra under the budget.
        prior_rank: Columns of the token table; None as many as the budget allows.
        prior_taps: Tokens the prior looks up.
        prior_width: Hidden units of the prior; None chooses them.
        codec_share: Budget for the codec's size, as a share of the model's 16-bit weights.
        lowest_level: Level below which a latent is not coded: at 24 the standard deviation is .18 of the step.
        recompute_layers: Layers that the model runs when a session is restored, m; with m > 0 only those above m are
            coded, see `kvcompress.codec.recompute`.
        fisher_exponent: See `tinyvae.transform.sensitivity_weight`.
        fisher_sessions: Sessions whose gradients are taken.
        continuation_tokens: Tokens at the end of each session that stand for the future.
        importance_exponent: See `tinyvae.offsets.fit_offsets`.
        calibration_share: Share of the sessions that fit nothing: promises are measured on them.
        sample_rows: Rows of latents kept for the tables.
        seed: Of sampled tokens and of the split.
    """

    rank: int | None = None
    prior_rank: int | None = None
    prior_taps: int = 4
    prior_width: int | None = None
    codec_share: float = 0.08
    lowest_level: int = 24
    recompute_layers: int = 0
    fisher_exponent: float = 0.7
    fisher_sessions: int = 64
    continuation_tokens: int = 256
    importance_exponent: float = 0.75
    calibration_share: float = 0.25
    sample_rows: int = 4096
    seed: int = 0

    def harvest_settings(self) -> HarvestSettings:
        """Return how the sessions of a fit are cut and split."""
        return HarvestSettings(
            continuation_tokens=self.continuation_tokens,
            calibration_share=self.calibration_share,
            gradient_sessions=self.fisher_sessions,
            seed=self.seed,
        )
