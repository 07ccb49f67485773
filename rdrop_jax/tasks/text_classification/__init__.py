"""Classes, sets of labels or numbers for texts and pairs of texts."""
