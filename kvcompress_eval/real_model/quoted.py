"""Figures of others, and of a study of this model, shown beside what is measured and never mixed with it."""

from __future__ import annotations

from typing import Any

STUDY = "a study of this model: KVTC's transform, keys and values apart, nothing raw, ideal static entropies, "
STUDY += "12 sessions of 1,024 tokens; sizes computed, no files"
LIFEBOAT = "Lifeboat Cache, README: Qwen3-4B, contexts of 2K, 8K and 16K tokens; another model and other texts"

QUOTED: tuple[dict[str, Any], ...] = (
    {
        "name": "KVTC, study",
        "source": STUDY,
        "points": [[7.6, 0.0031], [12.3, 0.012], [22.9, 0.038], [50.0, 0.125], [105.0, 0.41]],
    },
    {"name": "Lifeboat fp8", "source": LIFEBOAT, "points": [[2.0, 0.008], [2.0, 0.003], [2.0, 0.014]]},
    {"name": "Lifeboat lbq4", "source": LIFEBOAT, "points": [[3.5, 0.004], [3.7, 0.005], [3.8, 0.006]]},
    {"name": "Lifeboat lbq3", "source": LIFEBOAT, "points": [[4.3, 0.016], [4.8, 0.012], [5.0, 0.019]]},
    {"name": "Lifeboat lbq2", "source": LIFEBOAT, "points": [[5.0, 0.10], [6.0, 0.11], [6.2, 0.15]]},
)
"""Each with points of (size ratio, KL in nats)."""
