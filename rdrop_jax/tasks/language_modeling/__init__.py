"""Language models over words, characters or subwords."""
