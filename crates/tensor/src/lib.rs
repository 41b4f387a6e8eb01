//! Devices, dtypes, weight files and keyed random noise over libtorch.
