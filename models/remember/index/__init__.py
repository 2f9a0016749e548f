"""How slots are chosen: product keys, faiss."""
