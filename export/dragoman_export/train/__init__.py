"""From files of sentence pairs to a trained checkpoint."""
