"""What a fit will cost, and that token statistics stay small at the geometry of a large model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

from kvcompress.fit.dry_run import groups_of, pass_costs
from kvcompress.fit.settings import FitSettings
from kvcompress.hf.geometry import geometry_of

LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
}
GIGABYTE = 1_000_000_000


def test_the_geometry_of_a_model_comes_from_its_configuration_alone() -> None:
    geometry = geometry_of(LlamaConfig(**LLAMA_8B, tie_word_embeddings=False))
    assert geometry.parameters == 8_030_261_248  # Llama-3.1-8B
    assert sum(shape.channels for shape in geometry.shapes) == 65_536
    assert len(groups_of(geometry, FitSettings())) == 16


def test_passes_of_a_large_model_name_memory_disk_and_time() -> None:
    geometry = geometry_of(LlamaConfig(**LLAMA_8B, tie_word_embeddings=False))
    costs = {cost.name: cost for cost in pass_costs(geometry, 120, 1344, FitSettings(), speed=1e11)}
    shards = 2 * 1088 * 65_536 * (120 + 64) + 2 * 128_256 * 4096
    assert costs["harvest"].disk_bytes == pytest.approx(shards)
    assert costs["harvest"].seconds == pytest.approx(2 * 8_030_261_248 * (120 * 1088 + 3 * 64 * 256) / 1e11)
    table = costs["token table, from embeddings"]
    assert table.memory_bytes < GIGABYTE
    assert all(cost.seconds > 0 and cost.memory_bytes > 0 for cost in costs.values())


STATISTICS = """
import resource, sys
import torch
from kvcompress.hf.channels import LayerShape
from kvcompress.fit.closed_form import Group
from kvcompress.codec.lower_groups import Lower
from kvcompress.codec.recompute import ConditioningLayers
from kvcompress.fit.token_table import embedding_table, mean_table

torch.set_num_threads(1)
VOCAB, SIZE, CHANNELS, SESSIONS, TOKENS = 128_256, 4096, 4096, 4, 512
generator = torch.Generator().manual_seed(0)
embeddings = torch.empty(VOCAB, SIZE, dtype=torch.float16).uniform_(-1, 1, generator=generator)
ids = [torch.randint(0, VOCAB, (TOKENS,), generator=generator) for _ in range(SESSIONS)]

class Harvest:
    rows = ids
    def __len__(self): return SESSIONS
    def embeddings(self): return embeddings
    def token_ids(self, number): return ids[number]
    def channels(self, number, layers, rope):
        rows = embeddings[ids[number], : CHANNELS].float() * (1 + layers[0])
        return ids[number], torch.arange(TOKENS), rows

groups = [Group((index,), ConditioningLayers(), Lower()) for index in range(2)]
scales = [torch.ones(CHANNELS) for _ in groups]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
make = {"embeddings": embedding_table, "means": mean_table}[sys.argv[1]]
table = make(Harvest(), groups, scales, 32, None, False, lambda stage, done, total: None)
assert table.shape == (VOCAB, 32)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["embeddings", "means"])
def test_token_statistics_stay_under_a_gigabyte_at_the_geometry_of_llama_8b(kind: str) -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", STATISTICS, kind], cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) < GIGABYTE
