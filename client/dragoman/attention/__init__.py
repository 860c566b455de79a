"""What a model attended to: weights, alignments, statistics and pictures.

Imports nothing by itself: most of it needs NumPy, which comes with the extra `viz`.
"""
