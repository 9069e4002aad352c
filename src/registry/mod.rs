//! Immutable adapter versions on disk, published by rename, with a `current` pointer.
