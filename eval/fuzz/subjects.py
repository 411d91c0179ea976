"""Every kind of file that the package reads: a few small good ones, how they are changed, and who reads them."""

from __future__ import annotations

from pathlib import Path

from eval.fuzz.codecs import codec_subjects
from eval.fuzz.exports import export_subjects
from eval.fuzz.models import model_subjects
from eval.fuzz.papers import paper_subjects
from eval.fuzz.sessions import session_subjects
from eval.fuzz.stores import store_subjects
from eval.fuzz.subject import Subject


def subjects(directory: Path) -> list[Subject]:
    """Return all kinds; files that must lie somewhere lie in a directory."""
    makers = (session_subjects, store_subjects, export_subjects, paper_subjects, codec_subjects, model_subjects)
    return [subject for make in makers for subject in make(directory)]
