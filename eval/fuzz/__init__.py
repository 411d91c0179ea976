"""Damaged and lying files by the million: each is refused in one line or read as what it says, nothing else happens.

```
mutate.py     changes to bytes, to JSON values, to a file's header and sections; checksums are made right again
tables.py     changes to a database by its rows
subject.py    what a kind of file is; subjects.py: all kinds, of which each module makes those of one topic
sessions.py   coded and raw sessions and what stands beside them     codecs.py, models.py   (gguf_file.py writes GGUF)
stores.py     databases and segments (stand.py: the stores, and all that is read out of one)
exports.py    portable files, places of synchronisation              papers.py   seals, records, policies, keys
run.py        cases by number, in worker processes, under an alarm and a limit of memory; failures are kept
```
Case number i of a seed is the same on every machine, so a run goes on where it stopped.
"""
