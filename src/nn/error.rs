//! What can go wrong in a building block.

/// What can go wrong in a building block.
#[derive(Debug, thiserror::Error)]
pub enum NnError {
    /// A list does not have the shape that is needed.
    #[error("{what} has shape {found:?}, expected {expected}")]
    Shape {
        /// Which list.
        what: &'static str,
        /// What would have been right.
        expected: String,
        /// Its shape, or its elements where it is a list of indices.
        found: Vec<i64>,
    },
    /// More positions than a cache slot holds.
    #[error("{positions} positions are asked for, a cache slot holds {positions_max}")]
    TooManyPositions {
        /// How many the input needs.
        positions: i64,
        /// How many there are.
        positions_max: i64,
    },
}
