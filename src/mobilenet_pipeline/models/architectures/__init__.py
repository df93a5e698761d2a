"""One module for each architecture; its `ARCHITECTURE` is what `models.network` builds and trains."""
