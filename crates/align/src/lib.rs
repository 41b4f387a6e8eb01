//! Objectives, pair sources, reference policies, the trainer, checkpoints and resume.
