"""Many users at once: files of histories in, files of recommendations out."""
