"""Hierarchical pruning: what each token is worth, which tokens are anchors, and which tier each one gets.

```
evidence  ──►  scorer: importance of each token  ──┐
tokens    ──►  anchors: what may not fall     ├──►  plan: tier of each token  ──►  file
codec     ──►  bits and error of each tier  ──┘
```
Evidence is collected once, with the model (`kvcompress.prune.evidence.collect`). A scorer is one file here with one
method, `score`.
"""
