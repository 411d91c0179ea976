"""Damaged and lying files by the million: each is refused in one line or read as what it says, nothing else happens.

```
mutate.py     changes to bytes, to JSON values, to a file's header and sections; checksums are made right again
subjects.py   every kind of file that the package reads: small good ones, and who reads them
run.py        cases by number, in worker processes, under an alarm and a limit of memory; failures are kept
```
Case number i of a seed is the same on every machine, so a run goes on where it stopped.
"""
