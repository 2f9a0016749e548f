"""The choice of slots: product keys, faiss."""
