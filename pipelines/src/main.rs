//! The `speechverse` program.
fn main() {}
