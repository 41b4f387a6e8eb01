//! The `seedpo` command.
fn main() {}
