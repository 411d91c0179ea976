"""Recipe of the bundled reference language model: corpus, tokenizer, curriculum, loop, measures."""
