"""The teacher-forced pass and what is made of it: weights, alignments, signals."""
