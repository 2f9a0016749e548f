"""One question of speed or memory a file, always side by side with a peer or a baseline.

Import this package before torch: it asks torch's CPU allocator for transparent huge pages, for
ours and for every peer. Without them the page faults of fresh large tensors drown what is measured.
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
