"""Making `vocabulary.bin`: by-language lists and by-sentence shortlists, and the measure of what they change."""
