"""The file format: container, sections, entropy coding and files on disk. Independent of codecs and models."""
