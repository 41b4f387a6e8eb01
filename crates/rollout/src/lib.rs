//! DDIM steps and log-probabilities, guidance, trajectories and step-wise branching.
