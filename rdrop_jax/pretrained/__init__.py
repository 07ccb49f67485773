"""Import and export of weights of other libraries: names, layouts and merging."""
