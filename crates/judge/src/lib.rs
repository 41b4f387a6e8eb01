//! Judges: what scores an image, or a predicted clean image, for a prompt.
