"""Tasks whose answers lie in the middle of the context: `kvcompress eval tasks`.

```
example ──► prefill ──► exact cache ──┬──► asked                       what the model can do at all
                                      └──► file ──► cache ──► asked    for each candidate, the same questions
```
A task is a file of this room with a class that makes examples (`kvcompress_eval.tasks.protocol`), and its name in
`kvcompress_eval.tasks.registry`.
"""
