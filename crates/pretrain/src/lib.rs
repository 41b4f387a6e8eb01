//! Training the built-in Stable-Diffusion-shaped model from the emoji dataset.
