"""Store a session, load it again, go on: the whole way in one page. Run it with `python examples/quickstart.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import kvcompress as kv

# A model and a session. Any decoder-only model works: a directory, a GGUF file or a Hub id instead of the bundled name.
model, tokenizer = kv.load_model("reference-lm")
assert tokenizer is not None
said = "<|bos|><|user|>My locker code is 4821.<|end|><|assistant|>I will remember that.<|end|>"
ids = tokenizer(said, add_special_tokens=False, return_tensors="pt").input_ids

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "session.kvz"

    # To disk. The codec is the one at hand that belongs to the model; the quality is as its calibration measured it.
    saved = kv.save_session(path, model, ids[0], tokenizer=tokenizer, quality="high")
    print(f"{saved.tokens} tokens in {saved.file_bytes:,} bytes, {saved.size_ratio:.1f} times smaller than the cache")

    # And back: a transformers cache, found to be of this model and this tokenizer, every byte checked.
    cache = kv.load_session(path, model, tokenizer=tokenizer)

# The model goes on where it stopped: generate reads only the new tokens.
question = "<|user|>What is my locker code?<|end|><|assistant|>"
more = tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids
answer = model.generate(torch.cat([ids, more], 1), past_key_values=cache, max_new_tokens=16, do_sample=False)
print(tokenizer.decode(answer[0, ids.shape[1] + more.shape[1] :], skip_special_tokens=True))
