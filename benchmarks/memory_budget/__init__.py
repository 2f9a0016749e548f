"""The memory that an experiment needs on its GPU, computed without one.

``python -m benchmarks.memory_budget configs/diversify/creative_qa_qwen3.yaml`` prints the parts and
the peak for one GPU, or for several with ``--gpus``.
"""
