"""Small models, data and programs that tests share."""
