"""The one training loop: a `TrainingTask` brings modules, batches and losses; `train` brings everything else.

The image tokenizer, the encoder, pretraining and instruction tuning all run through `cm3.train.loop.train`.
Submodules are imported by name, so that reading a `TrainConfig` does not import torch.
"""
