"""Find checkpoints: bundled names, directories, and repositories of the Hugging Face Hub."""
