"""Pruning by tiers: the importance of each token, protected tokens, and the tier of each token.

```
evidence  ──►  scorer: importance of each token  ──┐
tokens    ──►  anchors: what may not fall     ├──►  plan: tier of each token  ──►  file
codec     ──►  bits and error of each tier  ──┘
```
Evidence is collected once, with the model (`kvcompress.prune.evidence.collect`). A scorer is one file here with one
method, `score`.
"""
