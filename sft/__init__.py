"""Instruction tuning: tasks made of Documents, data formats people have, mixtures, fine-tuning and evaluation.

    formats/ ──► tasks/ ──► mixture ──► train            evaluate: held-out documents through the same tasks
    Document      turns     token ids   cm3.train's loop

It is the same road as pretraining, with task Documents in front and a loss on the responses alone (section 4 of
arXiv:2309.02591). Import what you need by its module: `sft.train`, `sft.evaluate`, `sft.tasks`, `sft.formats`.
"""
