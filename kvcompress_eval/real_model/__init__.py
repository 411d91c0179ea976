"""The codec on a model that people run: `kvcompress eval real-model`.

```
python -m train mixture --novels N.jsonl.gz --chats C.jsonl.gz --model MODEL --count 120 --tokens 1344 -o fit.jsonl
python -m train mixture ... --count 24 --tokens 1536 -o test.jsonl  # and the --skip-... that the first prints
python -m train mixture --chats OTHER.jsonl.gz --model MODEL --count 12 --tokens 1536 -o other.jsonl
kvcompress harvest --model MODEL --sessions fit.jsonl -o shards
kvcompress fit --shards shards --model MODEL -o codec --json >fit-0.json
kvcompress fit --shards shards --model MODEL -o codec --recompute-layers 10% --json >fit-3.json
kvcompress eval real-model --model MODEL --codec codec --sessions test.jsonl --other other.jsonl --shards shards ...
```
"""
