"""Fine-tuning and distillation on Hugging Face ``Trainer``.

Nothing is imported here: :mod:`compressor.training.settings` must stay free of torch, since
recipes are checked without it.
"""
