"""Where checkpoints lie: bundled names, directories, and repositories of the Hugging Face Hub. Loads none."""
