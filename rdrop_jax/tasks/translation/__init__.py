"""Translation with an encoder-decoder Transformer."""
